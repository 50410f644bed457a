"""What a spec can make slow, large or endless is done apart: in processes that are ended when they take too long.

A thread that waits for a store, or reads a spec of a thousand stages, cannot be ended; a process can. Each lane of the
queue has bounds of its own (`LANES`). A look that is overdue in one of the first two goes on in the last, which alone
tells the user. So a run that is known waits for nobody's spec or store, and a new one for at most `NEW.seconds` for
each new one before it, shared among `NEW.workers`. Decides nothing.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from alignment.cluster.operator.prepare import Prepared, Refused, prepare
from alignment.cluster.operator.reads import Reads
from alignment.cluster.operator.served import Proof
from alignment.cluster.operator.store import look_up, proofs
from alignment.cluster.operator.world import Finished, Held
from alignment.errors import ArtifactError, KubeAlignError

MEMORY = 192 * 2**20
"""Bytes that a process may take beside what it begins with."""
_PR_SET_PDEATHSIG = 1
_CONTEXT = multiprocessing.get_context("forkserver")
_log = logging.getLogger("kubealign.operator")


@dataclass(frozen=True)
class Lane:
    """Workers with one bound, in seconds, for all that one look asks of a process. `last`: what is overdue is told."""

    name: str
    workers: int
    seconds: float
    last: bool = False


KNOWN = Lane("known", 3, 2.0)
"""Runs whose spec was read before, and whose last look was in time."""
NEW = Lane("new", 4, 2.0)
SLOW = Lane("slow", 3, 30.0, last=True)
LANES = (KNOWN, NEW, SLOW)


class Overdue(Exception):
    """A look took longer than its lane allows, or more memory."""


class Apart:
    """`prepare`, `look_up` and `proofs`, bounded; one process for each thread that asks, made when it first does."""

    def __init__(self, reads: Reads) -> None:
        self.reads = reads
        self._own = threading.local()
        _CONTEXT.set_forkserver_preload([__name__, "s3fs"])

    @contextmanager
    def within(self, lane: Lane) -> Iterator[None]:
        """All that this thread asks meanwhile, together, within the lane's bounds."""
        if not hasattr(self._own, "process"):
            self._own.process = _Process(nice=LANES.index(lane) * 5)
        self._own.lane, self._own.until = lane, time.monotonic() + lane.seconds
        yield

    def prepare(self, body: Mapping[str, Any], config_map: Mapping[str, Any] | None) -> Prepared:
        """As `prepare.prepare`. Raises Overdue or, in the last lane, Refused as well for what took too long."""
        try:
            made: Prepared = self._ask(partial(prepare, self.reads, body, config_map))
        except _Broken as broken:
            raise Refused("TooSlow", f"{broken} for the spec, its ConfigMap and the sources that its digests need; "
                                     "submit the run again from where its sources lie") from broken
        return made

    def look_up(self, url: str, keys: Sequence[str]) -> dict[str, Finished | Held]:
        """As `store.look_up`. Raises Overdue or, in the last lane, ArtifactError as well for what took too long."""
        made: dict[str, Finished | Held] = self._of_store(url, partial(look_up, self.reads, url, keys))
        return made

    def proofs(self, url: str, service: str, revision: int, models: Mapping[str, str]) -> dict[str, Proof]:
        """As `store.proofs`; raises as `look_up`."""
        made: dict[str, Proof] = self._of_store(url, partial(proofs, self.reads, url, service, revision, models))
        return made

    def _of_store(self, url: str, work: Callable[[], Any]) -> Any:
        try:
            return self._ask(work)
        except _Broken as broken:
            raise ArtifactError(f"{url}: {broken} for the store, which does not answer") from broken
        except Refused as error:
            raise ArtifactError(str(error)) from error

    def _ask(self, work: Callable[[], Any]) -> Any:
        lane: Lane = self._own.lane
        try:
            return self._own.process.ask(work, self._own.until - time.monotonic())
        except _Broken as broken:
            if not lane.last:
                raise Overdue(str(broken)) from broken
            raise _Broken(f"{broken} ({lane.seconds:g} s and {MEMORY >> 20} MiB are allowed)") from broken


class _Broken(Exception):
    """The process was ended: out of time, or out of memory."""


class _Process:
    """A process that does one piece of work at a time, renewed after it was ended."""

    def __init__(self, nice: int) -> None:
        self.nice = nice
        self._begin()

    def ask(self, work: Callable[[], Any], seconds: float) -> Any:
        """What `work` returns or raises. Raises _Broken when it had to be ended."""
        try:
            if self._ended:
                self._begin()
            self._pipe.send(work)
            if not self._pipe.poll(max(0.0, seconds)):
                raise _Broken("too much time was needed")
            good, made = self._pipe.recv()
        except _Broken:
            self._end()
            raise
        except (EOFError, OSError) as error:
            self._end()
            raise _Broken("too much memory was needed, most likely,") from error
        if not good:
            raise made
        return made

    def _begin(self) -> None:
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(theirs, self.nice), daemon=True)
        self._process.start()
        theirs.close()
        self._ended = False

    def _end(self) -> None:
        self._pipe.close()
        self._process.kill()  # not waited for: one that hangs in a dead file system cannot even die
        self._ended = True


def _serve(pipe: Connection, nice: int) -> None:
    """In the process: do what is asked, one after the other, until nobody asks any more."""
    os.nice(nice)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody is left to end it when the operator is killed
    with suppress(OSError, ValueError):
        here = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (int(here.split()[1]) * 1024 + MEMORY,) * 2)
    with suppress(EOFError, ConnectionError, KeyboardInterrupt):  # the operator may be killed while it asks
        while True:
            pipe.send(_done(pipe.recv()))


def _done(work: Callable[[], Any]) -> tuple[bool, Any]:
    try:
        return True, work()
    except MemoryError:
        os._exit(1)
    except KubeAlignError as error:
        return False, error
    except Exception as error:
        _log.exception("a look failed")
        return False, Refused("InvalidRun", f"the operator cannot read this ({type(error).__name__}), which is a fault "
                                            "of KubeAlign: the operator's log says more")
