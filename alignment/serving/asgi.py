"""A request to an ASGI application of this process, as a server would hand it over. No sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


async def post(app: App, path: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
    """Status and JSON of the answer to a POST of JSON."""
    raw = json.dumps(body).encode()
    given = {"host": "localhost", "content-type": "application/json", "content-length": str(len(raw)), **headers}
    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
             "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
             "scheme": "http", "client": ("127.0.0.1", 0), "server": ("127.0.0.1", 0),
             "headers": [(name.encode(), value.encode()) for name, value in given.items()]}
    sent = iter([{"type": "http.request", "body": raw, "more_body": False}])
    status, said = 500, bytearray()

    async def receive() -> Message:
        message = next(sent, None)
        if message is None:
            await asyncio.Event().wait()  # the client stays
            raise AssertionError
        return message

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            said.extend(message.get("body", b""))

    await app(scope, receive, send)
    return status, json.loads(said)
