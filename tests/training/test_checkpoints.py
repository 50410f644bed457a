"""Checkpoints of one process: the newest whole one is found, the best stays, and the store has what another machine
needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from alignment.artifacts import Store
from alignment.context import StageContext
from alignment.errors import ArtifactError
from tests import small

KEY = "sft-000000000000"
URL = "memory://checkpoints/prefix"


@pytest.fixture
def bucket() -> Iterator[fsspec.AbstractFileSystem]:
    """An object store that lives in this process."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()


class Machine:
    """One process of a stage on one machine, with what the trainer does around our callback."""

    def __init__(self, store: Store, folder: Path) -> None:
        from alignment.training.checkpoints import Checkpoints

        folder.mkdir(parents=True, exist_ok=True)
        run = small.run(folder, small.train("sft"))
        self.store = store
        self.context = StageContext(run=run, stage=run.stages[-1], store=store, key=KEY, digest="0" * 64, inputs={},
                                    work=store.workdir(KEY))
        self.callback = Checkpoints(self.context)
        self.folder = self.context.work / "checkpoints"

    def save(self, step: int, *, best: int | None = None, keep: int | None = None, first: bool = True) -> Path:
        """Write a checkpoint, throw older ones away but for the best, and say so to the callback."""
        from transformers import TrainerControl, TrainerState

        path = written(self.folder, step, best=best, complete=False)
        old = sorted(self.names() - {step, best}, reverse=True)[keep - 1 if keep else len(self.names()):]
        for gone in old:
            shutil.rmtree(self.folder / f"checkpoint-{gone}")
        self.callback.on_save(None, TrainerState(global_step=step, is_world_process_zero=first), TrainerControl())
        return path

    def names(self) -> set[int]:
        """Steps of the checkpoints on this machine."""
        return {int(path.name.removeprefix("checkpoint-")) for path in self.folder.glob("checkpoint-*")}

    def pushed(self) -> set[int]:
        """Steps of the checkpoints that are whole in the store."""
        return {int(name.rpartition("-")[2]) for name in self.store.pushed_work(KEY, "checkpoints/")}

    def resumed(self) -> int | None:
        found = self.callback.resume()
        if found is None:
            return None
        assert found.parent == self.folder
        return int(found.name.removeprefix("checkpoint-"))


def written(folder: Path, step: int, *, best: int | None = None, complete: bool = True, at: int | None = None) -> Path:
    """A checkpoint as a trainer of some other machine's paths leaves it."""
    path = folder / f"checkpoint-{step}"
    (path / "deep").mkdir(parents=True)
    state = {"global_step": step if at is None else at,
             "best_model_checkpoint": None if best is None else f"/elsewhere/checkpoint-{best}"}
    (path / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    (path / "deep" / "weights.bin").write_bytes(bytes([step]) * 1000)
    if complete:
        (path / "complete").touch()
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def steps_in(bucket: Any) -> set[int]:
    """Steps of which anything at all lies in the bucket."""
    names = [path.partition("/checkpoints/checkpoint-")[2] for path in bucket.find("/checkpoints")]
    return {int(name.split("/")[0].split(".")[0]) for name in names}


# --- on one disk ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("whole", "cut_short", "newest"), [
    ([], [], None), ([4], [], 4), ([9, 10, 100], [], 100), ([8], [10], 8), ([], [2, 4], None), ([2, 6], [4, 8], 6),
])
def test_the_newest_checkpoint_with_its_marker_is_found_and_the_others_are_removed(
    tmp_path: Path, whole: list[int], cut_short: list[int], newest: int | None
) -> None:
    from alignment.training.checkpoints import latest_complete

    for step in whole:
        written(tmp_path, step)
    for step in cut_short:
        written(tmp_path, step, complete=False)
    (tmp_path / "runs").mkdir()
    found = latest_complete(tmp_path)
    assert found == (None if newest is None else tmp_path / f"checkpoint-{newest}")
    assert {path.name for path in tmp_path.iterdir()} == {"runs", *(f"checkpoint-{step}" for step in whole)}
    assert latest_complete(tmp_path / "none") is None


