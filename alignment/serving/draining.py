"""The end of a pod: a file asks who serves in it to send clients elsewhere, and another says when nobody waits.

A pod's preStop hook makes the file that $KUBEALIGN_DRAIN_FILE names. From then on each response closes its connection,
so that a client that keeps one comes back to another pod, and /ready says 503; but whoever asks is answered, since
requests still come until all have heard that the pod goes. How many are in flight is written to FILE.in-flight twice a
second, for the hook, which ends when that has been 0 for a while. Also works under uvicorn alone.

Refuses nothing: that is `Service.drain`, at the very end.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from alignment.serving.asgi import App, Message, Receive, Scope, Send

DRAIN_FILE = "KUBEALIGN_DRAIN_FILE"
"""Variable with the place of the file; unset outside of pods."""
IN_FLIGHT = ".in-flight"
_EVERY_S = 0.5


def leaving() -> bool:
    """Whether the file is there."""
    file = os.environ.get(DRAIN_FILE)
    return file is not None and os.path.exists(file)


class Closing:
    """ASGI middleware: once `leaving`, every response ends its connection. Servers act on the header themselves."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and leaving():
                kept = [(name, value) for name, value in message.get("headers", ()) if name.lower() != b"connection"]
                message = {**message, "headers": [*kept, (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, closing if scope["type"] == "http" else send)


async def tell(in_flight: Callable[[], int]) -> None:
    """Write how many requests are in flight beside the file, once it is there. Never returns."""
    while True:
        await asyncio.sleep(_EVERY_S)
        if leaving():
            file = Path(os.environ[DRAIN_FILE] + IN_FLIGHT)
            with suppress(OSError):  # the hook waits on, and is ended with the pod
                part = file.with_name(f"{file.name}.part")
                part.write_text(f"{in_flight()}\n", encoding="ascii")
                part.replace(file)
