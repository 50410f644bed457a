"""A lease on one unfinished artifact: two writers at once, one does the work.

The lease is a small JSON file beside the work in progress, renewed by a thread. It is taken over when its
holder stopped renewing (a killed pod), or at once when the holder was a process of this machine that is gone.
A lease that was lost is noticed at `check()`, which the store calls before it publishes. It is a guard against
double work, not a lock that correctness rests on: publishing is atomic, and stages are deterministic.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, NamedTuple

import fsspec

from alignment import progress
from alignment.artifacts.faults import explained
from alignment.errors import ArtifactError
from alignment.interrupt import before_end

_LONGEST = 200
"""Characters of what a lease says of its holder that are repeated."""


class MadeElsewhere(ArtifactError):
    """Somebody else holds the lease and was seen alive."""


def _boot_id() -> str:
    """Tells machines (and reboots) apart without naming them; pods of one node have their own pid space."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        return boot + os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()


def _start_time(pid: int) -> str:
    """When a process began, so that a reused pid is not taken for the holder; "" if there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


class Holder(NamedTuple):
    """Who has a lease, as far as it can be seen from here."""

    words: str
    """Who that is and since when, as the subject of a sentence."""
    since: float
    """When it was taken, in seconds since 1970 by the holder's clock."""
    gone: bool
    """A process of this machine that is no more."""
    silent: float
    """Seconds since its last sign of life; clocks may differ."""


