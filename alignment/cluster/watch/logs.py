"""What a stage prints, from its live head pod; what it printed before lies in the storage (`storage.stored`).

`Follower` shows a stage's output as it comes and takes it up again where a connection broke, without a line twice.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable

from alignment.cluster.client.client import Client
from alignment.cluster.client.refusals import ClusterError
from alignment.cluster.watch.wait import head_pod
from alignment.pipeline.echo import MARK

HEAD = "ray-head"
"""The container whose log has the stage's lines among Ray's own."""


class Follower:
    """Shows the output of a RayJob's stage in a thread of its own, until `end` is called."""

    def __init__(self, client: Client, job: str, write: Callable[[str], None]) -> None:
        """Start; `write` gets each line of the stage, without its timestamp and mark."""
        self.client, self.job, self.write = copy.copy(client), job, write
        self.client.say = lambda text: None  # the waiting thread says it once
        self._last = ""
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name=f"logs of {job}")
        self._thread.start()

    def end(self) -> None:
        """Show what is left, and end the thread."""
        with self._lock:
            self._stop.set()
        # The pod goes with its job; the whole log is in the storage.
        with contextlib.suppress(ClusterError):
            pod = head_pod(self.client, self.job)
            if pod is not None:
                self._read(pod, follow=False)

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                pod = head_pod(self.client, self.job)
                if pod is not None:
                    self._read(pod, follow=True)
            except ClusterError as error:
                # 400: the container has not started. 404: the pod went between two looks.
                if error.status not in (0, 400, 404):
                    self.write(f"(its output cannot be read: {error.problem})")
                    return
            self._stop.wait(2.0)

    def _read(self, pod: str, *, follow: bool) -> None:
        resumed_from = self._last
        for line in self.client.log_lines(pod, HEAD, follow=follow, since=self._last or None):
            stamp, _, text = line.partition(" ")
            if stamp <= resumed_from:
                continue
            with self._lock:
                if follow and self._stop.is_set():
                    return
                self._last = stamp
                if text.startswith(MARK):
                    self.write(text.removeprefix(MARK))
