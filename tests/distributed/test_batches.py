"""Batched work with a maker that needs no model: order, resuming, damage, errors, workers, remote stores."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Store
from alignment.config import parse_run
from alignment.context import StageContext
from alignment.distributed import parts as parts_module
from alignment.distributed.batches import Plan, make_parts, plan
from alignment.distributed.local import WorkersLost
from alignment.distributed.parts import Parts
from alignment.errors import DataError, StageError

ODD = "eins\nzwei\u2028drei\r\x85船"


@dataclass(frozen=True)
class Word:
    """A row; `does` tells the maker what to do at it."""

    id: str
    does: str = ""


@dataclass
class Said:
    """A part: answers, and rows that failed."""

    answers: dict[str, float] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    text: str = ODD

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Said:
        return cls(**json.loads(text))


class Speaker:
    """Tells `log` when it is made, makes a batch and is closed; keeps rows that fail, as a maker should."""

    def __init__(self, context: StageContext, *, log: Path, broken: bool = False) -> None:
        if broken:
            raise DataError("this maker cannot be made")
        self.log = log
        self._tell("+")

    def make(self, items: Any) -> Said:
        made = Said()
        for item in items:
            if item.does == "raise":
                raise DataError("the user's own fault", where=f"row {item.id}", found=item.id)
            if item.does == "bug":
                raise ZeroDivisionError("ours")
            if item.does == "interrupt":
                raise KeyboardInterrupt
            if item.does == "die" or (item.does == "die once" and not (mark := self.log.with_name("died")).exists()):
                if item.does == "die once":
                    mark.touch()
                os._exit(1)
            if item.does == "fail":
                made.bad.append(item.id)
            else:
                made.answers[item.id] = math.nan if item.does == "nan" else len(item.id) / 3
        self._tell(items[0].id)
        return made

    def close(self) -> None:
        self._tell("-")

    def _tell(self, what: str) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{what} ")


@dataclass
class World:
    """A stage's context on a store of its own, and what its makers told."""

    folder: Path
    url: str = ""
    workers: int = 0
    machine: str = "one"
    digest: str = "d" * 64
    log: str = "log"

    @property
    def context(self) -> StageContext:
        run = parse_run(json.dumps({
            "name": "t", "compute": {"workers": self.workers, "cpus_per_worker": 0.5},
            "stages": [{"name": "base", "kind": "import", "model": {"source": "tiny"}}]}))
        store = Store(self.url or str(self.folder / "store"), cache=self.folder / self.machine)
        return StageContext(run, run.stage("base"), store, "base-0", self.digest, {}, store.workdir("base-0"))

    def make(self, words: list[Word], size: int = 2, **maker: Any) -> Parts[Said]:
        return make_parts(self.context, self.plan(words, size), partial(Speaker, log=self.folder / self.log, **maker),
                          Said, folder="parts", label="say", unit="words")

    def plan(self, words: list[Word], size: int = 2) -> Plan[Word]:
        return plan(self.context, [words[i : i + size] for i in range(0, len(words), size)])

    def told(self) -> list[str]:
        """What the makers told since the last call."""
        file = self.folder / self.log
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        file.unlink(missing_ok=True)
        return text.split()

    def files(self) -> list[Path]:
        return sorted((self.context.work / "parts").glob("*.json"))


def words(count: int = 9, **does: str) -> list[Word]:
    """Rows w0, w1, ... with names of different lengths; `w3="raise"` has one do something."""
    return [Word(f"w{i}", does.get(f"w{i}", "")) for i in range(count)]


def ids(parts: Parts[Said]) -> list[list[str]]:
    return [[*part.answers] for part in parts]


FIVE = [["w0", "w1"], ["w2", "w3"], ["w4", "w5"], ["w6", "w7"], ["w8"]]


def test_every_row_is_made_once_and_given_in_the_plans_order(tmp_path: Path) -> None:
    world = World(tmp_path)
    made = world.make(words(w1="fail", w2="nan"))
    assert world.told() == ["+", "w0", "w2", "w4", "w6", "w8", "-"]
    assert ids(made) == ids(made) == [["w0"], *FIVE[1:]]
    first, second = list(made)[:2]
    assert (first.bad, first.text) == (["w1"], ODD)
    assert math.isnan(second.answers["w2"])
    assert made.reused == 0
    events = [json.loads(line) for line in world.context.events.read_text(encoding="utf-8").splitlines()]
    assert [(event["event"], event["of"], event["rows"]) for event in events] == [("batch", "parts", 2)] * 4 + [
        ("batch", "parts", 1)]
    assert {event["part"] for event in events} == {file.stem for file in world.files()}
    again = world.make(words())
    assert (ids(again), again.reused) == (ids(made), 9)
    assert world.told() == [], "no maker where nothing is left to do"
    assert list(world.make([])) == []


