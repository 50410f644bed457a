"""chrF, as sacrebleu computes it."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING, Any

from alignment.evaluation.measures.base import (
    POINTS,
    REFERENCES,
    Measure,
    Pooled,
    Reply,
    Rules,
    no_reference,
)
from alignment.evaluation.sacre import composed, signature_of

if TYPE_CHECKING:
    from alignment.evaluation.measures.base import Floats

ORDERS, BETA = 6, 2


def counts(reply: Reply, rules: Rules) -> tuple[float, ...]:
    """For n of 1 to 6: [n-grams of letters of the answer, of the nearest reference, in both]."""
    references = [[composed(text)] for text in reply.references]
    return tuple(map(float, _scorer()._extract_corpus_statistics([composed(reply.text)], references)[0]))


def total(sums: Floats) -> Floats:
    """chrF2 of each line of sums: F of mean precision and mean recall over the orders that both sides have, recall
    weighing twice."""
    import numpy as np

    said, wanted, both = (sums[:, part::3] for part in range(3))
    there = (said > 0) & (wanted > 0)
    orders = np.maximum(there.sum(axis=1), 1)
    precision, recall = (np.where(there, both / np.maximum(side, 1), 0.0).sum(axis=1) / orders
                         for side in (said, wanted))
    with np.errstate(invalid="ignore"):
        score = 100 * (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)
    return np.asarray(np.where(precision + recall > 0, score, 0.0))


def alone(counted: tuple[float, ...]) -> float:
    """chrF of one answer."""
    import numpy as np

    return float(total(np.array([counted]))[0])


def signature(rules: Rules, references: Collection[int]) -> str:
    return signature_of(_scorer(), references)


@cache
def _scorer() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(char_order=ORDERS, beta=BETA)


MEASURE = Measure(
    title="chrF",
    text="Corpus chrF of the whole texts: n-grams of letters up to six, recall weighing twice; sums over rows, no mean "
         "of rows. Needs no words, so it fits scripts without blanks.",
    source="Popović 2015 (aclanthology W15-3049), sacrebleu (Post 2018, arXiv:1804.08771); its signature is in "
           "results.json",
    span=POINTS, better="higher", lacks=no_reference, needs=REFERENCES, pooled=Pooled(counts, total, alone),
    signature=signature)
