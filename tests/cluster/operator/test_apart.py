"""Specs and stores that are slow, endless or hostile are looked at apart: ended in time, in real processes, and a good
run beside two hundred of them goes on.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Store as RealStore
from alignment.cluster.manifests.alignment_run import status_of
from alignment.cluster.manifests.bundle import RUN_LIMIT
from alignment.cluster.operator import apart as module
from alignment.cluster.operator.apart import KNOWN, NEW, SLOW, Apart, Lane, Overdue
from alignment.cluster.operator.controller import Controller
from alignment.cluster.operator.metrics import Metrics
from alignment.cluster.operator.prepare import Refused
from alignment.cluster.operator.reads import readable
from alignment.cluster.operator.shell import Queue
from alignment.errors import ArtifactError
from tests.cluster.operator_world import NAMESPACE, Store, World, chain, profile, submit
from tests.cluster.test_operator_cluster import make

QUICK, LAST = Lane("new", 4, 0.5), Lane("slow", 2, 0.8, last=True)


@pytest.fixture
def apart(tmp_path: Path) -> Apart:
    return Apart(readable([str(tmp_path)]))


@pytest.fixture
def lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LANES", (QUICK, LAST, Lane("new", 1, 20.0)))


def hang() -> None:
    time.sleep(60)


def swallow() -> int:
    return len(bytearray(2 * module.MEMORY))


def endless() -> Any:
    return sum(iter(int, 1))


def boom() -> None:
    raise IsADirectoryError("files/0/..")


@pytest.mark.parametrize("work", [hang, endless, swallow])
def test_what_takes_too_long_or_too_much_is_ended_and_the_next_goes_on(
    work: Any, apart: Apart, tmp_path: Path, lanes: None
) -> None:
    for lane, expected in ((QUICK, Overdue), (LAST, module._Broken)):
        with apart.within(lane):
            apart.look_up(str(tmp_path / "store"), ["a-1"])  # a process is there, and works
        began = time.monotonic()
        with apart.within(lane), pytest.raises(expected):
            apart._ask(work)
        assert time.monotonic() < began + lane.seconds + 1.0
        with apart.within(lane):
            assert apart.look_up(str(tmp_path / "store"), ["a-1"]) == {}


def test_all_that_one_look_asks_shares_one_bound(apart: Apart, lanes: None) -> None:
    began, asked = time.monotonic(), []

    def look() -> None:
        for number in range(10):
            asked.append(number)
            apart._ask(partial(time.sleep, 0.2))

    with apart.within(QUICK), pytest.raises(Overdue):
        look()
    assert len(asked) <= 1 + QUICK.seconds / 0.2
    assert time.monotonic() < began + QUICK.seconds + 2


def test_an_error_of_ours_is_a_refusal_that_says_so(apart: Apart, lanes: None) -> None:
    with apart.within(Lane("new", 1, 20.0)), pytest.raises(Refused, match=r"IsADirectoryError.*fault of KubeAlign"):
        apart._ask(boom)


def test_a_manifest_that_is_no_plain_file_is_not_opened(apart: Apart, tmp_path: Path, lanes: None) -> None:
    folder = tmp_path / "store" / "artifacts" / "a-1"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "manifest.json")
    with apart.within(QUICK), pytest.raises(ArtifactError, match="neither a plain file"):
        apart.look_up(str(tmp_path / "store"), ["a-1"])
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").symlink_to("/etc/hostname")
    with apart.within(QUICK), pytest.raises(ArtifactError, match="leads out of") as refused:
        apart.look_up(str(tmp_path / "store"), ["a-1"])
    assert Path("/etc/hostname").read_text().strip() not in str(refused.value)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Store())


def hostile(world: World, folder: Path, number: int) -> str:
    """Specs that need long: very many stages, a file of a terabyte, a bomb of aliases, as much text as may be."""
    storage = {"url": str(folder / "store"), "claim": "c", "mount": str(folder)}
    name = submit(world, chain(folder / "rows", name=f"bad-{number}"), profile(storage=storage))
    body = world.objects[("AlignmentRun", name)]
    run, kind = body["spec"]["run"], 3 if number % 50 == 0 else number % 3
    if kind == 0:
        run["stages"] += [{**run["stages"][0], "name": f"more{index}", "template": "x" * 40} for index in range(900)]
    elif kind == 1:
        run["stages"][1]["data"] = [{"path": str(folder / "endless.jsonl"), "format": "passage-qa"}]
    elif kind == 3:
        run["description"] = ""
        run["stages"][1]["data"] *= (RUN_LIMIT - 10_000) // len(str(run["stages"][1]["data"]))
    else:
        files = world.objects[("ConfigMap", body["spec"]["files"]["configMap"])]
        bomb = "a0: &a0 [x]\n" + "".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n"
                                        for level in range(1, 12))
        files["data"]["run.yaml"] = bomb + files["data"]["run.yaml"]
    return name


def test_a_good_run_goes_on_beside_two_hundred_hostile_ones(world: World, tmp_path: Path) -> None:
    """The bound that `apart` states, with two seconds for each new one, shared by four: 100 s for 200 hostile ones that
    came before it; and once it is known, none."""
    with (tmp_path / "endless.jsonl").open("wb") as file:
        file.truncate(2**40)
    bad = [hostile(world, tmp_path, number) for number in range(200)]
    apart, metrics = Apart(readable([str(tmp_path)])), Metrics()
    storage = {"url": str(tmp_path / "store"), "claim": "c", "mount": str(tmp_path)}
    good = submit(world, chain(tmp_path / "rows", name="good"), profile(storage=storage))
    controller = Controller(world, metrics, namespace=NAMESPACE, prepare=apart.prepare, look_up=apart.look_up,
                            proofs=apart.proofs, trouble=lambda run, stage, job: "", clock=time.time)
    seen: dict[str, float] = {}

    def phases() -> dict[str, str]:
        return {name: status_of(world.objects[("AlignmentRun", name)]).phase for name in (*bad, good)}

    async def go() -> None:
        queue = Queue(controller, metrics, apart.within)
        queue.start()
        began = time.monotonic()
        while world.rayjobs("good") == [] and time.monotonic() < began + 120:
            await asyncio.sleep(0.05)
        seen["first"] = time.monotonic() - began
        key = status_of(world.objects[("AlignmentRun", good)]).stages[0]
        make(RealStore(str(tmp_path / "store")), key.key, "0" * 64, "base")
        job = world.rayjobs("good")[0]
        world.move(world.objects[("RayJob", job["metadata"]["name"])], "Complete", "SUCCEEDED")
        began = time.monotonic()
        queue.add(controller.seen.job(world.objects[("RayJob", job["metadata"]["name"])]))
        while len(world.rayjobs("good")) < 2 and time.monotonic() < began + 60:
            await asyncio.sleep(0.05)
        seen["next"] = time.monotonic() - began
        assert queue.wrong() is None
        await queue.stop()

    asyncio.run(go())
    assert seen["first"] < 200 * NEW.seconds / NEW.workers
    assert seen["next"] < 10, "a known run waits for nobody's spec or store"
    assert phases()[good] == "Running"
    assert KNOWN.seconds < SLOW.seconds


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    import multiprocessing

    yield
    for child in multiprocessing.active_children():
        child.kill()