def test_a_local_store_keeps_what_the_trainer_keeps_and_pushes_nothing(tmp_path: Path) -> None:
    machine = Machine(Store(str(tmp_path / "store")), tmp_path)
    assert machine.resumed() is None
    for step in (2, 4, 6):
        path = machine.save(step, keep=2)
        assert (path / "complete").exists()
    machine.callback.finish()
    assert machine.names() == {4, 6}
    assert machine.resumed() == 6
    assert {path.name for path in machine.context.work.iterdir()} == {"checkpoints"}
    (machine.folder / "checkpoint-6" / "complete").unlink()
    assert machine.resumed() == 4
    machine.callback.clear()
    assert machine.names() == {4}, "the driver clears its own disk"


def test_only_the_first_rank_marks_a_checkpoint_as_complete(tmp_path: Path) -> None:
    machine = Machine(Store(str(tmp_path / "store")), tmp_path)
    assert not (machine.save(2, first=False) / "complete").exists()
    assert machine.resumed() is None
    assert (machine.save(4, first=True) / "complete").read_text() == ""


def test_without_a_process_group_there_is_one_disk_and_nobody_to_wait_for(tmp_path: Path) -> None:
    from alignment.training import checkpoints

    machine = Machine(Store(str(tmp_path / "store")), tmp_path)
    assert (machine.callback.disk, machine.callback.disks, machine.callback.leads) == (0, 1, True)
    assert (checkpoints.everywhere(True), checkpoints.everywhere(False)) == (True, False)
    checkpoints.barrier()


# --- through an object store ---------------------------------------------------------------------------------


def test_another_machine_finds_the_newest_checkpoint_whole(bucket: Any, tmp_path: Path) -> None:
    one = Machine(Store(URL, cache=tmp_path / "one"), tmp_path)
    for step in (2, 4):
        path = one.save(step)
    one.callback.finish()
    assert one.pushed() == {2, 4}
    two = Machine(Store(URL, cache=tmp_path / "two"), tmp_path)
    assert two.names() == set()
    assert two.resumed() == 4
    assert content(two.folder / "checkpoint-4") == content(path)
    assert content(path)["deep/weights.bin"] == b"\x04" * 1000
    assert content(path).keys() == {"complete", "shares.json", "trainer_state.json", "deep/weights.bin"}
    assert two.names() == {4}, "no more than is needed is fetched"
    assert {path.name for path in one.context.work.iterdir()} == {"checkpoints"}, "nothing is left of the pushing"


def test_what_the_trainer_threw_away_leaves_the_store_but_the_best_stays(bucket: Any, tmp_path: Path) -> None:
    one = Machine(Store(URL, cache=tmp_path / "one"), tmp_path)
    for step, best, left in [(2, 2, {2}), (4, 4, {4}), (6, 4, {4, 6}), (8, 4, {4, 8}), (10, 10, {10})]:
        one.save(step, best=best, keep=1)
        one.callback.finish()
        assert one.names() == left
        assert one.pushed() == steps_in(bucket) == left


def test_the_best_checkpoint_comes_along_to_the_other_machine(bucket: Any, tmp_path: Path) -> None:
    one = Machine(Store(URL, cache=tmp_path / "one"), tmp_path)
    for step in (2, 4, 6):
        one.save(step, best=2, keep=1)
    one.callback.finish()
    two = Machine(Store(URL, cache=tmp_path / "two"), tmp_path)
    assert two.resumed() == 6
    assert two.names() == {2, 6}
    assert content(two.folder / "checkpoint-2") == content(one.folder / "checkpoint-2")


@pytest.mark.parametrize(("damage", "best", "resumed"), [
    ("checkpoint-6.pushed-0-of-1", None, 4),
    ("checkpoint-6/deep/weights.bin", None, 4),
    ("checkpoint-6/complete", 2, 4),
    ("checkpoint-4/deep/weights.bin", 2, 6),
])
def test_a_checkpoint_that_lost_a_file_is_passed_over_and_removed(
    bucket: Any, tmp_path: Path, damage: str, best: int | None, resumed: int
) -> None:
    one = Machine(Store(URL, cache=tmp_path / "one"), tmp_path)
    for step in (2, 4, 6):
        one.save(step, best=best)
    one.callback.finish()
    bucket.rm(f"/checkpoints/prefix/work/{KEY}/checkpoints/{damage}")
    two = Machine(Store(URL, cache=tmp_path / "two"), tmp_path)
    assert two.resumed() == resumed
    assert two.names() == {resumed, best} - {None}
    assert {step for step in steps_in(bucket) if step > resumed} == set(), "cut short"


