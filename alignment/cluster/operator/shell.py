"""kopf around the controller: watches say which run to look at, a queue sees to it that one run is looked at once at a
time, and every 30 seconds everything is read anew, since a watch can die silently. Those whose spec or store is slow
have workers of their own (`apart.LANES`), so that nobody waits for them.

Event handlers only (no timers, no daemons, no handlers of deletion): kopf then puts neither finalizers nor annotations
on anyone's objects, so nothing hangs when the operator is gone. Decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import kopf

from alignment.cluster.client.client import PATIENCE
from alignment.cluster.manifests.alignment_run import GROUP, PLURAL, VERSION
from alignment.cluster.manifests.labels import COMPONENT_LABEL, RUN_LABEL
from alignment.cluster.operator.apart import KNOWN, LANES, NEW, SLOW, Apart, Lane, Overdue
from alignment.cluster.operator.api import Api
from alignment.cluster.operator.controller import Controller
from alignment.cluster.operator.metrics import Metrics
from alignment.cluster.operator.reads import Reads

RESYNC = 30.0
"""Seconds between two full reads."""
HUNG = PATIENCE + 300.0
"""Seconds without a full read, failed or not, or of one look, after which the process counts as dead: longer than one
request waits for an API server that is away."""
Within = Callable[[Lane], AbstractContextManager[None]]
_log = logging.getLogger("kubealign.operator")


class Queue:
    """Names to look at, each at most once in the queue and never by two workers at a time; three lanes of workers."""

    def __init__(self, controller: Controller, metrics: Metrics, within: Within) -> None:
        """
        Args:
            within: bounds, by the lane, what a look in this thread may ask for; `Apart.within`.
        """
        self.controller, self.metrics, self.within = controller, metrics, within
        self.beat = time.monotonic()
        self.looks: dict[str, float] = {}
        """What is looked at -> since when."""
        self._pools = {lane: ThreadPoolExecutor(lane.workers, lane.name) for lane in LANES}
        self._reader = ThreadPoolExecutor(1, "full-read")
        self._names: dict[Lane, asyncio.Queue[str]] = {lane: asyncio.Queue() for lane in LANES}
        self._begun = asyncio.Event()
        self._asked: set[str] = set()
        self._slow: set[str] = set()
        self._failures: dict[str, int] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin full reads and looks. Call from the event loop."""
        parts = [self._resync(), *(self._work(lane) for lane in LANES for _ in range(lane.workers))]
        self._tasks = [asyncio.create_task(part) for part in parts]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def add(self, name: str) -> None:
        """Look at it soon. Call from the event loop."""
        if name not in self._asked:
            self._asked.add(name)
            if name not in self.looks:
                self._put(name)

    def wrong(self) -> str | None:
        """What of full reads and workers has stopped, in words; None while all goes on."""
        now = time.monotonic()
        if now > self.beat + HUNG:
            return f"no full read for {now - self.beat:.0f} s"
        if any(task.done() for task in self._tasks):
            return "a worker has ended"
        longest = min(self.looks.items(), key=lambda look: look[1], default=None)
        if longest is not None and now > longest[1] + HUNG:
            return f"a look at {longest[0]} has taken {now - longest[1]:.0f} s"
        return None

    def _put(self, name: str) -> None:
        lane = SLOW if name in self._slow else KNOWN if self.controller.knows(name) else NEW
        self._names[lane].put_nowait(name)

    async def _work(self, lane: Lane) -> None:
        """One worker, until cancelled; begins after the first full read, which spares each look one of its own."""
        loop, names = asyncio.get_running_loop(), self._names[lane]
        await self._begun.wait()
        while True:
            name = await names.get()
            self.metrics.waiting.labels(lane.name).set(names.qsize())
            self.looks[name] = began = time.monotonic()
            self._asked.discard(name)
            wake: float | None
            try:
                with self.metrics.seconds.time():
                    wake = await loop.run_in_executor(self._pools[lane], self._look, lane, name)
                self._failures.pop(name, None)
                if time.monotonic() < began + KNOWN.seconds:
                    self._slow.discard(name)
            except Overdue as overdue:
                self._slow.add(name)
                self._asked.add(name)  # at once, in the last lane
                wake = None
                self.metrics.looks.labels("overdue").inc()
                _log.warning("%s: %s; it goes on in the lane of slow ones", name, overdue)
            except Exception:  # whatever it is, the next look starts from what is there
                failures = self._failures[name] = self._failures.get(name, 0) + 1
                wake = min(2.0**failures, RESYNC)
                self.metrics.looks.labels("error").inc()
                _log.exception("%s: the look failed, %d in a row", name, failures)
            del self.looks[name]
            if name in self._asked:
                self._put(name)
            elif wake is not None and wake < RESYNC:  # else the next full read comes first
                timer = self._timers.pop(name, None)
                if timer is not None:
                    timer.cancel()
                self._timers[name] = loop.call_later(wake, self._ring, name)

    def _look(self, lane: Lane, name: str) -> float | None:
        with self.within(lane):
            return self.controller.look(name)

    async def _resync(self) -> None:
        """Full reads, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                names = await loop.run_in_executor(self._reader, self.controller.resync)
                self._slow.intersection_update(names)
                for name in names:
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


def operator(namespace: str, reads: Reads, *,
             metrics_port: int) -> tuple[kopf.OperatorRegistry, kopf.OperatorSettings]:
    """The handlers and settings for `kopf.run`, for one namespace."""
    metrics, apart = Metrics(), Apart(reads)
    api = Api(namespace, metrics, _log.warning)
    controller = Controller(api, metrics, namespace=namespace, prepare=apart.prepare, look_up=apart.look_up,
                            proofs=apart.proofs, trouble=api.trouble)
    registry, settings = kopf.OperatorRegistry(), kopf.OperatorSettings()
    queue = Queue(controller, metrics, apart.within)

    @kopf.on.startup(registry=registry)
    async def start(**_: Any) -> None:
        metrics.serve(metrics_port)
        queue.start()

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        await queue.stop()

    @kopf.on.login(registry=registry)
    def login(**details: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_via_client(**details)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def run_event(event: kopf.RawEvent, **_: Any) -> None:
        queue.add(controller.seen.run(dict(event["object"]), event["type"] == "DELETED"))

    @kopf.on.event("ray.io", "v1", "rayjobs", labels={RUN_LABEL: kopf.PRESENT}, registry=registry)
    async def job_event(event: kopf.RawEvent, **_: Any) -> None:
        queue.add(controller.seen.job(dict(event["object"]), event["type"] == "DELETED"))

    @kopf.on.event("ray.io", "v1", "rayservices", labels={RUN_LABEL: kopf.PRESENT}, registry=registry)
    async def service_event(event: kopf.RawEvent, **_: Any) -> None:
        queue.add(controller.seen.service(dict(event["object"]), event["type"] == "DELETED"))

    @kopf.on.event("", "v1", "pods", labels={RUN_LABEL: kopf.PRESENT, COMPONENT_LABEL: "ray"}, registry=registry)
    async def pod_event(event: kopf.RawEvent, **_: Any) -> None:
        run = controller.seen.pod(dict(event["object"]))
        if run is not None:
            queue.add(run)

    @kopf.on.probe(registry=registry, id="seconds-since-full-read")
    async def alive(**_: Any) -> int:
        wrong = queue.wrong()
        if wrong is not None:
            raise kopf.PermanentError(wrong)
        return round(time.monotonic() - queue.beat)

    _set(settings)
    return registry, settings


def _set(settings: kopf.OperatorSettings) -> None:
    # The server ends a watch after five minutes, the client after six: none stays silent for longer.
    settings.watching.server_timeout, settings.watching.client_timeout = 300, 360
    settings.watching.connect_timeout = 30
    settings.watching.chunk_size = 250
    settings.watching.label_selectors["ray.io", "v1", "rayjobs"] = RUN_LABEL
    settings.watching.label_selectors["ray.io", "v1", "rayservices"] = RUN_LABEL
    settings.watching.label_selectors["", "v1", "pods"] = f"{RUN_LABEL},{COMPONENT_LABEL}=ray"
    # Seeing CRDs and namespaces come and go takes rights in the whole cluster.
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.posting.enabled = False  # our events are the controller's
    settings.execution.max_workers = 2
