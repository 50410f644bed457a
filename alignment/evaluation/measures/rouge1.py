"""ROUGE-1: overlap of words."""

from __future__ import annotations

from alignment.evaluation.measures.base import REFERENCES, SHARE, Measure, Reply, Rules, no_reference
from alignment.evaluation.rouge import SOURCE, UNITS, rouge


def number(reply: Reply, rules: Rules) -> float:
    """F-measure of the whole texts, the best over the references."""
    return rouge("rouge1", reply.text, reply.references, rules.segmentation)


MEASURE = Measure(
    title="ROUGE-1",
    text=f"Mean ROUGE-1 F-measure: overlap of words{UNITS}, over whole texts.",
    source=SOURCE, span=SHARE, better="higher", number=number, lacks=no_reference, needs=REFERENCES)
