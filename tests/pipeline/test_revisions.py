"""A raised revision makes anew what a faulty version made, and what was made from that; nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.config import KINDS, Dpo, ImportData, Sample, Sft, Stage, TrainBase, parse_run
from alignment.pipeline.keys import keys
from tests import small


def digests(folder: Path) -> dict[str, str]:
    sample = {"name": "rs", "kind": "sample", "model": "sft", "prompts": ["data/dev"], "score": {"function": "brevity"}}
    run = small.run(folder, small.train("sft"), sample, small.train("dpo", "dpo", "sft", rows=["rs/pairs"]))
    return {name: key.digest for name, key in keys(run).items()}


RAISED = {"import-data": {"import-data": 2}, "sample": {"sample": 2}, "evaluate": {"evaluate": 2},
          "judged-pairs": {"sample": 2}}
"""2: keys of rows that were dropped unsaid, blank cells that were values, turns that stood twice; words in every script
(exact match, F1, brevity, overlap). Judged pairs are samples."""


def test_every_revision_is_the_first_until_something_was_wrong() -> None:
    assert {kind.tag: kind.revisions() for kind in KINDS} == {kind.tag: RAISED.get(kind.tag, {}) for kind in KINDS}


@pytest.mark.parametrize(("kind", "changed"), [
    (ImportData, {"data", "sft", "rs", "dpo"}), (Sft, {"sft", "rs", "dpo"}), (Sample, {"rs", "dpo"}), (Dpo, {"dpo"}),
    (TrainBase, {"sft", "rs", "dpo"}), (Stage, set()),
], ids=lambda value: getattr(value, "__name__", ""))
def test_it_changes_the_digests_of_the_kind_and_of_what_comes_after(
    kind: type[Stage], changed: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digests(tmp_path)
    monkeypatch.setattr(kind, "revision", kind.revision + 1)
    after = digests(tmp_path)
    assert {name for name in before if before[name] != after[name]} == changed


def test_a_method_and_its_kind_are_raised_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dpo, "revision", 2)
    own = digests(tmp_path)
    monkeypatch.setattr(TrainBase, "revision", 2)
    both = digests(tmp_path)
    assert own["dpo"] != both["dpo"]
    assert Dpo.revisions() == {"dpo": 2, "train": 2}


def test_what_computed_in_bfloat16_is_made_again_and_nothing_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions of merged adapters."""
    sample = {"kind": "sample", "model": "base", "prompts": ["data/dev"], "score": {"function": "brevity"}}
    run = small.run(tmp_path, {"name": "one", **sample, "dtype": "bfloat16"},
                    {"name": "two", **sample, "dtype": "float32"})
    now = keys(run)
    monkeypatch.setattr(Sample, "mended", Stage.mended)
    assert {name for name, before in keys(run).items() if before.digest != now[name].digest} == {"one"}


@pytest.mark.parametrize(("more", "changed"), [
    ({}, False), ({"strategy": {"kind": "full"}}, False),
    ({"strategy": {"kind": "lora", "r": 4, "alpha": 8, "dropout": 0.1}}, True),
    ({"loss": "assistant"}, False), ({"too_long": "truncate-prompt"}, False),
    ({"loss": "all", "too_long": "truncate-prompt"}, True), ({"eval_rows": "data/dev"}, True),
    ({"method": "ppo", "eval_rows": "data/dev"}, False),
])
def test_a_fault_of_some_stages_leaves_the_digests_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], changed: bool
) -> None:
    """Dropout that was not honoured, whole conversations dropped that might be cut, means over eval_rows."""
    run = small.run(tmp_path, small.train("one"), small.train("two", **more), small.train("three", model="two"))
    now = keys(run)
    for kind in (TrainBase, Sft):
        monkeypatch.setattr(kind, "mended", Stage.mended)
    before = keys(run)
    other = {"two", "three"} if changed else set()
    assert {name for name in now if now[name].digest != before[name].digest} == other


def test_rows_that_were_cut_as_the_file_orders_its_ratios_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest sorts keys, as the API server does."""
    def key(ratios: dict[str, float]) -> str:
        stage = {**small.data(tmp_path), "split": {"by": "ratio", "ratios": ratios}}
        return keys(parse_run(yaml.safe_dump({"name": "r", "stages": [stage]}, sort_keys=False)))["data"].digest

    usual, other = {"train": 0.8, "dev": 0.1, "test": 0.1}, {"test": 0.1, "train": 0.8, "dev": 0.1}
    now = key(usual)
    assert now == key(other)
    monkeypatch.setattr(ImportData, "mended", Stage.mended)
    assert key(usual) != now
