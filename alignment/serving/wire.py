"""What of HTTP uvicorn leaves open: headers that are endless or never end, and garbage; each answered as OpenAI does.

Knows bytes and connections; requests are door.py's.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from alignment.serving.asgi import App
from alignment.serving.refused import Refused

HEAD_BYTES = 64 << 10
"""Of a request's line and headers."""
HEAD_S = 30.0
"""Seconds in which they have to come, once a connection is made or a byte of the next request is there."""
LINGER_S = 2.0
"""Seconds in which what a client still sends is thrown away, once it was refused."""
_WORDS = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


def server_of(app: App, **options: Any) -> Server:
    """uvicorn over an application, not yet running."""
    # No log_config: uvicorn's own would close every handler that the process has, with the streams that they write to.
    return Server(Config(app, log_config=None, access_log=False, server_header=False, http=Guarded, ws="none",
                         **options))


class Guarded(HttpToolsProtocol):
    """One connection."""

    _heads = _bytes = 0
    _in_head, _between, _over = True, False, False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        if self._between:
            self._begin()
        heads = self._heads
        super().data_received(data)
        if self._over or not self._in_head:
            return
        self._bytes = self._bytes + len(data) if self._heads == heads else 0
        if self._bytes > HEAD_BYTES:
            self._refuse(431, f"the headers are over {HEAD_BYTES:,} bytes", "headers_too_large")

    def on_message_begin(self) -> None:
        if not self._in_head:  # the next request's bytes came with the last one's
            self._begin()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._stop()
        self._heads, self._bytes, self._in_head = self._heads + 1, 0, False
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:
            self._refuse(431, f"the headers are over {HEAD_BYTES:,} bytes", "headers_too_large")
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._over:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._between = True  # no head is waited for while this request is answered
        if not self._over:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is no request of HTTP/1.1", "not_http")

    def _begin(self) -> None:
        self._in_head, self._between = True, False
        self._wait()

    def _wait(self) -> None:
        self._timer = self.loop.call_later(HEAD_S, self._too_slow)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._refuse(408, f"the headers did not come within {HEAD_S:g} s", "timeout")

    def _refuse(self, status: int, words: str, code: str) -> None:
        """The last that this connection hears; an answer that is being told on it is broken off instead."""
        self._over = True
        self._stop()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started or self.pipeline:
                self.transport.close()
                return
        body = json.dumps(Refused(status, words, code=code).body()).encode()
        self.transport.write(f"HTTP/1.1 {status} {_WORDS[status]}\r\ncontent-type: application/json\r\n"
                             f"content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
        # Closed at once, with bytes of the client's unread, the connection would be reset and the answer lost.
        self.transport.write_eof()
        self.flow.resume_reading()
        self._timer = self.loop.call_later(LINGER_S, self.transport.close)
