"""All ranks of a stage know of each other: that they are there, that they do the same, and who has fallen silent.

Through the key-value store that the process group was made with, which needs no other rank to answer. Without a process
group there is one rank, and nothing to do. Does not start or stop workers.
"""

from __future__ import annotations

import importlib.metadata
import json
import pickle
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from alignment.errors import KubeAlignError, StageError

PREFLIGHT = 300.0
"""Seconds that a rank waits for the others before the first step: cold pods import for a minute or two."""
EARLIER = 5.0
"""Seconds in which another rank says that it was the first to fail."""
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed")
_SILENT = re.compile(r"tim(ed|e) ?out", re.IGNORECASE)
_work = ""
"""Parts what a group does first from what it does next."""


class RankSilent(StageError):
    """A worker did not answer in time. It may only have been slow or lost, so it is worth another try."""

    transient = True


def begin(work: str) -> None:
    """Say where this rank is, before anything that may take long.

    Args:
        work: a name for what all ranks do now.
    """
    global _work
    _work = work
    if in_group():
        _put("host", socket.gethostname())


def meet(digest: str, timeout: float = PREFLIGHT) -> None:
    """Wait until every rank is here, with the same libraries and the same stage, and a sum over all of them arrives.

    Args:
        digest: of what is to be made.
        timeout: seconds, for all of it.

    Raises:
        RankSilent: a rank is not here, or its part of the sum is not; it is named.
        StageError: a rank would do something else; it is named, with what differs.
    """
    if not in_group():
        return
    rank, world, until = dist.get_rank(), dist.get_world_size(), time.monotonic() + timeout
    _put("here", {"host": socket.gethostname(), "world": world, "digest": digest, **_versions()})
    _compare(_wait("here", until, timeout, "did not report"), "the workers are not alike")
    on_gpu = dist.get_backend() == "nccl"
    ones = torch.ones(1, device=torch.device("cuda", torch.cuda.current_device()) if on_gpu else "cpu")
    _put("summing", rank)
    work = dist.all_reduce(ones, async_op=True)
    while not work.is_completed():
        if time.monotonic() > until:
            _wait("summing", 0, timeout, "did not take part in the first sum over all workers")
            raise RankSilent("the first sum over all workers did not arrive", found=f"{timeout:g} s",
                             expected=f"{world} workers that reach each other",
                             hint="look at the network between their machines (NCCL_SOCKET_IFNAME, firewalls)")
        time.sleep(0.01)
    work.wait()
    if int(ones.item()) != world:
        raise StageError("the process group is not what was asked for", found=f"a sum of {int(ones.item())} ones",
                         expected=f"{world}")


def agree(what: str, value: dict[str, Any]) -> None:
    """Raise StageError, naming rank and keys, where a rank has another value. To be called by all ranks."""
    if in_group():
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, {"host": socket.gethostname(), **value})
        _compare(values, f"the workers differ in {what}")


class Disk(NamedTuple):
    """The disk of this rank's work folder.

    Attributes:
        number, of: of this one, among how many that the ranks have.
        leads: whether this rank is the first on it, who does for all on it what is done once.
    """

    number: int
    of: int
    leads: bool


def once(name: str, disk: Disk, make: Callable[[], None]) -> None:
    """Call `make` on the rank that leads its disk, while the others on it wait.

    Not in a collective, whose time-out would count: a large set of rows takes long.

    Raises:
        KubeAlignError: what `make` raised, on all ranks of the disk.
    """
    if not in_group():
        make()
        return
    key = f"{name}-of-disk-{disk.number}"
    if disk.leads:
        try:
            make()
        except KubeAlignError as error:
            _store().set(key, pickle.dumps(error))
            raise
        _store().set(key, pickle.dumps(None))
        return
    while not _store().check([key]):
        time.sleep(0.05)
    found = pickle.loads(_store().get(key))
    if found is not None:
        raise found


