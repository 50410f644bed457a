"""How sure a mean, a number of all rows together or a win rate is.

Pure functions over numbers: no torch, no files, no models; what one answer is worth is measures/. Intervals are
percentile bootstraps over rows (Efron & Tibshirani 1993, ch. 13); a comparison of two models resamples rows, so that
both models always meet the same questions (Koehn 2004, aclanthology W04-3250). Equal numbers give a bootstrap nothing
to draw: for shares Wilson's score interval (1927, doi:10.2307/2276774) says how little 0 of 24 proves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVEL = 0.95
"""Coverage of every interval."""
_CELLS = 2_000_000
"""Numbers drawn at once while resampling; bounds the memory at about 30 MB."""


class Interval(NamedTuple):
    """A value with its 95% interval; `dropped` values were not finite and took no part. All NaN when none did."""

    value: float
    low: float
    high: float
    dropped: int = 0


class WinRate(NamedTuple):
    """Share of rows where the first scores higher, ties counted half; `dropped` pairs had a NaN on either side."""

    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    dropped: int


def finite_mean(values: Sequence[float]) -> float:
    """Mean of the finite values; NaN without any."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def mean_ci(values: Sequence[float], *, share: bool = False, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of the finite values with its bootstrap interval.

    Args:
        share: the values lie in [0, 1]; where all are equal, the interval is Wilson's.
    """
    all_values = np.asarray(values, dtype=np.float64)
    kept = all_values[np.isfinite(all_values)]
    if share and _equal(kept):
        return Interval(float(kept[0]), *wilson(float(kept[0]), len(kept)), len(all_values) - len(kept))
    return _interval(kept[:, None], lambda means: means[:, 0], resamples, seed, len(all_values) - len(kept))


def difference_ci(
    a: Sequence[float], b: Sequence[float], *, share: bool = False, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of a - b over paired rows; `share` as for mean_ci. Raises ValueError when the lengths differ."""
    first, second = _paired(a, b)
    # Two equal infinities would subtract to NaN with a warning; such a pair is dropped either way.
    with np.errstate(invalid="ignore"):
        differences = first - second
    kept = differences[np.isfinite(differences)]
    if share and _equal(kept):
        low, high = _equal_rate((float(kept[0]) + 1) / 2, len(kept))
        return Interval(float(kept[0]), 2 * low - 1, 2 * high - 1, len(differences) - len(kept))
    return mean_ci(differences.tolist(), resamples=resamples, seed=seed)


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share of `count` rows."""
    square = NormalDist().inv_cdf((1 + LEVEL) / 2) ** 2
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = math.sqrt(square * (share * (1 - share) / count + square / (4 * count**2))) / (1 + square / count)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def _equal_rate(rate: float, count: int) -> tuple[float, float]:
    """The interval of a win rate of `count` equal outcomes.

    Where all are ties, what is a share is that of the other rows, 0 of `count`, all won or all lost at the most.
    """
    if rate == 0.5:
        half = wilson(0.0, count)[1] / 2
        return rate - half, rate + half
    return wilson(rate, count)


def _equal(values: Floats) -> bool:
    return len(values) > 0 and bool((values == values[0]).all())


def pooled_ci(
    rows: Floats, total: Callable[[Floats], Floats], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """A number that sums over rows make (BLEU, perplexity), with its interval: the sums of resampled rows.

    Args:
        rows: (n, K) what each row adds; a row that is not finite takes no part.
        total: (B, K) sums -> (B,) numbers.
    """
    kept = rows[np.isfinite(rows).all(axis=1)]
    return _interval(kept, lambda means: total(means * len(kept)), resamples, seed, len(rows) - len(kept))


def pooled_difference_ci(
    a: Floats, b: Floats, total: Callable[[Floats], Floats], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """`pooled_ci` of a less that of b, both over the same resampled rows. Raises ValueError when shapes differ."""
    if a.shape != b.shape:
        raise ValueError(f"paired rows have different shapes: {a.shape} and {b.shape}")
    width = a.shape[1]
    return pooled_ci(np.concatenate([a, b], axis=1), lambda sums: total(sums[:, :width]) - total(sums[:, width:]),
                     resamples=resamples, seed=seed)


def win_rate(a: Sequence[float], b: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> WinRate:
    """How often a beats b on the same row; Wilson's interval where all outcomes are equal.

    Raises:
        ValueError: the lengths differ.
    """
    first, second = _paired(a, b)
    known = ~(np.isnan(first) | np.isnan(second))
    first, second = first[known], second[known]
    outcome = np.where(first > second, 1.0, np.where(first == second, 0.5, 0.0))
    if _equal(outcome):
        rate = float(outcome[0])
        low, high = _equal_rate(rate, len(outcome))
    else:
        rate, low, high, _ = _interval(outcome[:, None], lambda means: means[:, 0], resamples, seed, 0)
    wins, ties = int((first > second).sum()), int((first == second).sum())
    return WinRate(rate, low, high, wins, ties, len(first) - wins - ties, int((~known).sum()))


def histogram(scores: Mapping[str, Sequence[float]], bins: int = 20) -> dict[str, dict[str, list[float]]]:
    """Counts per bin for each name, with edges common to all; names without a finite score are left out."""
    finite = {name: [s for s in values if math.isfinite(s)] for name, values in scores.items()}
    together = [s for values in finite.values() for s in values]
    if not together:
        return {}
    low, high = min(together), max(together)
    if high - low < 1e-9 * max(1.0, abs(low), abs(high)):  # too narrow for numpy to divide
        low, high = low - 0.5, high + 0.5
    edges = np.histogram_bin_edges(together, bins=bins, range=(low, high))
    return {
        name: {"edges": edges.tolist(), "counts": np.histogram(values, bins=edges)[0].tolist()}
        for name, values in finite.items()
        if values
    }


def _paired(a: Sequence[float], b: Sequence[float]) -> tuple[Floats, Floats]:
    if len(a) != len(b):
        raise ValueError(f"paired values have different lengths: {len(a)} and {len(b)}")
    return np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)


def _interval(
    rows: Floats, statistic: Callable[[Floats], Floats], resamples: int, seed: int, dropped: int
) -> Interval:
    """Percentile interval of a statistic of column means; rows is (n, K), statistic maps (B, K) to (B,)."""
    if not len(rows):
        return Interval(math.nan, math.nan, math.nan, dropped)
    value = float(statistic(rows.mean(axis=0, keepdims=True))[0])
    drawn = np.concatenate([statistic(means) for means in _resampled_means(rows, resamples, seed)])
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    # Means of equal numbers may differ in the last bit; that must not put the value outside its interval.
    return Interval(value, min(float(low), value), max(float(high), value), dropped)


def _resampled_means(rows: Floats, resamples: int, seed: int) -> Iterator[Floats]:
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // len(rows))
    for start in range(0, resamples, step):
        picks = rng.integers(0, len(rows), size=(min(step, resamples - start), len(rows)))
        yield rows[picks].mean(axis=1)
