"""An OpenAI-compatible endpoint on loopback that answers as a script says: the real protocol, with faults on demand."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal


@dataclass
class Reply:
    """What one request gets.

    Attributes:
        body: sent as JSON, or as it is where it is bytes.
        fault: drop: the connection is reset before a word. hang: silence until the server closes. truncate: half of
            the body under the length of the whole. stall: the body, and then silence where more was announced.
    """

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    fault: Literal["drop", "hang", "truncate", "stall"] | None = None


def answer(text: str | None = "blue", reason: str | None = "stop", prompt: int = 20, completion: int = 5,
           model: str = "teacher-1", **message: Any) -> Reply:
    """A chat completion as OpenAI writes it."""
    said = {"role": "assistant", "content": text, **message}
    return Reply({
        "id": "c", "object": "chat.completion", "created": 1, "model": model,
        "choices": [{"index": 0, "finish_reason": reason, "message": said}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    })


def streamed(*pieces: str, reason: str | None = "stop", fault: Literal["stall"] | None = None) -> Reply:
    """A chat completion as OpenAI streams it; with a fault, what comes of it before that."""
    chunks = [{"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "teacher-1",
               "choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
    if reason is not None and fault is None:
        chunks.append({**chunks[0], "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + (["data: [DONE]\n\n"] if fault is None else [])
    return Reply("".join(lines).encode(), headers={"Content-Type": "text/event-stream"}, fault=fault)


def error(status: int, message: str = "no", code: str | None = None, **headers: str) -> Reply:
    """An error as OpenAI writes it; header names with _ for -."""
    return Reply({"error": {"message": message, "type": "error", "code": code, "param": None}}, status,
                 {name.replace("_", "-"): value for name, value in headers.items()})


@dataclass(frozen=True)
class Asked:
    """One request: its number from 0, how often the same prompt and seed came before, its body, and its headers in
    small letters."""

    number: int
    again: int
    body: dict[str, Any]
    headers: dict[str, str]
    path: str

    @property
    def last(self) -> str:
        """The user's words."""
        return str(self.body["messages"][-1]["content"])


Script = Callable[[Asked], Reply]


class Endpoint:
    """The server; `asked` grows, `most` is how many requests were open at once."""

    def __init__(self, script: Script) -> None:
        self.script, self.asked = script, list[Asked]()
        self.open = self.most = 0
        self.over = threading.Event()
        self._lock, self._seen = threading.Lock(), dict[str, int]()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                with suppress(ConnectionError):
                    endpoint.serve(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            same = json.dumps([body["messages"], body.get("seed")])
            again = self._seen[same] = self._seen.get(same, -1) + 1
            asked = Asked(len(self.asked), again, body,
                          {name.lower(): value for name, value in handler.headers.items()}, handler.path)
            self.asked.append(asked)
            self.open += 1
            self.most = max(self.most, self.open)
        try:
            reply = self.script(asked)
        finally:
            with self._lock:
                self.open -= 1
        content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        if reply.fault == "hang":
            self.over.wait(20)
        if reply.fault in ("drop", "hang"):
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.close_connection = True
            handler.connection.close()
            return
        handler.send_response(reply.status)
        length = len(content) + (reply.fault == "stall")
        for name, value in {"Content-Type": "application/json", "Content-Length": str(length),
                            **reply.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2] if reply.fault == "truncate" else content)
        if reply.fault == "stall":
            self.over.wait(20)
        if reply.fault in ("truncate", "stall"):
            handler.close_connection = True


@contextmanager
def endpoint(script: Script) -> Iterator[Endpoint]:
    """A running server, gone after the block."""
    made = Endpoint(script)
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.over.set()
        made.server.shutdown()
        made.server.server_close()
        thread.join(5)


def teacher(url: str, **model: Any) -> dict[str, Any]:
    """The import stage that names it."""
    return {"name": "teacher", "kind": "import",
            "model": {"source": "endpoint", "base_url": url, "model": "teacher-1", **model}}
