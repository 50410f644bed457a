"""Checkpoints that outlive their machine: complete or not there, pushed to the store, found again by every rank.

Ranks in different pods share no disk: each writes its own random state, so files of a checkpoint are pushed from every
disk, and it counts when all have been. Which ranks share one is found out by looking. Pushing goes on beside the
training, one checkpoint at a time; what the trainer has deleted goes from the store too. Does not decide when to save:
the trainer does.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from transformers import TrainerCallback

from alignment.artifacts import StoreUnreachable
from alignment.config import TrainBase
from alignment.config.sharding import zero_stage
from alignment.context import StageContext
from alignment.errors import ArtifactError, StageError
from alignment.progress import console
from alignment.training import shares
from alignment.training.ranks import Disk, in_group, once

COMPLETE = "complete"
"""Marker file of a checkpoint that was written to its end; one without it is never resumed from."""
_PREFIX = "checkpoints/"
_UNWRITTEN = re.compile(r"No space left|os error 28|[Dd]isk quota|PytorchStreamWriter failed|inline_container|iostream")
"""What safetensors and torch, which lose the number of an error, say of a file that cannot be written to its end."""

_NUMBER = re.compile(r"os error (\d+)")
_GONE = {errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENODEV, errno.ENXIO,
         errno.EREMOTEIO}
"""What a network file system says whose server went away, or a disk that was taken out."""


class Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Marks and pushes what the trainer saves. On every rank: saving waits for all of them."""

    def __init__(self, context: StageContext, disk: Disk | None = None) -> None:
        self.store, self.key, self.work = context.store, context.key, context.work
        self.sharding, self.folder = context.run.compute.sharding, context.work / "checkpoints"
        self.ordered = str(context.stage_as(TrainBase).trl.get("train_sampling_strategy", "random"))
        self.place = disk or disk_of(context.work)
        self.disk, self.disks, self.leads = self.place
        """Number of this rank's disk, how many there are, and whether this rank pushes and pulls for its disk."""
        self._mark = self.folder / ".there"
        if self.store.is_local:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._mark.touch()
        self._pool = ThreadPoolExecutor(1, "push")
        self._push: Future[None] | None = None
        self._behind = False
        """Whether the store lacks the newest checkpoint of this disk."""

    def resume(self) -> Path | None:
        """The newest checkpoint that is complete, whole on every disk; the same one on all ranks."""
        names: list[str] = _from_first(self._choose() if _rank() == 0 else None)
        if self.disks > 1 and self.leads:
            for old in self.folder.glob("checkpoint-*"):
                if old.name not in names:
                    shutil.rmtree(old, ignore_errors=True)
            for name in names:
                if not self._whole(name):
                    raise ArtifactError("a pushed checkpoint is gone or damaged", where=self.store.url_of(
                        f"work/{self.key}/{_PREFIX}{name}"), hint="run again: it resumes from the newest whole one")
        barrier()
        for name in names:
            self._suit(name)
        if not names:
            return None
        newest = self.folder / names[0]
        if (made := shares.noted(newest)) is not None and made.workers != _world():
            if self.ordered not in ("random", "sequential"):
                raise shares.other_workers(
                    f"and train_sampling_strategy {self.ordered} orders rows by how many there are", newest, made,
                    shares.Shares(self.sharding, _world()), self.store.url_of(f"work/{self.key}"))
            if _rank() == 0:
                console.print(f"! {newest.name} was written by {made}, and goes on with {_world()}: its batches are "
                              "the same; what is drawn beside (dropout) is drawn anew", markup=False)
        return newest

    def _suit(self, name: str) -> None:
        """Have a checkpoint so that as many workers as there are now can read it."""
        folder = self.folder / name
        if not shares.fits(folder, self.sharding, _world()):
            once(f"whole-{name}", self.place, lambda: shares.make_whole(
                folder, self.sharding, _world(), self.store.url_of(f"work/{self.key}")))

    def still_there(self) -> None:
        """Before anything is written: libraries would make a folder anew whose file system was taken away, on the disk
        below, and train on.

        Raises:
            StoreUnreachable: the store's folder is gone.
        """
        if self.store.is_local and not self._mark.exists():
            raise StoreUnreachable("the store's folder is gone", where=self.store.url, found=f"no {self._mark}",
                                   hint="look at what is mounted there; once it is back, run again to go on from the "
                                        "newest checkpoint")

    def bring(self, name: str) -> None:
        """Have a checkpoint of this attempt whole on every disk: where weights are shared out, each rank's share lies
        on its own."""
        if self.disks == 1:
            return
        self.finish()
        barrier()
        if not everywhere(not self.leads or self._whole(name)):
            raise ArtifactError("a checkpoint cannot be brought together on every machine",
                                where=self.store.url_of(f"work/{self.key}/{_PREFIX}{name}"),
                                hint="run again: it resumes from the newest whole one")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        barrier()  # every rank has written its random state
        folder = self.folder / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero:
            shares.note(folder, self.sharding, _world())
            (folder / COMPLETE).write_text("", encoding="utf-8")
        if self.disks > 1 and zero_stage(self.sharding) and state.best_global_step:
            # The trainer looks for the folder before other disks than the first have it; all ranks load the best.
            state.best_model_checkpoint = str(self.folder / f"checkpoint-{state.best_global_step}")
        if self.disks > 1:  # the trainer throws old ones away on the first rank's disk alone
            kept_there = _from_first([path.name for path in self.folder.glob("checkpoint-*")])
            for old in self.folder.glob("checkpoint-*") if self.leads and self.disk else ():
                if old.name not in kept_there:
                    shutil.rmtree(old, ignore_errors=True)
        if self.leads and not self.store.is_local:
            self.finish()
            # Hard links: the trainer may delete the folder while it is being pushed.
            linked = self.work / f"push-{self.disk}"
            shutil.rmtree(linked, ignore_errors=True)
            shutil.copytree(folder, linked, copy_function=_link)
            stays = {_PREFIX + path.name for path in self.folder.glob("checkpoint-*")}
            self._push = self._pool.submit(self._send, _PREFIX + folder.name, linked, stays)

    def finish(self) -> None:
        """Wait until what was saved is pushed."""
        if self._push is not None:
            self._push.result()

    def kept(self, step: int) -> bool:
        """Whether a checkpoint is where a restart finds it, whatever becomes of this machine."""
        name = f"checkpoint-{step}"
        if self.store.is_local:
            return (self.folder / name / COMPLETE).exists()
        try:
            return _PREFIX + name in self.store.pushed_work(self.key, _PREFIX)
        except ArtifactError:
            return False

    def clear(self) -> None:
        """Give the disk back: a cache outlives the pod, and the driver clears its own machine alone.

        Not where the store lacks the newest: should it not take the stage's result either, another start needs it.
        """
        if self.leads and not self.store.is_local and not self._behind:
            for folder in (self.folder, *self.work.glob("columns-*")):
                shutil.rmtree(folder, ignore_errors=True)

    def _send(self, name: str, linked: Path, kept: set[str]) -> None:
        try:
            self.store.push_work(self.key, name, source=linked, part=self.disk, parts=self.disks)
            # The older ones stay until this one is whole, with the parts of all disks.
            if self.disk == 0 and name in self.store.pushed_work(self.key, _PREFIX):
                for old in self.store.started_work(self.key, _PREFIX) - kept:
                    self.store.drop_work(self.key, old)
            self._behind = False
        except (ArtifactError, OSError) as error:
            # Training goes on: the next checkpoint is pushed again, and nothing is lost while this machine lives. A
            # store that is still gone at the end fails the stage there, whose result it has to take.
            self._behind = True
            console.print(f"! {name.removeprefix(_PREFIX)} is on this machine alone, training goes on: it was not "
                          f"pushed\n{error}", markup=False)
        finally:
            shutil.rmtree(linked, ignore_errors=True)

    def _choose(self) -> list[str]:
        """Names of the checkpoint to resume from and of the best one so far, both whole here; none: start anew."""
        if self.store.is_local:
            return _names(latest_complete(self.folder))
        pushed = sorted(self.store.pushed_work(self.key, _PREFIX), key=_step, reverse=True)
        newest = next((name for name in pushed if self._usable(name.removeprefix(_PREFIX))), None)
        if pushed and newest is None:
            # Nothing is dropped: the store may only not have them now, and the first one pushed anew replaces them.
            console.print(f"! none of the {len(pushed)} pushed checkpoints is whole with the best one before it",
                          markup=False)
        else:
            for name in self.store.started_work(self.key, _PREFIX):
                if name not in pushed or newest is None or _step(name) > _step(newest):
                    self.store.drop_work(self.key, name)  # cut short by a kill
        if self.disks == 1:  # what this disk kept may be newer than what was pushed
            return _names(latest_complete(self.folder))
        return _names(self.store.workdir(self.key) / newest) if newest else []

    def _usable(self, name: str) -> bool:
        return self._whole(name) and all(self._whole(best) for best in _names(self.folder / name)[1:])

    def _whole(self, name: str) -> bool:
        return bool(self.store.pull_work(self.key, _PREFIX + name))


