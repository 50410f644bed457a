"""How likely a model finds the reference answers."""

from __future__ import annotations

import math

import numpy as np

from alignment.evaluation.measures.base import Floats, Measure, Pooled, Reply, Rules


def lacks(reply: Reply, rules: Rules) -> str | None:
    return None if reply.likelihood is not None and reply.likelihood[1] > 0 else "no reference answer"


def counts(reply: Reply, rules: Rules) -> tuple[float, ...]:
    """(summed log-probability in nats, tokens)."""
    assert reply.likelihood is not None
    return tuple(map(float, reply.likelihood))


def total(sums: Floats) -> Floats:
    """exp of the mean negative log-probability: every token weighs the same."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(-sums[:, 0] / sums[:, 1]))


def number(reply: Reply, rules: Rules) -> float:
    """Of one reference; NaN where its log-probability is not finite."""
    log_prob, tokens = counts(reply, rules)
    return float(total(np.array([[log_prob, tokens]]))[0]) if math.isfinite(log_prob) else math.nan


MEASURE = Measure(
    title="Perplexity",
    text="exp of the mean negative log-probability per token of the reference answers. Comparable between models with "
         "one tokenizer and template only.",
    source="over all tokens of all references", span="1 or more", better="lower", number=number, lacks=lacks,
    needs="rows have references", pooled=Pooled(counts, total))
