"""How likely a model finds the reference answers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from alignment.evaluation.measures.base import Measure, Pooled, Reply, Rules

if TYPE_CHECKING:
    from alignment.evaluation.measures.base import Floats


def lacks(reply: Reply, rules: Rules) -> str | None:
    return None if reply.likelihood is not None and reply.likelihood[1] > 0 else "no reference answer"


def counts(reply: Reply, rules: Rules) -> tuple[float, ...]:
    """(summed log-probability in nats, tokens)."""
    assert reply.likelihood is not None
    return tuple(map(float, reply.likelihood))


def total(sums: Floats) -> Floats:
    """exp of the mean negative log-probability: every token weighs the same."""
    import numpy as np

    with np.errstate(over="ignore"):
        return np.asarray(np.exp(-sums[:, 0] / sums[:, 1]))


def alone(counted: tuple[float, ...]) -> float:
    """Of one reference; NaN where its log-probability is not finite."""
    log_prob, tokens = counted
    try:
        return math.exp(-log_prob / tokens) if math.isfinite(log_prob) else math.nan
    except OverflowError:
        return math.inf


MEASURE = Measure(
    title="Perplexity",
    text="exp of the mean negative log-probability per token of the reference answers. Comparable between models with "
         "one tokenizer and template only.",
    source="over all tokens of all references", span="1 or more", better="lower", lacks=lacks,
    needs="rows have references", pooled=Pooled(counts, total, alone))
