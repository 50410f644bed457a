"""`kubealign serve`: from what was asked to a server that runs until it is ended.

The port is taken before any weights are read. After SIGTERM no request is taken any more (503, /ready says so) and
answers are ended, as long as KUBEALIGN_GRACE_S lasts; Ctrl-C does not wait. uvicorn runs in a thread of its own, since
the main thread hears of signals (interrupt.py).
"""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from alignment import interrupt
from alignment.errors import ConfigError, ModelError
from alignment.progress import console
from alignment.serving.app import build
from alignment.serving.hosts import LOCAL, on_loopback
from alignment.serving.service import Service
from alignment.serving.wire import server_of


def listening(host: str, port: int) -> socket.socket:
    """A socket that takes calls. Raises ConfigError where the address is taken, or not this machine's."""
    try:
        [family, kind, number, _, address], *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM,
                                                                    flags=socket.AI_PASSIVE)
        made = socket.socket(family, kind, number)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
        except BaseException:
            made.close()
            raise
        return made
    except OSError as error:
        hint = "--port 0 takes a free one" if error.errno == errno.EADDRINUSE else None
        raise ConfigError(f"the server cannot listen there: {error.strerror}", where="--host, --port",
                          found=f"{host}:{port}", hint=hint) from error


def serve(service: Service, listener: socket.socket, host: str) -> None:
    """Serve until the process is ended, or no model could be proved.

    Raises:
        ModelError: none of the models is what was recorded.
    """
    hosts = [host] if on_loopback(host) and host not in LOCAL else [] if on_loopback(host) else None
    app = build(service, hosts=hosts)
    server = server_of(app, log_level="warning", lifespan="on", timeout_keep_alive=75, timeout_graceful_shutdown=5)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(server.serve([listener]))
        except BaseException as error:
            failed.append(error)

    _many_connections()
    thread = threading.Thread(target=run, name="serves", daemon=True)
    interrupt.saving(service.drain)
    thread.start()
    _announce(service, listener)
    told = False
    while thread.is_alive():
        states = {model.state for model in service.models.values()}
        if not told and states == {"failed"}:
            server.should_exit = True
            thread.join()
            raise _none(service)
        if not told and not states & {"waiting", "proving"}:
            told = True
            ready = [model.name for model in service.models.values() if model.state == "ready"]
            console.print(f"ready: {', '.join(ready)}" if service.ready else
                          f"! NOT ready as a whole; {', '.join(ready)} are served", markup=False)
        thread.join(0.2)
    interrupt.saving(None)
    if failed:
        raise failed[0]


def _none(service: Service) -> ModelError:
    first = next(iter(service.models.values()))
    others = len(service.models) - 1
    return ModelError("no model is served, since none is what was recorded of it" if first.proof.get("rows") else
                      "no model can be served", where=f"model {first.name}, {first.artifact.key}",
                      found=first.trouble, hint=f"{others} more above" if others else None)


def _announce(service: Service, listener: socket.socket) -> None:
    address, port = listener.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    names: Sequence[str] = list(service.models)
    console.print(f"http://{shown}:{port}/v1 will serve {', '.join(names)}"
                  + ("" if service.key is None else "; it asks for the API key"), markup=False)


def _many_connections() -> None:
    """As many open files as this user may have: each client is one, and shells give 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else 1 << 20
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(most, 1 << 16)), hard))


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def wait_until_proved(service: Service, seconds: float) -> bool:
    """For whoever runs the application elsewhere: whether all models were proved within that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if all(model.state in ("ready", "failed") for model in service.models.values()):
            return service.ready
        time.sleep(0.05)
    return False
