"""How long answers are."""

from __future__ import annotations

from alignment.evaluation.measures.base import POSITIVE, Measure, Reply, Rules
from alignment.words import words


def number(reply: Reply, rules: Rules) -> float:
    return float(len(words(reply.text)))


MEASURE = Measure(
    title="Words",
    text="Mean length of the answers in words (in scripts without blanks, characters). MODEL may be `reference`, for "
         "comparison.",
    source="alignment/words.py", span=POSITIVE, better="neither", number=number)
