"""The chain's picture: boxes and arrows never cover each other, whatever the chain."""

from __future__ import annotations

import random
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from alignment.config import Run
from alignment.report.chain import StageText, chain
from alignment.report.layout import BOX_HEIGHT, BOX_WIDTH, Layout, arrange, layers_of
from tests.report.conftest import BASE, SEED, run_of, train


def random_run(folder: Path, seed: int, count: int) -> Run:
    """A valid run of `count` stages that refer to earlier ones at random."""
    source = random.Random(seed)
    stages: list[dict[str, Any]] = [BASE, SEED]
    policies, rewards, rows, held = ["base"], [], ["seed/train"], ["seed/test"]
    while len(stages) < count:
        name = f"s{len(stages)}"
        kind = source.choice(["sft", "dpo", "reward", "sample", "evaluate", "import"])
        if kind in ("sft", "dpo", "reward"):
            read = source.sample(rows, min(len(rows), source.randint(1, 2)))
            stages.append(train(name, kind, source.choice(policies), *read))
            (rewards if kind == "reward" else policies).append(name)
        elif kind == "sample" and rewards:
            stages.append({"name": name, "kind": "sample", "model": source.choice(policies),
                           "prompts": [source.choice(rows)], "score": {"model": source.choice(rewards)}})
            rows += [f"{name}/best", f"{name}/pairs"]
        elif kind == "evaluate":
            models = source.sample(policies, min(len(policies), source.randint(1, 4)))
            stages.append({"name": name, "kind": "evaluate", "models": models, "rows": source.choice(held)})
        elif kind == "import":
            stages.append({**SEED, "name": name})
            rows.append(f"{name}/train")
            held.append(f"{name}/test")
    return run_of(folder, stages, [])


def segments(layout: Layout) -> list[tuple[str, str, tuple[float, float], tuple[float, float]]]:
    return [(wire.source, wire.target, a, b) for wire in layout.wires for a, b in pairwise(wire.points)]


@pytest.mark.parametrize("seed", [*range(30), 57, 59, 85])
def test_nothing_covers_anything(tmp_path: Path, seed: int) -> None:
    run = random_run(tmp_path, seed, 4 + seed % 9)
    layout = arrange(run)
    assert set(layout.boxes) == {stage.name for stage in run.stages}
    for a, b in combinations(layout.boxes.values(), 2):
        assert abs(a.x - b.x) >= BOX_WIDTH + 20 or abs(a.y - b.y) >= BOX_HEIGHT + 20
    for source, target, (ax, ay), (bx, by) in segments(layout):
        assert ax == bx or ay == by, "arrows run upright or level"
        assert min(ax, bx) >= 0
        assert max(ax, bx) <= layout.width
        for box in layout.boxes.values():
            across = max(ax, bx) > box.x and min(ax, bx) < box.x + BOX_WIDTH
            along = max(ay, by) > box.y and min(ay, by) < box.y + BOX_HEIGHT
            assert not (across and along), f"{source} -> {target} runs through {box.name}"


@pytest.mark.parametrize("seed", [*range(30), 57, 59, 85])
def test_arrows_of_different_stages_never_lie_on_each_other(tmp_path: Path, seed: int) -> None:
    for one, other in combinations(segments(arrange(random_run(tmp_path, seed, 4 + seed % 9))), 2):
        if one[0] == other[0]:
            continue
        for axis in (0, 1):
            (a, b), (c, d) = (one[2], one[3]), (other[2], other[3])
            if a[axis] == b[axis] == c[axis] == d[axis]:
                low = max(min(a[1 - axis], b[1 - axis]), min(c[1 - axis], d[1 - axis]))
                high = min(max(a[1 - axis], b[1 - axis]), max(c[1 - axis], d[1 - axis]))
                assert high <= low, f"{one} lies on {other}"


def test_every_input_has_one_arrow_from_the_source_to_the_target(tmp_path: Path) -> None:
    run = random_run(tmp_path, 3, 10)
    layout = arrange(run)
    expected = {(name, stage.name) for stage in run.stages for name in stage.inputs()}
    assert {(wire.source, wire.target) for wire in layout.wires} == expected
    for wire in layout.wires:
        source, target = layout.boxes[wire.source], layout.boxes[wire.target]
        assert wire.points[0][1] == source.y + BOX_HEIGHT
        assert wire.points[-1][1] == target.y
        assert target.x < wire.points[-1][0] < target.x + BOX_WIDTH


def test_layers(tmp_path: Path) -> None:
    late = {**SEED, "name": "late"}
    run = run_of(tmp_path, [BASE, SEED, train("sft", "sft", "base", "seed/train"), late,
                            train("sft2", "sft", "sft", "late/train")], [])
    assert layers_of(run) == {"base": 0, "seed": 0, "sft": 1, "late": 1, "sft2": 2}


def test_the_picture_names_what_it_shows(tmp_path: Path) -> None:
    name = "a-stage-with-a-name-of-forty-characters-"
    run = run_of(tmp_path, [BASE, SEED, train(name, "sft", "base", "seed/train", "seed/dev")], [])
    texts = {
        stage.name: StageText("sft · lora r 16", "12,345 → 12,000 train", "abcdef01", "1 h", stage.name == "base")
        for stage in run.stages
    }
    svg = chain(run, texts, {"base": "s0"})
    root = ElementTree.fromstring(svg)
    titles = [node.text or "" for node in root.iter("title")]
    assert f"seed/train, seed/dev → {name}" in titles
    assert any(title.startswith(name + "\n") for title in titles), "a cut name stands whole in the title"
    classes = [node.attrib.get("class", "") for node in root.iter("g")]
    assert classes.count("s0") == 1
    assert sum("missing" in value for value in classes) == 2
    assert sum(value.startswith("wire-model") for value in classes) == 1
    assert sum(value.startswith("wire-rows") for value in classes) == 1
