"""The choices of a row of TruthfulQA's CSV file: the best answer, then the wrong ones. Loaded by the harness, from
truthfulqa_local.yaml."""

from typing import Any


def choices(document: dict[str, Any]) -> list[str]:
    """Answers, the right one first."""
    wrong = [one.strip() for one in document["Incorrect Answers"].split(";")]
    return [document["Best Answer"].strip(), *filter(None, wrong)]
