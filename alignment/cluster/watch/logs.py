"""What a stage prints, from its live pods; what it printed before lies in the storage (`storage.stored`).

`Follower` shows a container's output as it comes and takes it up again where a connection broke, without a line twice.
"""

from __future__ import annotations

import contextlib
import copy
import re
import threading
from collections.abc import Callable

from alignment.cluster.client.client import Client
from alignment.cluster.client.refusals import ClusterError
from alignment.cluster.watch.wait import job_pod

_RAYS_OWN = re.compile(r"\t(INFO|SUCC) (cli|sdk|job_manager)\.py:\d+ -- ")
"""What `ray job submit` and `ray job logs` say of themselves."""
_RAYS_END = re.compile(r"\tERR cli\.py:\d+ -- ")
"""From here they repeat the end of the output as the job's message."""
SUBMITTER = "ray-job-submitter"
"""KubeRay's container that follows the driver's output."""


class Follower:
    """Shows the output of a RayJob's driver in a thread of its own, until `end` is called."""

    def __init__(self, client: Client, job: str, write: Callable[[str], None]) -> None:
        """Start; `write` gets each line without its timestamp."""
        self.client, self.job, self.write = copy.copy(client), job, write
        self.client.say = lambda text: None  # the waiting thread says it once
        self.tail: list[str] = []
        """The last lines, for what a status does not say."""
        self._last, self._over = "", False
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name=f"logs of {job}")
        self._thread.start()

    def end(self) -> list[str]:
        """Show what is left, end the thread, and return the last lines."""
        with self._lock:
            self._stop.set()
        # The pod may be gone by now; its log is in the storage.
        with contextlib.suppress(ClusterError):
            pod = job_pod(self.client, self.job)
            if pod is not None:
                self._read(pod, follow=False)
        return self.tail

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                pod = job_pod(self.client, self.job)
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
        for line in self.client.log_lines(pod, SUBMITTER, follow=follow, since=self._last or None):
            stamp, _, text = line.partition(" ")
            if stamp <= resumed_from:
                continue
            with self._lock:
                if follow and self._stop.is_set():
                    return
                self._last = stamp
                self.tail = [*self.tail[-199:], text]
                self._over = self._over or bool(_RAYS_END.search(text))
                if not self._over and not _RAYS_OWN.search(text):
                    self.write(text)
