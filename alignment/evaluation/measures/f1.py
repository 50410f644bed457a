"""F1 of words after normalisation."""

from __future__ import annotations

from alignment.evaluation.measures.base import REFERENCES, SHARE, Measure, Reply, Rules, no_reference
from alignment.rewards.answers import token_f1


def number(reply: Reply, rules: Rules) -> float:
    """The best F1 of the compared parts over the references, words counted with repetition."""
    return token_f1(rules.part(reply.text), rules.parts(reply.references), rules.language)


MEASURE = Measure(
    title="F1",
    text="Mean overlap of words between answer and nearest reference (SQuAD's token F1; in scripts without blanks, of "
         "characters).",
    source="SQuAD 1.1 (Rajpurkar et al. 2016, arXiv:1606.05250), MLQA (Lewis et al. 2020, arXiv:1910.07475)",
    span=SHARE, better="higher", number=number, lacks=no_reference, needs=REFERENCES)