def test_no_checkpoint_is_resumed_without_the_best_one_before_it(bucket: Any, tmp_path: Path) -> None:
    """The end may need it; what is whole stays in the store until something newer is."""
    one = Machine(Store(URL, cache=tmp_path / "one"), tmp_path)
    for step in (2, 4, 6):
        one.save(step, best=2)
    one.callback.finish()
    bucket.rm(f"/checkpoints/prefix/work/{KEY}/checkpoints/checkpoint-2.pushed-0-of-1")
    two = Machine(Store(URL, cache=tmp_path / "two"), tmp_path)
    assert two.resumed() is None
    assert two.names() == set(), "nothing that the trainer would keep in place of its own"
    assert two.pushed() == {4, 6}
    assert Machine(Store(URL, cache=tmp_path / "one"), tmp_path).resumed() == 6, "the old machine still has it"
    two.save(2, best=2)
    two.callback.finish()
    assert two.pushed() == steps_in(bucket) == {2}


def test_on_one_disk_too_the_best_belongs_to_the_newest(tmp_path: Path) -> None:
    machine = Machine(Store(str(tmp_path / "store")), tmp_path)
    for step, best in ((2, 2), (4, 4), (6, 2)):
        machine.save(step, best=best)
    (machine.folder / "checkpoint-2" / "complete").unlink()
    assert machine.resumed() == 4
    assert machine.names() == {4}


def test_a_changed_byte_is_a_damaged_checkpoint(bucket: Any, tmp_path: Path) -> None:
    one = Machine(Store(URL, cache=tmp_path / "one"), tmp_path)
    one.save(2)
    one.save(4)
    one.callback.finish()
    bucket.pipe_file(f"/checkpoints/prefix/work/{KEY}/checkpoints/checkpoint-4/deep/weights.bin", b"\x05" * 1000)
    two = Machine(Store(URL, cache=tmp_path / "two"), tmp_path)
    assert two.resumed() == 2
    assert two.names() == {2}


def test_a_machine_that_kept_a_newer_one_goes_on_from_it(bucket: Any, tmp_path: Path) -> None:
    one = Machine(Store(URL, cache=tmp_path / "one"), tmp_path)
    one.save(2)
    one.callback.finish()
    written(one.folder, 4)
    written(one.folder, 6, complete=False)
    again = Machine(Store(URL, cache=tmp_path / "one"), tmp_path)
    assert again.resumed() == 4
    assert again.names() == {2, 4}
    assert Machine(Store(URL, cache=tmp_path / "two"), tmp_path).resumed() == 2


class Refusing(Store):
    """A store that refuses the first push."""

    refused = 0

    def push_work(self, *args: Any, **kwargs: Any) -> None:
        if not self.refused:
            self.refused += 1
            raise ArtifactError("the store does not answer", where=self.url)
        super().push_work(*args, **kwargs)


def test_a_push_that_fails_is_said_and_training_goes_on(
    bucket: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(Refusing(URL, cache=tmp_path / "one"), tmp_path)
    machine.save(2)
    machine.callback.finish()
    assert "checkpoint-2 is on this machine alone" in capsys.readouterr().err
    assert machine.pushed() == set()
    assert not list(machine.context.work.glob("push-*"))
    machine.save(4)
    machine.callback.finish()
    assert capsys.readouterr().err == ""
    assert machine.pushed() == {4}
    assert machine.resumed() == 4


class Slow(Store):
    """A store so slow that the trainer has thrown the checkpoint away before it is read."""

    gone: Path

    def push_work(self, *args: Any, **kwargs: Any) -> None:
        shutil.rmtree(self.gone)
        super().push_work(*args, **kwargs)


def test_a_checkpoint_may_be_deleted_while_it_is_pushed(bucket: Any, tmp_path: Path) -> None:
    store = Slow(URL, cache=tmp_path / "one")
    machine = Machine(store, tmp_path)
    store.gone = machine.folder / "checkpoint-2"
    machine.save(2)
    machine.callback.finish()
    assert machine.names() == set()
    assert Machine(Store(URL, cache=tmp_path / "two"), tmp_path).resumed() == 2


def test_the_cache_of_a_pod_is_given_back_at_the_end(bucket: Any, tmp_path: Path) -> None:
    machine = Machine(Store(URL, cache=tmp_path / "one"), tmp_path)
    machine.save(2)
    machine.callback.finish()
    machine.callback.clear()
    assert not machine.folder.exists()
    assert machine.pushed() == {2}, "the driver clears the store when all is published"
