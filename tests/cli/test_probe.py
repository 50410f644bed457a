"""`probe`: a real training on a small model, what it leaves in the store, and what a run makes of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from alignment.artifacts import Store
from alignment.config import Run, load_run
from alignment.config.hardware import processor
from alignment.pipeline.keys import keys
from alignment.planner.probed import Probed, read, write
from tests import small
from tests.cli.conftest import Call

SEEN = Probed("sft", "somewhere", 8, 60, 10**9, {"step": 2 * 10**9, "save": 10**9}, 12.0)


@pytest.fixture
def run(call: Call, tmp_path: Path) -> Run:
    """run.yaml in the working directory, nothing of it made."""
    tree = {"name": "small", "store": "store", "compute": {"dtype": "float32", "device": "cpu"},
            "stages": [small.BASE, small.data(tmp_path), small.train("sft", eval_rows="data/dev")]}
    Path("run.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return load_run("run.yaml")


def test_what_was_measured_is_found_again_by_the_key(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert read(store, "sft-1") is None
    write(store, "sft-1", SEEN)
    assert read(store, "sft-1") == SEEN
    assert SEEN.peak == 2 * 10**9
    (tmp_path / "probes" / "sft-1.json").write_text('{"of": "a later version"}')
    assert read(store, "sft-1") is None


def test_what_a_probe_has_refuted_here_is_not_run(call: Call, run: Run) -> None:
    refuted = dataclasses.replace(SEEN, device=processor("cpu"), refuted="out of memory: 3 GiB asked")
    write(Store("store"), keys(run)["sft"].key, refuted)
    said = call("run", "run.yaml")
    assert said.code == 2
    assert "a probe of sft on" in said.err
    assert "out of memory: 3 GiB asked; 1.9 GiB seen, 0.9 planned" in said.err
    assert f"sft: probed on {processor('cpu')}: 2 GB measured, 1 GB planned" in call("plan", "run.yaml").out
    other = call("plan", "run.yaml", "--set", "sft.epochs=2")
    assert "probed" not in other.out, "another stage"


def test_what_is_refuted_elsewhere_is_no_matter_here(call: Call, run: Run) -> None:
    write(Store("store"), keys(run)["sft"].key, dataclasses.replace(SEEN, refuted="out of memory"))
    assert call("run", "run.yaml", "--stage", "data").code == 0


@pytest.mark.parametrize(("arguments", "problem"), [
    (("--stage", "data"), "no train stage of this name"),
    (("--stage", "sft"), "what the stage reads is not finished"),
    (("--stage", "sft", "--profile", "single-24gb"), "what the stage reads is not finished"),
])
def test_what_cannot_be_probed_is_said(call: Call, run: Run, arguments: tuple[str, ...], problem: str) -> None:
    said = call("probe", "run.yaml", *arguments)
    assert said.code == 2
    assert problem in said.err
    assert not Path("store", "probes").exists()


@pytest.mark.slow
def test_a_probe_measures_every_phase_and_leaves_the_stage_unmade(call: Call, run: Run) -> None:
    for stage in ("base", "data"):
        assert call("run", "run.yaml", "--stage", stage).code == 0
    said = call("probe", "run.yaml", "--stage", "sft")
    assert said.code == 0, said.err
    seen = read(Store("store"), keys(run)["sft"].key)
    assert seen is not None
    assert set(seen.measured) == {"step", "evaluation", "save", "resume"}
    assert seen.peak > 10**6
    assert seen.refuted is None
    assert (seen.rows, seen.device) == (8, processor("cpu"))
    assert not list(Path("store", "artifacts").glob("sft-*")), "a probe makes nothing"
    assert "measured" in call("plan", "run.yaml").out
