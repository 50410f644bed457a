"""Exact match after normalisation."""

from __future__ import annotations

from alignment.evaluation.measures.base import REFERENCES, SHARE, Measure, Reply, Rules, no_reference
from alignment.rewards.answers import exact_match


def number(reply: Reply, rules: Rules) -> float:
    """1.0 where the compared part of the answer is that of a reference."""
    return exact_match(rules.part(reply.text), rules.parts(reply.references), rules.language)


MEASURE = Measure(
    title="Exact match",
    text="Share of rows whose answer is a reference, after SQuAD's normalisation (case, punctuation, articles), MLQA's "
         "where letters are not Latin or language is given. answer_pattern says which part is compared.",
    source="SQuAD 1.1 (Rajpurkar et al. 2016, arXiv:1606.05250), MLQA (Lewis et al. 2020, arXiv:1910.07475)",
    span=SHARE, better="higher", number=number, lacks=no_reference, needs=REFERENCES)
