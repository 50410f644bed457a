"""Real judged pairs through an evaluation of judges: a function is right as the file says, a tiny model is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.pipeline import execute
from alignment.words import words
from tests import small

THEIRS = {"name": "theirs", "kind": "import", "role": "reward", "model": small.BASE["model"], "dtype": "float32"}
FILES = {"pandalm_testset_v1.json": ({"format": "pandalm"}, {"ties": "keep", "max_bad": None}),
         "hh_harmless_1400.jsonl": ({"format": "hh-transcript"}, {})}


@pytest.mark.parametrize("name", FILES)
def test_judges_are_held_to_real_pairs(real_data: Path, tmp_path: Path, name: str) -> None:
    source, keys = FILES[name]
    data = {"name": "pairs", "kind": "import", "data": [{"path": str(real_data / "preferences" / name), **source}],
            "split": {"by": "ratio", "ratios": {"test": 1.0}}, **keys}
    judges = {"longer": {"function": "word_count"}, "theirs": {"model": "theirs"}}
    artifact = execute(small.run(tmp_path, THEIRS, data, {
        "name": "eval", "kind": "evaluate", "judges": judges, "rows": "pairs/test", "take": 60, "bootstrap": 100},
        count=8)).artifacts["eval"]
    assert artifact is not None
    metrics = artifact.manifest.metrics
    lines: list[dict[str, Any]] = [json.loads(line) for line in (artifact.path() / "pairs.jsonl").read_text(
        encoding="utf-8").split("\n") if line]
    pairs = [(len(words(line["completion"])), len(words(line["rejected"]))) for line in lines
             if line["label"] == "completion"]
    assert len(lines) == 60
    assert metrics["longer.accuracy"] == pytest.approx(sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs))
    assert metrics["longer.prefers_longer"] == 1
    assert metrics["theirs.read"] > 0.9
    assert 0 < metrics["theirs.loss"] < 1
    assert ("longer.annotator_agreement" in metrics) == (name[0] == "p")
    assert {"ties": any(line["label"] == "tie" for line in lines)} == {"ties": name[0] == "p"}
