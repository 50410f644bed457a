"""Answers over HTTP that are told as they are made, and whoever waits for one: both end when the client is gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from alignment.serving.asgi import Message, Receive, Scope, Send
from alignment.serving.refused import Refused
from alignment.serving.spoken import Reply


class EventStream(Response):
    """Server-sent events, the last `[DONE]`; what makes them is ended when the client is gone, or time is over.

    Args:
        ended: called once, with whether the client went away.
    """

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncIterator[dict[str, Any]], seconds: float, ended: Callable[[bool], None]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._chunks, self._seconds, self._ended = chunks, seconds, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = True
        telling = asyncio.create_task(self._tell(send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({telling, leaving}, return_when=asyncio.FIRST_COMPLETED)
            gone = not telling.done()
            if telling.done():
                with suppress(OSError):  # a client that went away in the last moment
                    telling.result()
        finally:
            for task in (telling, leaving):
                task.cancel()
            await asyncio.gather(telling, leaving, return_exceptions=True)
            self._ended(gone)

    async def _tell(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._chunks) as chunks:  # type: ignore[type-var]
            try:
                async with asyncio.timeout(self._seconds):
                    async for chunk in chunks:
                        await self._event(send, chunk)
            except Refused as refused:
                await self._event(send, refused.body())
            except TimeoutError:
                await self._event(send, Refused(504, "the answer took too long", code="timeout").body())
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    async def _event(self, send: Send, value: dict[str, Any]) -> None:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        await send({"type": "http.response.body", "body": b"data: " + text.encode("utf-8", "replace") + b"\n\n",
                    "more_body": True})


async def unless_gone(request: Request, work: Awaitable[Reply]) -> Reply:
    """What `work` gives, which is cancelled when the client is gone before. Raises ClientDisconnect then."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()