def first_to_fail(step: int, error: StageError) -> StageError:
    """The error of the rank that failed at the earliest step; this rank's own, if that is it.

    A loss that is not finite on one rank is soon so on all, by way of the gradients: only the first has the rows.
    """
    if not in_group():
        return error
    _put("failed", {"step": step, "error": pickle.dumps(error).hex()})
    until = time.monotonic() + EARLIER
    found: dict[int, Any] = {}
    while time.monotonic() < until and len(found) < dist.get_world_size():
        found = _seen("failed")
        if any(said["step"] < step for said in found.values()):
            break
        time.sleep(0.05)
    first = min(found.items(), key=lambda item: (item[1]["step"], item[0]))[1]
    earliest: StageError = pickle.loads(bytes.fromhex(first["error"]))
    return earliest


def pulse(step: int) -> None:
    """Say at which step this rank is, for `naming_the_silent` on the others."""
    if in_group():
        _put("pulse", {"host": socket.gethostname(), "step": step, "time": time.time()})


def soon(what: str, step: int, asked: bool) -> int | None:
    """The step after which all ranks do what one of them was asked for; None: none was. To be called by all ranks after
    each step, with one name for all and another each time that it was done.

    Without a collective: who is asked after a step names the next, whose gradients no rank has before all took part.
    """
    if not in_group():
        return step if asked else None
    store = _store()
    if not store.check([what]):
        if not asked:
            return None
        store.set(what, str(step + 1))
    return int(store.get(what))


@contextmanager
def naming_the_silent() -> Iterator[None]:
    """A collective that timed out becomes an error that names the rank which it waited for."""
    try:
        yield
    except RuntimeError as error:
        if not in_group() or not _SILENT.search(str(error)):
            raise
        pulses = _seen("pulse")
        world, own = dist.get_world_size(), dist.get_rank()
        others = sorted((pulses.get(rank, {}).get("time", 0.0), rank) for rank in range(world) if rank != own)
        rank = others[0][1]
        last = pulses.get(rank, {"host": "unknown", "step": "none"})
        raise RankSilent(
            "a worker did not answer within the time-out of the process group",
            found=f"rank {rank} on {last['host']}, last heard of at the begin of step {last['step']}",
            where=f"rank {own} on {socket.gethostname()}", expected="an answer; it hangs, or is cut off",
        ) from error


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _compare(said: list[dict[str, Any]], problem: str) -> None:
    first = said[0]
    for rank, other in enumerate(said):
        keys = [key for key in {**first, **other} if key != "host" and first.get(key) != other.get(key)]
        if keys:
            raise StageError(
                problem, where=f"rank {rank} on {other['host']}",
                found=", ".join(f"{key} {other.get(key)}" for key in keys),
                expected=", ".join(f"{key} {first.get(key)}" for key in keys) + f", as rank 0 on {first['host']} has",
                hint="one image and one environment for all workers")


def _wait(name: str, until: float, timeout: float, what: str) -> list[Any]:
    """What every rank has put under a name, by rank."""
    while True:
        found, world = _seen(name), dist.get_world_size()
        if len(found) == world:
            return [found[rank] for rank in range(world)]
        if time.monotonic() > until:
            hosts = _seen("host")
            missing = [f"rank {rank} on {hosts.get(rank, 'an unknown host')}" for rank in range(world)
                       if rank not in found]
            raise RankSilent(f"a worker {what} within {timeout:g} s", found=", ".join(missing),
                             expected=f"all {world} workers", hint="look at its log, and at the network to its machine")
        time.sleep(0.02)


def _put(name: str, value: Any) -> None:
    _store().set(f"{name}/{dist.get_rank()}", json.dumps(value))


def _seen(name: str) -> dict[int, Any]:
    store, found = _store(), {}
    for rank in range(dist.get_world_size()):
        if store.check([f"{name}/{rank}"]):
            found[rank] = json.loads(store.get(f"{name}/{rank}"))
    return found


def _store() -> Any:
    return PrefixStore(f"kubealign/{_work}", _get_default_store())


def in_group() -> bool:
    """Whether there are other ranks to ask, or may be."""
    return dist.is_available() and dist.is_initialized()
