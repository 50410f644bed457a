"""kopf around the controller: watches say which run to look at, a queue sees to it that one run is looked at once at a
time, and every 30 seconds everything is read anew, since a watch can die silently.

Event handlers only (no timers, no daemons, no handlers of deletion): kopf then puts neither finalizers nor annotations
on anyone's objects, so nothing hangs when the operator is gone. Decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kopf

from alignment.cluster.client.client import PATIENCE
from alignment.cluster.manifests.alignment_run import GROUP, PLURAL, VERSION
from alignment.cluster.manifests.labels import RUN_LABEL
from alignment.cluster.operator.api import Api
from alignment.cluster.operator.controller import Controller
from alignment.cluster.operator.metrics import Metrics
from alignment.cluster.operator.store import look_up

RESYNC = 30.0
"""Seconds between two full reads."""
HUNG = PATIENCE + 300.0
"""Seconds without a full read, failed or not, after which the process counts as dead: longer than one request waits for
an API server that is away."""
WORKERS = 4
_log = logging.getLogger("kubealign.operator")


class Queue:
    """Names to look at, each at most once in the queue and never by two workers at a time."""

    def __init__(self, controller: Controller, metrics: Metrics) -> None:
        self.controller, self.metrics = controller, metrics
        self.pool = ThreadPoolExecutor(WORKERS + 1, "look")  # one of them for the full reads
        self.beat = time.monotonic()
        self._begun = asyncio.Event()
        self._names: asyncio.Queue[str] = asyncio.Queue()
        self._asked: set[str] = set()
        self._busy: set[str] = set()
        self._failures: dict[str, int] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def add(self, name: str) -> None:
        """Look at it soon. Call from the event loop."""
        if name not in self._asked:
            self._asked.add(name)
            if name not in self._busy:
                self._names.put_nowait(name)

    async def work(self) -> None:
        """One worker, until cancelled; begins after the first full read, which spares each look one of its own."""
        loop = asyncio.get_running_loop()
        await self._begun.wait()
        while True:
            name = await self._names.get()
            self.metrics.waiting.set(self._names.qsize())
            self._busy.add(name)
            self._asked.discard(name)
            wake: float | None
            try:
                with self.metrics.seconds.time():
                    wake = await loop.run_in_executor(self.pool, self.controller.look, name)
                self._failures.pop(name, None)
            except Exception:  # whatever it is, the next look starts from what is there
                failures = self._failures[name] = self._failures.get(name, 0) + 1
                wake = min(2.0**failures, RESYNC)
                self.metrics.looks.labels("error").inc()
                _log.exception("%s: the look failed, %d in a row", name, failures)
            self._busy.discard(name)
            if name in self._asked:
                self._names.put_nowait(name)
            elif wake is not None and wake < RESYNC:  # else the next full read comes first
                timer = self._timers.pop(name, None)
                if timer is not None:
                    timer.cancel()
                self._timers[name] = loop.call_later(wake, self._ring, name)

    async def resync(self) -> None:
        """Full reads, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                for name in await loop.run_in_executor(self.pool, self.controller.resync):
                    self.add(name)
                self.metrics.resyncs.labels("ok").inc()
            except Exception:  # the API server may be away; what is known stays known
                self.metrics.resyncs.labels("error").inc()
                _log.exception("the full read failed")
            self.beat = time.monotonic()
            self._begun.set()
            await asyncio.sleep(RESYNC)

    def _ring(self, name: str) -> None:
        self._timers.pop(name, None)
        self.add(name)


def operator(namespace: str, *, metrics_port: int) -> tuple[kopf.OperatorRegistry, kopf.OperatorSettings]:
    """The handlers and settings for `kopf.run`, for one namespace."""
    metrics = Metrics()
    api = Api(namespace, metrics, _log.warning)
    controller = Controller(api, metrics, namespace=namespace, look_up=look_up, trouble=api.trouble)
    registry, settings = kopf.OperatorRegistry(), kopf.OperatorSettings()
    queue, running = Queue(controller, metrics), list[asyncio.Task[None]]()

    @kopf.on.startup(registry=registry)
    async def start(**_: Any) -> None:
        metrics.serve(metrics_port)
        running.extend(asyncio.create_task(part) for part in (queue.resync(), *(queue.work() for _ in range(WORKERS))))

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    @kopf.on.login(registry=registry)
    def login(**details: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_via_client(**details)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def run_event(event: kopf.RawEvent, **_: Any) -> None:
        queue.add(controller.seen.run(dict(event["object"]), event["type"] == "DELETED"))

    @kopf.on.event("ray.io", "v1", "rayjobs", labels={RUN_LABEL: kopf.PRESENT}, registry=registry)
    async def job_event(event: kopf.RawEvent, **_: Any) -> None:
        queue.add(controller.seen.job(dict(event["object"]), event["type"] == "DELETED"))

    @kopf.on.probe(registry=registry, id="seconds-since-full-read")
    def alive(**_: Any) -> int:
        since = time.monotonic() - queue.beat
        if since > HUNG:
            raise kopf.PermanentError(f"no full read for {since:.0f} s")
        return round(since)

    _set(settings)
    return registry, settings


def _set(settings: kopf.OperatorSettings) -> None:
    # The server ends a watch after five minutes, the client after six: none stays silent for longer.
    settings.watching.server_timeout, settings.watching.client_timeout = 300, 360
    settings.watching.connect_timeout = 30
    settings.watching.chunk_size = 250
    settings.watching.label_selectors["ray.io", "v1", "rayjobs"] = RUN_LABEL
    # Seeing CRDs and namespaces come and go takes rights in the whole cluster.
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.posting.enabled = False  # our events are the controller's
    settings.execution.max_workers = 2
