"""Whether answers end by themselves."""

from __future__ import annotations

from alignment.evaluation.measures.base import SHARE, Measure, Reply, Rules


def number(reply: Reply, rules: Rules) -> float:
    return float(reply.finished)


MEASURE = Measure(
    title="Finished", text="Share of answers that ended by themselves within max_new_tokens.",
    source="ours", span=SHARE, better="higher", number=number)