def test_a_killed_stage_makes_only_the_parts_it_lacks(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        world.make(words(w5="interrupt"))
    assert world.told() == ["+", "w0", "w2", "-"]
    kept = [(file, file.stat().st_mtime_ns) for file in world.files()]
    assert len(kept) == 2
    missing = next(name for name in world.plan(words()) if name not in {file.stem for file, _ in kept})
    world.files()[0].with_name(f".{missing}.new").write_text('{"answers": {"w', encoding="utf-8")  # SIGKILL in a write
    made = world.make(words())
    assert (ids(made), made.reused) == (FIVE, 4)
    assert world.told() == ["+", "w4", "w6", "w8", "-"]
    assert [(file, file.stat().st_mtime_ns) for file, _ in kept] == kept
    other = World(tmp_path, digest="e" * 64)
    assert other.make(words()).reused == 0, "another digest is other work"


@pytest.mark.parametrize("damage", [b"", b'{"answers": {"w0"', b"\xff\xfe\x00", b"[1]", b'{"old": 1}', b"null"])
def test_a_damaged_part_is_made_again(damage: bytes, tmp_path: Path) -> None:
    world = World(tmp_path)
    world.make(words())
    world.told()
    names = list(world.plan(words()))
    (world.context.work / "parts" / f"{names[2]}.json").write_bytes(damage)
    made = world.make(words())
    assert (ids(made), made.reused) == (FIVE, 7)
    assert world.told() == ["+", "w4", "-"]
    (world.context.work / "parts" / f"{names[2]}.json").write_bytes(damage)
    with pytest.raises(StageError, match="no longer be read"):
        list(made)


def test_what_a_maker_raises_arrives_as_itself_and_finished_parts_stay(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(DataError, match="own fault") as error:
        world.make(words(w4="raise"))
    assert error.value.found == "w4"
    assert world.told() == ["+", "w0", "w2", "-"]
    assert world.make(words()).reused == 4


def test_work_of_earlier_versions_breaks_nothing(tmp_path: Path) -> None:
    for url in ("", f"memory://old-{tmp_path.name}"):
        world = World(tmp_path / (url and "remote"), url=url)
        context = world.context
        old = context.work / "parts" / next(iter(world.plan(words())))
        old.mkdir(parents=True)
        (old / "part.json").write_text('{"answers": [], "bad": [], "seconds": 1}', encoding="utf-8")
        context.store.push_work(context.key, f"parts/{old.name}")
        assert ids(world.make(words())) == FIVE


# --- remote stores -------------------------------------------------------------------------------------------


def test_another_machine_goes_on_from_what_was_pushed(tmp_path: Path) -> None:
    url = f"memory://batches-{tmp_path.name}"
    first = World(tmp_path, url=url)
    with pytest.raises(DataError):
        first.make(words(w5="raise", w2="nan"))
    first.told()
    second = World(tmp_path, url=url, machine="two")
    made = second.make(words())
    assert (ids(made), made.reused) == (FIVE, 4)
    assert second.told() == ["+", "w4", "w6", "w8", "-"]
    assert [part.text for part in made] == [ODD] * 5
    assert math.isnan(list(made)[1].answers["w2"])
    third = World(tmp_path, url=url, machine="three")
    assert third.make(words()).reused == 9
    assert third.told() == []


@pytest.mark.parametrize(("every", "bundles"), [(3600.0, 1), (0.0, 5)])
def test_small_parts_are_pushed_together(
    every: float, bundles: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "PUSH", every)
    world = World(tmp_path, url=f"memory://bundles-{bundles}-{tmp_path.name}")
    world.make(words())
    store = world.context.store
    assert len(store.pushed_work("base-0", "parts/")) == bundles
    assert sum("/parts/" in path for path in store._listed("base-0")) == 2 * bundles
    world.make(words())
    assert len(store.pushed_work("base-0", "parts/")) == bundles, "what is there is not sent again"


def test_what_a_killed_process_had_not_pushed_is_pushed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, url=f"memory://unsent-{tmp_path.name}")
    with monkeypatch.context() as patch:
        patch.setattr(parts_module.Kept, "push", lambda self: None)  # a SIGKILL pushes nothing
        with pytest.raises(KeyboardInterrupt):
            world.make(words(w5="interrupt"))
    assert world.context.store.pushed_work("base-0", "parts/") == []
    assert world.make(words()).reused == 4
    assert World(tmp_path, url=world.url, machine="two").make(words()).reused == 9


# --- workers -------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_workers_make_the_same_parts_as_one_process_though_one_dies(tmp_path: Path) -> None:
    rows = words(w1="fail", w3="die once")
    two = World(tmp_path / "two", workers=2)
    (tmp_path / "two").mkdir()
    made = two.make(rows)
    assert (tmp_path / "two" / "died").exists(), "a worker did die"
    told = two.told()
    assert sorted(told) == sorted([*(["+"] * told.count("+")), "w0", "w2", "w4", "w6", "w8"])
    assert 2 <= told.count("+") <= 3, "a maker a process, and one for that which died"
    (tmp_path / "one").mkdir()
    one = World(tmp_path / "one")
    assert list(made) == list(one.make(words(w1="fail")))
    texts = [[file.read_bytes() for file in world.files()] for world in (one, two)]
    assert texts[0] == texts[1]
    assert [file.name for file in one.files()] == [file.name for file in two.files()]


@pytest.mark.ray
def test_errors_of_workers_arrive_as_themselves_and_lost_workers_as_lost(tmp_path: Path) -> None:
    world = World(tmp_path, workers=2)
    with pytest.raises(DataError, match="own fault") as error:
        world.make(words(w8="raise"))
    assert error.value.found == "w8"
    with pytest.raises(DataError, match="cannot be made"):
        World(tmp_path, workers=2, digest="e" * 64).make(words(), broken=True)
    with pytest.raises(StageError, match="ZeroDivisionError") as stage_error:
        World(tmp_path, workers=2, digest="a" * 64).make(words(w8="bug"))
    assert not stage_error.value.transient, "trying again would not help"
    deadly = World(tmp_path, workers=2, digest="f" * 64)
    with pytest.raises(WorkersLost, match="worker failed"):
        deadly.make(words(w8="die"))
    assert World(tmp_path, digest="f" * 64).make(words()).reused > 0, "what the others had made is kept"
