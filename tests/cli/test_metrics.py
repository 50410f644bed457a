"""Metrics in a run file: what cannot be measured is said before launch, and names that are none by what was meant."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.evaluation.measures import NAMES
from tests.cli.conftest import Call, Said

ROWS = [{"instruction": f"Say number {n}.", "input": "", "output": f"number {n * 7}"} for n in range(40)]


@pytest.fixture
def checked(call: Call) -> Callable[..., Said]:
    """Check a run that evaluates a tiny model on rows with numbers in their references, with these keys and aims."""
    def check(*aims: str, **keys: Any) -> Said:
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        run = {"name": "named", "compute": {"dtype": "float32", "device": "cpu"}, "aims": list(aims), "stages": [
            {"name": "base", "kind": "import", "model": {"source": "tiny"}},
            {"name": "seed", "kind": "import", "data": [{"path": "rows.jsonl", "format": "alpaca"}],
             "split": {"by": "ratio", "ratios": {"train": 0.5, "test": 0.5}}},
            {"name": "tuned", "kind": "train", "method": "sft", "model": "base", "rows": ["seed/train"],
             "learning_rate": 1e-3},
            {"name": "eval", "kind": "evaluate", "models": ["base", "tuned"], "rows": "seed/test", **keys}]}
        Path("run.yaml").write_text(yaml.safe_dump(run, sort_keys=False))
        return call("check", "run.yaml")

    return check


def test_a_name_that_is_none_is_told_what_was_meant_and_all_there_are(checked: Callable[..., Said]) -> None:
    said = checked(metrics=["rouge-1"])
    assert said.code == 2
    assert "perhaps rouge1; one of " + ", ".join(NAMES) in " ".join(said.err.split())


@pytest.mark.parametrize(("keys", "told"), [
    ({"metrics": ["yes_no"]}, "no row can be measured by yes_no"),
    ({"metrics": ["f1", "question_type"]}, "no row can be measured by question_type"),
    ({"metrics": ["f1", "f1"]}, "names a metric twice"), ({"metrics": []}, "metrics"),
    ({"metrics": ["perplexity"], "perplexity": False}, "says that it is not measured, and metrics names it"),
    ({"metrics": ["f1"], "segmentation": "jieba"}, "is read by none of the metrics that are measured"),
    ({"metrics": ["rouge1"], "language": "zh"}, "is read by none of the metrics that are measured"),
    ({"metrics": ["rouge1"], "answer_pattern": "(?P<answer>.*)"}, "is read by none of the metrics"),
])
def test_what_cannot_be_measured_is_refused(checked: Callable[..., Said], keys: dict[str, Any], told: str) -> None:
    said = checked(**keys)
    assert said.code == 2
    assert told in said.err


def test_what_can_be_measured_is_accepted_and_aims_know_it(checked: Callable[..., Said]) -> None:
    said = checked("eval.tuned.bleu > eval.base.bleu", "eval.tuned_vs_base.final_number_gain_low > 0",
                   "eval.tuned.rouge2 > 0.1",
                   metrics=["final_number", "rouge2", "bleu", "chrf", "word_recall", "finished"])
    assert (said.code, said.err) == (0, said.err), said.err
    assert "error" not in said.err


@pytest.mark.parametrize(("aim", "told"), [
    ("eval.tuned.bleu > 0", "makes this metric only when metrics has bleu; rows have references"),
    ("eval.tuned.perplexity < 9", "only when metrics has perplexity, or metrics is left out and perplexity is true"),
    ("eval.tuned.bleau > 0", "names a metric that its stage does not make"),
    ("eval.tuned_vs_base.chrf_gain > 0", "makes this metric only when metrics has chrf"),
])
def test_an_aim_on_a_metric_that_is_not_named_is_refused(checked: Callable[..., Said], aim: str, told: str) -> None:
    said = checked(aim, metrics=["f1", "rouge1"])
    assert said.code == 2
    assert told in " ".join(said.err.split())


def test_explain_tells_of_each(call: Call) -> None:
    said = call("explain", "metric.bleu")
    assert said.code == 0
    assert "Corpus BLEU" in said.out
    assert "0 to 100" in said.out
    for name in NAMES:
        assert f"metric.{name}" not in call("explain", f"metric.{name}").err
