"""The queue before the controller: nobody is looked at twice at a time, nothing that is said is lost, failures wait."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from alignment.cluster.client.refusals import cluster_error
from alignment.cluster.operator import shell
from alignment.cluster.operator.apart import NEW, Lane
from alignment.cluster.operator.metrics import Metrics
from alignment.cluster.operator.shell import Queue
from tests.cluster.operator_world import Store, World, operator


class Watched:
    """A controller's two entry points, recorded: what a look does is the test's to say."""

    def __init__(self, look: Callable[[str], float | None]) -> None:
        self.does, self.lock = look, threading.Lock()
        self.looks: list[str] = []
        self.at_work: list[str] = []
        self.known: set[str] = set()
        self.together = 0

    def look(self, name: str) -> float | None:
        with self.lock:
            assert name not in self.at_work, "two looks at one run at a time"
            self.looks.append(name)
            self.at_work.append(name)
            self.together = max(self.together, len(self.at_work))
        try:
            return self.does(name)
        finally:
            with self.lock:
                self.at_work.remove(name)

    def knows(self, name: str) -> bool:
        return name in self.known

    def resync(self) -> list[str]:
        return []


@contextmanager
def unbounded(lane: Lane) -> Iterator[None]:
    yield


def served(watched: Watched, script: Callable[[Queue], None], seconds: float) -> Metrics:
    """Run a queue with its workers for a while; `script` is called once, in the loop."""
    metrics = Metrics()

    async def go() -> None:
        queue = Queue(watched, metrics, unbounded)  # type: ignore[arg-type]
        queue.start()
        script(queue)
        await asyncio.sleep(seconds)
        await queue.stop()

    asyncio.run(go())
    return metrics


def test_one_run_at_a_time_and_many_runs_at_once() -> None:
    watched = Watched(lambda name: time.sleep(0.1))
    served(watched, lambda queue: [queue.add(name) for name in "aabbccddaabb"] and None, 0.6)
    assert sorted(watched.looks) == ["a", "b", "c", "d"]
    assert watched.together == NEW.workers


def test_news_in_the_middle_of_a_look_lead_to_one_more() -> None:
    watched = Watched(lambda name: time.sleep(0.2))

    def script(queue: Queue) -> None:
        queue.add("a")
        for after in (0.05, 0.1, 0.15):
            asyncio.get_running_loop().call_later(after, queue.add, "a")

    served(watched, script, 0.7)
    assert watched.looks == ["a", "a"]


def test_a_look_that_asks_for_another_gets_it_and_only_once() -> None:
    answers = iter([0.1, 0.1, None])
    watched = Watched(lambda name: next(answers))
    served(watched, lambda queue: queue.add("a"), 0.6)
    assert watched.looks == ["a", "a", "a"]


def test_a_failed_look_is_repeated_after_a_pause(caplog: pytest.LogCaptureFixture) -> None:
    def fail(name: str) -> None:
        raise cluster_error("the API server does not answer", 0)

    watched = Watched(fail)
    metrics = served(watched, lambda queue: queue.add("a"), 2.5)
    assert watched.looks == ["a", "a"]  # at once, and after two seconds
    assert metrics.registry.get_sample_value("kubealign_reconciles_total", {"outcome": "error"}) == 2
    assert "the look failed, 2 in a row" in caplog.text


def test_a_full_read_that_hangs_stops_the_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "RESYNC", 0.05)
    metrics, world = Metrics(), World(Store())
    world.kuberay = False
    controller = operator(world)

    async def go() -> tuple[float, float]:
        queue = Queue(controller, metrics, unbounded)
        queue.start()
        await asyncio.sleep(0.3)
        alive = queue.beat
        world.runs = lambda: time.sleep(0.6) or []  # type: ignore[method-assign]
        await asyncio.sleep(0.2)
        stuck = queue.beat
        await asyncio.sleep(0.2)
        assert queue.beat == stuck
        assert queue.wrong() is None
        monkeypatch.setattr(shell, "HUNG", 0.1)
        assert "no full read for" in (queue.wrong() or "")
        await queue.stop()
        return alive, stuck

    began = time.monotonic()
    alive, _ = asyncio.run(go())
    assert alive > began
    assert (metrics.registry.get_sample_value("kubealign_resyncs_total", {"outcome": "ok"}) or 0) >= 2


def test_the_operator_needs_a_namespace() -> None:
    done = subprocess.run([sys.executable, "-m", "alignment.cluster.operator"], capture_output=True, text=True,
                          env={}, check=False)
    assert done.returncode == 2
    assert "POD_NAMESPACE" in done.stderr
