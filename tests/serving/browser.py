"""A real browser without a window, told what to do over Chrome's DevTools protocol; and the server that its page needs.

The server speaks as `kubealign serve` does: /v1/models, streamed chat completions, /votes. What it says is the test's.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "alignment" / "serving" / "page" / "index.html"
POLICY = ("default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
          "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
"""The content security policy that the server gives the page."""
Answer = Callable[[dict[str, Any]], "Iterator[bytes] | tuple[int, str]"]


def events(*texts: str, reason: str | None = "stop") -> Iterator[bytes]:
    """A streamed answer, an event for each text."""
    for text in texts:
        yield _event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
    if reason is not None:
        yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        yield b"data: [DONE]\n\n"


def _event(chunk: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()


class Server:
    """The page's server. `answer` gives pieces of bytes for a request, or (status, message)."""

    def __init__(self, answer: Answer, key: str | None = None, keeps_votes: bool = True) -> None:
        self.votes: list[dict[str, Any]] = []
        self.asked: list[dict[str, Any]] = []
        self.others: list[str] = []
        self.keeps_votes = keeps_votes
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/":
                    server.reply(self, 200, PAGE.read_bytes(), "text/html; charset=utf-8")
                elif self.path != "/v1/models":
                    server.others.append(self.path)
                    server.reply(self, 404, b"{}")
                elif self.headers["Authorization"] != (key and f"Bearer {key}"):
                    server.refuse(self, 401, "this server asks for its API key")
                else:
                    entries = [{"id": "base", "kind": "policy", "ready": True}, {"id": "dpo", "kind": "policy"},
                               {"id": "late", "kind": "policy", "ready": False}, {"id": "rm", "kind": "reward"}]
                    server.reply(self, 200, json.dumps({"data": entries}).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/votes" and not server.keeps_votes:
                    server.refuse(self, 404, "votes are not kept here")
                elif self.path == "/votes":
                    server.votes.append(body)
                    server.reply(self, 200, b'{"kept": true}')
                else:
                    server.asked.append(body)
                    made = answer(body)
                    if isinstance(made, tuple):
                        server.refuse(self, *made)
                        return
                    self.send_response(200)
                    self.send_header("Content-Type", "text/event-stream")
                    self.send_header("Connection", "close")
                    self.end_headers()
                    self.close_connection = True
                    with suppress(OSError):
                        for piece in made:
                            self.wfile.write(piece)
                            self.wfile.flush()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/"

    def reply(self, handler: BaseHTTPRequestHandler, status: int, body: bytes, kind: str = "application/json") -> None:
        handler.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))),
                            ("Content-Security-Policy", POLICY)):
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    def refuse(self, handler: BaseHTTPRequestHandler, status: int, message: str) -> None:
        self.reply(handler, status, json.dumps({"error": {"message": message}}).encode())


@contextmanager
def served(answer: Answer, **options: Any) -> Iterator[Server]:
    """A running server, gone after the block."""
    made = Server(answer, **options)
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.http.shutdown()
        made.http.server_close()


class Browser:
    """Chromium, one page. `errors` has what the page's console complained of."""

    def __init__(self, folder: Path) -> None:
        program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if program is None:
            pytest.skip("no chromium on PATH")
        websocket = pytest.importorskip("websocket")
        self.process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio",
             "--no-first-run", "--disable-background-networking", "--remote-debugging-port=0",
             "--remote-allow-origins=*", f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = folder / "DevToolsActivePort"
        _until(lambda: port.exists() and port.read_text().count("\n") > 0, "the browser's port")
        number = port.read_text().split()[0]
        pages = json.load(urllib.request.urlopen(f"http://127.0.0.1:{number}/json", timeout=20))
        target = next(page for page in pages if page["type"] == "page")
        self.socket = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=30)
        self.number, self.errors = 0, list[str]()
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            said = json.loads(self.socket.recv())
            if said.get("method") == "Runtime.exceptionThrown":
                self.errors.append(said["params"]["exceptionDetails"].get("exception", {}).get("description", "error"))
            entry = said["params"]["entry"] if said.get("method") == "Log.entryAdded" else {}
            if entry.get("source") in ("security", "javascript"):
                self.errors.append(entry["text"])
            if said.get("id") == self.number:
                assert "error" not in said, said
                result: dict[str, Any] = said["result"]
                return result

    def js(self, code: str) -> Any:
        """The value of an expression in the page."""
        made = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in made, made
        return made["result"].get("value")

    def open(self, url: str, columns: int = 1200, rows: int = 800, *, dark: bool = False) -> None:
        """Load a page in a window of that size."""
        self.call("Emulation.setDeviceMetricsOverride", width=columns, height=rows, deviceScaleFactor=1,
                  mobile=columns < 500)
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def wait(self, code: str, seconds: float = 20) -> None:
        _until(lambda: self.js(f"Boolean({code})"), code, seconds)

    def type(self, text: str) -> None:
        """What keys do, where the focus is; a line's end is Enter."""
        for part in text.split("\n")[:-1] or [text]:
            self.call("Input.insertText", text=part)
            if "\n" in text:
                for kind in ("keyDown", "keyUp"):
                    self.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13,
                              **({"text": "\r"} if kind == "keyDown" else {}))

    def shot(self, file: Path) -> None:
        """A picture of the window."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        with suppress(Exception):
            self.call("Browser.close")
        self.process.kill()
        self.process.wait()


def _until(met: Callable[[], Any], what: str, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not met():
        if time.monotonic() > until:
            raise AssertionError(f"did not come within {seconds} s: {what}")
        time.sleep(0.03)
