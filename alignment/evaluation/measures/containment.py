"""Whether a long answer says the whole reference."""

from __future__ import annotations

from alignment.evaluation.measures.base import REFERENCES, SHARE, Measure, Reply, Rules, no_reference
from alignment.rewards.answers import contains


def number(reply: Reply, rules: Rules) -> float:
    """1.0 where the words of a reference stand in the answer, one after the other."""
    return contains(rules.part(reply.text), rules.parts(reply.references), rules.language)


MEASURE = Measure(
    title="Containment",
    text="Share of rows whose answer has a reference in it, whole words one after the other, both normalised as for "
         "exact_match.",
    source="qa_expert's eval_hotpot_qa.py, which looks for letters and so finds `no` in `not known`; whole words here",
    span=SHARE, better="higher", number=number, lacks=no_reference, needs=REFERENCES)
