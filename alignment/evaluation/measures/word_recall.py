"""How much of a short reference a long answer says."""

from __future__ import annotations

from alignment.evaluation.measures.base import REFERENCES, SHARE, Measure, Reply, Rules, no_reference
from alignment.rewards.answers import word_recall


def number(reply: Reply, rules: Rules) -> float:
    """Share of the reference's words that the answer has, the best over the references."""
    return word_recall(rules.part(reply.text), rules.parts(reply.references), rules.language)


MEASURE = Measure(
    title="Word recall",
    text="Mean share of the nearest reference's words that the answer has, both normalised as for exact_match: what a "
         "long answer to a short reference is measured by.",
    source="the recall in SQuAD's F1 (arXiv:1606.05250). qa_expert's eval_hotpot_qa.py has the same but where a "
           "reference says a word twice: there it counts once, against two",
    span=SHARE, better="higher", number=number, lacks=no_reference, needs=REFERENCES)