class Lease:
    """Context manager: waits for the lease on `path`, holds it, gives it back.

    Args:
        fs, path: where the lease file is.
        finished: asked while waiting; when it says True the wait ends without the lease (`held` is False).
        url: of the lease file, for errors.
        by: who this is, for those who wait.
        gives_way: do not wait for a holder that is seen alive, by a beat that changes: raise MadeElsewhere.
        ttl: seconds without renewal after which a lease is anyone's.
        waiting: called with a sentence about the holder when another one holds it, and every
            progress.PLAIN_EVERY seconds again.
    """

    def __init__(
        self,
        fs: fsspec.AbstractFileSystem,
        path: str,
        finished: Callable[[], bool],
        *,
        url: str,
        by: str = "",
        gives_way: bool = False,
        ttl: float = 60.0,
        poll: float = 0.5,
        waiting: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.fs, self.path, self.finished, self.url = fs, path, finished, url
        self.by, self.gives_way = by, gives_way
        self.ttl, self.poll, self.waiting = ttl, poll, waiting
        self.token = uuid.uuid4().hex
        self.held = False
        self.since = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._interrupted = ExitStack()

    def __enter__(self) -> Lease:
        self._interrupted.enter_context(before_end(self._give_back))
        try:
            self.held = self._wait()
        except BaseException:
            self._give_back()  # it may have been taken an instant ago
            self._interrupted.close()
            raise
        if self.held:
            self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
            self._thread.start()
        return self

    def _wait(self) -> bool:
        """Whether the lease was taken; False when the work was finished meanwhile."""
        began = time.monotonic()
        said = -math.inf
        seen: tuple[str, float] | None = None
        while not self.finished():
            holder = self._read()
            if holder is None:
                taken = self._create()
            else:
                # Age is measured by this machine's clock from the first sight of a beat: clocks differ.
                beat = f"{holder.get('token')}/{holder.get('beat')}"
                if seen is None or seen[0] != beat:
                    if self.gives_way and seen is not None:
                        raise MadeElsewhere(f"{_words(holder)}, makes it")
                    seen = (beat, time.monotonic())
                if self._gone(holder) or time.monotonic() - seen[1] > self.ttl:
                    taken = self._take_over()
                else:
                    taken = False
                    now = time.monotonic()
                    if now - said >= progress.PLAIN_EVERY:
                        so_far = f" ({now - began:.0f} s so far)" if math.isfinite(said) else ""
                        goal = "a sign that it is alive" if self.gives_way else "its result"
                        self.waiting(f"{_words(holder)}, works on it; waiting for {goal}{so_far}")
                        said = now
            if taken:
                return True
            time.sleep(self.poll)
        return False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        if self.held:
            self._give_back()
            self.held = False
        self._interrupted.close()

    def _give_back(self) -> None:
        # A store that fails now must not hide what ended the block; the lease then lapses by itself.
        with suppress(ArtifactError, FileNotFoundError):
            holder = self._read()
            if holder is not None and holder.get("token") == self.token:
                with explained(self.url, "written"):
                    self.fs.rm_file(self.path)

    def holder(self) -> Holder | None:
        """Who has it now; None: nobody."""
        found = self._read()
        if not found:
            return None
        beat, began = found.get("beat"), found.get("began")
        return Holder(_words(found), began if isinstance(began, int | float) else 0.0, self._gone(found),
                      time.time() - beat if isinstance(beat, int | float) else 0.0)

    def check(self) -> None:
        """Raises ArtifactError when the lease was taken over (this process slept longer than the ttl)."""
        holder = self._read()
        if holder is None or holder.get("token") != self.token:
            raise ArtifactError("the lease was lost to another writer, so nothing is published", where=self.url,
                                hint="this process was stopped for longer than the lease lasts; run it again")

    def _body(self) -> bytes:
        return json.dumps({
            "token": self.token, "beat": time.time(), "by": self.by, "pid": os.getpid(), "boot": _boot_id(),
            "start": _start_time(os.getpid()), "began": self.since,
            "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since)),
        }).encode()

    def _create(self) -> bool:
        """Of several that create the file at once the file system lets one (O_EXCL; S3: If-None-Match)."""
        self.since = time.time()
        try:
            with explained(self.url, "written"):
                if "file" in self.fs.protocol:
                    self.fs.makedirs(self.path.rpartition("/")[0], exist_ok=True)
                    # fsspec's mode="create" looks first and writes then: two at once would both have it.
                    with open(self.path, "xb") as file:
                        file.write(self._body())
                else:
                    self.fs.pipe_file(self.path, self._body(), mode="create")
        except FileExistsError:
            return False
        return True

    def _take_over(self) -> bool:
        """Write our token over a dead one's, wait, and see whose stayed: of two that try, the last one wins."""
        self.since = time.time()
        self._write()
        time.sleep(max(0.2, self.poll))
        holder = self._read()
        return holder is not None and holder.get("token") == self.token

    def _write(self) -> None:
        with explained(self.url, "written"):
            if "file" in self.fs.protocol:  # rename is atomic, so a reader never sees half a lease
                temporary = f"{self.path}.{self.token}"
                self.fs.pipe_file(temporary, self._body())
                os.replace(temporary, self.path)
            else:
                self.fs.pipe_file(self.path, self._body())

    def _read(self) -> dict[str, Any] | None:
        try:
            with explained(self.url, "read"):
                self.fs.invalidate_cache()
                body = self.fs.cat_file(self.path)
            holder = json.loads(body)
        except FileNotFoundError:
            return None
        except ValueError:  # being created at this moment
            return {}
        return holder if isinstance(holder, dict) else {}

    def _gone(self, holder: dict[str, Any]) -> bool:
        if holder.get("boot") != _boot_id() or not isinstance(holder.get("pid"), int):
            return False
        return _start_time(holder["pid"]) != holder.get("start")

    def _renew(self) -> None:
        while not self._stop.wait(self.ttl / 6):
            try:
                holder = self._read()
                if holder is None or holder.get("token") != self.token:
                    return  # lost; check() will say so
                self._write()
            except (ArtifactError, FileNotFoundError):
                continue  # a storage hiccup: the next beat tries again, well inside the ttl


def _words(holder: dict[str, Any]) -> str:
    """One short line, whatever the file has."""
    who = holder.get("by") or f"another process (pid {holder.get('pid')})"
    return " ".join(f"{who}, since {holder.get('since')}".split())[:_LONGEST]
