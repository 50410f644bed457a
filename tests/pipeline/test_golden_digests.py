"""Digests of the shipped runs, as they were when their stages were first made: what is finished stays finished.

A change here makes every user's finished stages anew. Where that is meant (a stage made something wrong), its kind's or
method's `revision` is raised, and the digests here with it.

All changed once when names of stages went out of digests, seeds of stages that draw nothing too, and the dtype came in
(docs/architecture.md, What a digest is made of). They are those of a CPU without bfloat16 of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment.config import load_run
from alignment.config.arithmetic import settled
from alignment.pipeline.keys import keys

ROOT = Path(__file__).parents[2]
GOLDEN: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("golden_digests.json").read_text("utf-8"))


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_stages_of_a_shipped_run_keep_their_digests(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "real-qa" and not (ROOT.parent / "shared" / "data").is_dir():
        pytest.skip("reads ../shared/data, which is not here")
    monkeypatch.chdir(ROOT)
    run = settled(load_run(ROOT / "configs" / "runs" / f"{name}.yaml"), lambda stage: None)
    assert {stage: key.digest for stage, key in keys(run).items()} == GOLDEN[name]
