"""What judges say of pairs of answers, as numbers: verdicts, agreement, calibration, what places and lengths do to it.

Pure functions over scores and verdicts; no models, no files. A verdict names the field of the row that is preferred,
`completion` (of a preference the chosen answer) or `rejected`, or is `tie`; None where there is none.

Agreement beyond chance is Cohen's kappa (1960, doi:10.1177/001316446002000104) with every pair counted in both orders:
a file of preferences has the better answer in the first place, and kappa of a side that is always the same would be 0
however right a judge is. Calibration is that of Guo et al. 2017 (arXiv:1706.04599) over the confidence of the side that
a reward model prefers, sigmoid of its margin, as Bradley and Terry (1952, doi:10.2307/2334029) have it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from alignment.evaluation.metrics import Floats, mean_ci, wilson
from alignment.rewards.judge import Unread, Verdict

Side = Literal["completion", "rejected", "tie"]
BINS = 10
"""Bins of a calibration, from 0.5 to 1: a confidence is that of the side which is preferred."""


class Agreement(NamedTuple):
    """Share of the rows on which two say the same, with its 95% interval; kappa is NaN where both always say tie."""

    agreement: float
    low: float
    high: float
    kappa: float
    rows: int


def verdict_of(first: float, second: float) -> Side | None:
    """Which of two scores is higher; None where one is no number."""
    if math.isnan(first) or math.isnan(second):
        return None
    return "tie" if first == second else "completion" if first > second else "rejected"


def agreement_of(one: Sequence[Side | None], other: Sequence[Side | None], **draws: int) -> Agreement:
    """How far two agree on the rows of which both have a verdict. Raises ValueError when the lengths differ."""
    both = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    share = mean_ci([float(a == b) for a, b in both], share=True, **draws)
    return Agreement(share.value, share.low, share.high, kappa(both), len(both))


def kappa(pairs: Sequence[tuple[Side, Side]]) -> float:
    """Cohen's kappa of two verdicts on each row, every row in both orders: 1 where they always agree, 0 where they
    agree as often as their shares of ties alone would have it; NaN without rows, and where both say nothing but tie."""
    if not pairs:
        return math.nan
    seen = sum(a == b for a, b in pairs) / len(pairs)
    ties = [sum(pair[side] == "tie" for pair in pairs) / len(pairs) for side in (0, 1)]
    chance = ties[0] * ties[1] + (1 - ties[0]) * (1 - ties[1]) / 2
    return math.nan if chance == 1 else (seen - chance) / (1 - chance)


def calibration(margins: Sequence[float]) -> dict[str, Any]:
    """How often a reward model is right where it is so sure, over pairs of which the first answer is the better one.

    Args:
        margins: score of the first less that of the second; those that are not finite take no part.

    Returns:
        bins: of those that hold pairs {low, high, confidence, right, right_low, right_high, rows}, by confidence; ece:
        mean distance of `right` from `confidence`, weighted by rows; loss: mean -log sigmoid(margin), in nats.
    """
    known = np.array([margin for margin in margins if math.isfinite(margin)], dtype=np.float64)
    if not len(known):
        return {"bins": [], "ece": math.nan, "loss": math.nan}
    confidence = 1 / (1 + np.exp(-np.abs(known)))
    right = np.where(known > 0, 1.0, np.where(known == 0, 0.5, 0.0))
    place = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    bins = [_bin(number, confidence[place == number], right[place == number]) for number in np.unique(place).tolist()]
    ece = sum(one["rows"] * abs(one["right"] - one["confidence"]) for one in bins) / len(known)
    return {"bins": bins, "ece": ece, "loss": float(np.logaddexp(0.0, -known).mean())}


def _bin(number: int, confidence: Floats, right: Floats) -> dict[str, Any]:
    share = float(right.mean())
    low, high = wilson(share, len(right))
    return {"low": 0.5 + number / 2 / BINS, "high": 0.5 + (number + 1) / 2 / BINS, "rows": len(right),
            "confidence": float(confidence.mean()), "right": share, "right_low": low, "right_high": high}


class ByLength(NamedTuple):
    """What lengths do to a judge, over pairs whose answers differ in length.

    Attributes:
        shorter, longer: share right where the better answer is the shorter, the longer one, ties counted half.
        prefers_longer: share of pairs in which the judge prefers the longer answer, ties counted half.
        is_longer: share of pairs whose better answer is the longer one; what a judge without a bias would prefer.
    """

    shorter: float
    longer: float
    prefers_longer: float
    is_longer: float
    rows_shorter: int
    rows_longer: int


def by_length(verdicts: Sequence[Side | None], lengths: Sequence[tuple[int, int]]) -> ByLength:
    """Of pairs whose first answer is the better one.

    Args:
        lengths: of both answers.
    """
    value = {"completion": 1.0, "tie": 0.5, "rejected": 0.0}
    told = [(value[said], first - second) for said, (first, second) in zip(verdicts, lengths, strict=True)
            if said is not None and first != second]
    shorter, longer = [right for right, more in told if more < 0], [right for right, more in told if more > 0]
    prefers = [right if more > 0 else 1 - right for right, more in told]
    return ByLength(_mean(shorter), _mean(longer), _mean(prefers), len(longer) / len(told) if told else math.nan,
                    len(shorter), len(longer))


def by_place(compared: Sequence[tuple[Verdict | Unread, Verdict | Unread]]) -> dict[str, Any]:
    """What the order does in which a judge is shown two answers, in the terms of Zheng et al. 2023 (arXiv:2306.05685).

    Args:
        compared: of each pair the verdict with the first answer in the first place, and that with the second there.

    Returns:
        rows: pairs with two verdicts; consistent: share of them on which the orders agree; prefers_first,
        prefers_second: shares on which it chose whatever stood there; half_tie: shares on which it said tie in one
        order alone; unread: reason -> pairs.
    """
    unread = Counter(next(said.reason for said in both if isinstance(said, Unread)) for both in compared
                     if any(isinstance(said, Unread) for said in both))
    read = [both for both in compared if not any(isinstance(said, Unread) for said in both)]
    counts = Counter(
        "consistent" if both in (("first", "second"), ("second", "first"), ("tie", "tie"))
        else "prefers_first" if both == ("first", "first") else "prefers_second" if both == ("second", "second")
        else "half_tie" for both in read)
    shares = {name: counts[name] / len(read) if read else math.nan
              for name in ("consistent", "prefers_first", "prefers_second", "half_tie")}
    return {"rows": len(read), **shares, "unread": dict(unread)}


SECTION_WEIGHT: Mapping[str, float] = {"math-prm": 984 / 447}
"""Kind -> what a row of it counts in its section: RewardBench's maths rows weigh as much as its code."""


def section_shares(right: Sequence[tuple[str, str | None, float]]) -> dict[str, dict[str, float]]:
    """Section -> its accuracy, as RewardBench has it, and rows.

    Args:
        right: (section, kind, 1 where the judge is right, 0.5 for a tie, 0) of each row.
    """
    sections: dict[str, list[tuple[float, float]]] = {}
    for section, kind, value in right:
        sections.setdefault(section, []).append((SECTION_WEIGHT.get(kind or "", 1.0), value))
    return {section: {"accuracy": sum(weight * value for weight, value in own) / sum(weight for weight, _ in own),
                      "rows": len(own)} for section, own in sections.items()}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
