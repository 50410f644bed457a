"""`plan --gpus` and what `check` makes of a GPU that is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

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