def latest_complete(folder: Path) -> Path | None:
    """The newest checkpoint with its marker, and with the best one before it, which the end may need.

    What cannot be resumed from goes: folders without a marker (a kill while saving) or without the shares of other
    machines, and those newer than the one found, which the trainer would keep in place of its own.
    """
    whole = []
    for path in folder.glob("checkpoint-*"):
        if (path / COMPLETE).exists() and shares.has_all(path):
            whole.append((int(_state(path)["global_step"]), path))
        else:
            shutil.rmtree(path, ignore_errors=True)
    for _, path in sorted(whole, reverse=True):
        if all((folder / name / COMPLETE).exists() for name in _names(path)):
            return path
        shutil.rmtree(path, ignore_errors=True)
    return None


@contextmanager
def naming_the_disk(folder: Path) -> Iterator[None]:
    """What a library says of a disk that is full, or that is gone, becomes an error with the folder.

    Raises:
        StageError: it is full; with the room that is left.
        StoreUnreachable: what is mounted there does not answer any more.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number, said = getattr(error, "errno", None), str(error)
        if number is None and (told := _NUMBER.search(said)):
            number = int(told[1])
        if number in _GONE:
            raise StoreUnreachable("the file system does not answer", where=str(folder), found=said[:200],
                                   hint="look at what is mounted there; run again to go on from the newest checkpoint",
                                   ) from error
        full = number in (errno.ENOSPC, errno.EDQUOT)
        if not full and not _UNWRITTEN.search(said):
            raise
        there = next(path for path in (folder, *folder.parents) if path.exists())
        certain = "the disk is full, or a quota is reached"
        raise StageError(certain if full else f"a file cannot be written to its end: {certain}, or the storage is gone",
                         where=str(folder),
                         found=f"{shutil.disk_usage(there).free / 2**20:,.0f} MiB free; {said[:200]}",
                         hint="make room, or lower checkpoints.keep; run again to go on from the newest checkpoint",
                         ) from error


def barrier() -> None:
    """Wait for all ranks; nothing without a process group."""
    if in_group():
        dist.barrier()


def everywhere(yes: bool) -> bool:
    """Whether it holds on all ranks."""
    return all(_of_all(yes))


def over_all(count: int) -> int:
    """The sum over all ranks."""
    return sum(_of_all(count))


def _rank() -> int:
    return dist.get_rank() if in_group() else 0


def _world() -> int:
    return dist.get_world_size() if in_group() else 1


def _from_first(value: Any) -> Any:
    values = [value]
    if in_group():
        dist.broadcast_object_list(values)
    return values[0]


def disk_of(folder: Path) -> Disk:
    """The disk that `folder` is on, found out by looking who else sees a file there."""
    if not in_group():
        return Disk(0, 1, True)
    token = _from_first(uuid.uuid4().hex)
    mine = folder / f".{token}-{_rank()}"
    mine.touch()
    barrier()
    first = next(rank for rank in range(dist.get_world_size()) if (folder / f".{token}-{rank}").exists())
    firsts = sorted(set(_of_all(first)))
    mine.unlink()
    return Disk(firsts.index(first), len(firsts), first == _rank())


def _of_all(value: Any) -> list[Any]:
    if not in_group():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _names(newest: Path | None) -> list[str]:
    """The checkpoint's name and, if it is another one, that of the best so far, which the end may need."""
    if newest is None:
        return []
    best = _state(newest).get("best_model_checkpoint")
    return list(dict.fromkeys([newest.name, *([Path(best).name] if best else [])]))


def _state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    return state


def _step(name: str) -> int:
    return int(name.rpartition("-")[2])


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
