"""`plan --gpus` and what `check` makes of a GPU that is named."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.config import load_run
from tests import small
from tests.cli.conftest import Call
from tests.planner.test_auto import LLAMA


@pytest.fixture
def run_file(call: Call, tmp_path: Path) -> str:
    """A 7B model, of which config.json alone is there, to be trained by `auto`."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA["7B"] | {"max_position_embeddings": 4096}))
    base = {"name": "base", "kind": "import", "model": {"source": "folder", "path": "model"}}
    tree: dict[str, Any] = {"name": "n", "store": "store", "stages": [
        base, small.data(tmp_path), small.train("sft", strategy={"kind": "auto"})]}
    Path("run.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return "run.yaml"


@pytest.mark.parametrize(("gpus", "said"), [
    ("4090", ("qlora r 16", "qlora, chosen by auto: ", "of 23.5 GiB on NVIDIA GeForce RTX 4090")),
    ("8xH100", ("all weights", "full with zero1, chosen by auto: ", "on 8xh100, at 35% of 989 TFLOP/s")),
    ("none", ("lora r 16", "lora, chosen by auto: no GPU")),
])
def test_a_plan_for_other_hardware(call: Call, run_file: str, gpus: str, said: tuple[str, ...]) -> None:
    made = call("plan", run_file, "--gpus", gpus)
    assert made.code == 0, made.err
    flat = " ".join(made.out.split())
    for part in said:
        assert part in flat


def test_what_does_not_fit_is_said_with_the_nearest_that_does(call: Call, run_file: str) -> None:
    said = " ".join(call("plan", run_file, "--gpus", "4090", "--set", "sft.strategy={kind: full}").out.split())
    assert "! sft: strategy full does not fit 4090: " in said
    assert "the nearest that fits is strategy: {kind: lora}: " in said


@pytest.mark.parametrize(("gpus", "where", "asked"), [
    ("4090", "with 4090", {"device": "cuda", "gpu": "4090"}), ("none", "without a GPU", {"device": "cpu"}),
    ("8xH100", "with 8xh100", {"device": "cuda", "gpu": "h100", "workers": 8, "gpus_per_worker": 1.0}),
])
def test_the_run_that_is_offered_computes_on_what_was_planned_for(
    call: Call, run_file: str, gpus: str, where: str, asked: dict[str, Any]
) -> None:
    made = call("plan", run_file, "--gpus", gpus)
    place, command = made.out.rstrip().splitlines()[-2:]
    assert place == f"on a machine {where}:"
    words = shlex.split(command)
    assert words[:3] == ["kubealign", "run", run_file]
    compute = load_run(run_file, words[4::2]).compute
    assert {key: getattr(compute, key) for key in asked} == asked
    assert words[3::2] == ["--set"] * len(asked), "and says no more than that"


def test_nothing_is_offered_that_would_be_refused(call: Call, run_file: str) -> None:
    assert "kubealign run" not in call("plan", run_file, "--gpus", "4090", "--set", "sft.strategy={kind: full}").out


@pytest.mark.parametrize(("gpus", "column", "said"), [
    ("none", "+ host a worker", "for each worker more host memory"), ("4090", "host a worker", "for each worker host"),
])
def test_host_memory_is_said_to_be_a_workers_and_no_total(
    call: Call, run_file: str, gpus: str, column: str, said: str
) -> None:
    lines = call("plan", run_file, "--gpus", gpus).out.splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("beside it: "))
    assert said in lines[at]
    assert re.split(r"\s{2,}", lines[at + 1].strip()) == ["stage", column, "disk", "rows a pass"]


def test_an_unknown_gpu_is_refused(call: Call, run_file: str) -> None:
    said = call("plan", run_file, "--gpus", "8xB300")
    assert said.code == 2
    assert "configs/hardware/b300.yaml" in said.err


def test_a_profile_that_names_its_gpu_refuses_what_it_cannot_hold(call: Call, run_file: str) -> None:
    profile = {"name": "p", "compute": {"gpu": "4090", "dtype": "bfloat16"}, "cluster": {
        "storage": {"url": "/a/runs", "claim": "c", "mount": "/a"}, "worker": {"gpus": 1}}}
    Path("p.yaml").write_text(yaml.safe_dump(profile))
    said = call("check", run_file, "--profile", "./p.yaml", "--set", "sft.strategy={kind: full}")
    assert said.code == 2
    assert "strategy full does not fit 4090" in said.err
    assert "weights 25.1" in said.err
