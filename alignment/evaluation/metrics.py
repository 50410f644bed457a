"""What one answer is worth against its references, and how sure a mean or a win rate over rows is.

Pure functions over text and numbers: no torch, no files, no models. Exact match and token F1 are the rewards
room's own (SQuAD's, MLQA's). ROUGE-L is `rouge_score`'s (Lin 2004, aclanthology W04-1013) over `alignment.words`,
which are that package's on English. Intervals are percentile bootstraps over rows (Efron & Tibshirani 1993, ch. 13);
a comparison of two models resamples rows, so that both models always meet the same questions (Koehn 2004,
aclanthology W04-3250). Equal numbers give a bootstrap nothing to draw: for shares Wilson's score interval (1927,
doi:10.2307/2276774) says how little 0 of 24 proves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer

from alignment.rewards import exact_match, token_f1
from alignment.words import words

Floats = NDArray[np.float64]
LEVEL = 0.95
"""Coverage of every interval."""
_CELLS = 2_000_000
"""Numbers drawn at once while resampling; bounds the memory at about 30 MB."""


# --- one answer -----------------------------------------------------------------------------------------------


class _Words:
    def tokenize(self, text: str) -> list[str]:
        return words(text)


_ROUGE = RougeScorer(["rougeL"], tokenizer=_Words())


def answer_of(text: str, pattern: str | None) -> str:
    """Group `answer` of the pattern's first match (dot matches newlines), or the whole text without one."""
    match = re.search(pattern, text, re.DOTALL) if pattern is not None else None
    found = match["answer"] if match is not None else None
    return text if found is None else str(found)


def text_metrics(
    text: str, references: Sequence[str], pattern: str | None = None, language: str | None = None
) -> dict[str, float]:
    """exact_match, f1 and rouge_l (0..1) of an answer, each the best over the references; NaN without any.

    Exact match and F1 compare `answer_of` both sides by the rules of `language`; ROUGE-L compares the whole texts.
    """
    if not references:
        return {"exact_match": math.nan, "f1": math.nan, "rouge_l": math.nan}
    short = [answer_of(reference, pattern) for reference in references]
    said = answer_of(text, pattern)
    return {
        "exact_match": exact_match(said, short, language),
        "f1": token_f1(said, short, language),
        "rouge_l": rouge_l(text, references),
    }


def rouge_l(text: str, references: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of words, the best over the references."""
    return float(_ROUGE.score_multi(list(references), text)["rougeL"].fmeasure)


# --- many answers ---------------------------------------------------------------------------------------------


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


def perplexity_ci(
    log_probs: Sequence[float], tokens: Sequence[int], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """exp(-sum of log-probabilities / number of tokens) over all rows: every token weighs the same.

    Args:
        log_probs: one row's summed log-probability (nats).
        tokens: one row's number of tokens.
    """
    columns = np.stack(_paired(log_probs, tokens), axis=1)
    kept = columns[np.isfinite(columns).all(axis=1) & (columns[:, 1] > 0)]

    def perplexity(means: Floats) -> Floats:
        with np.errstate(over="ignore"):
            return np.exp(-means[:, 0] / means[:, 1])

    return _interval(kept, perplexity, resamples, seed, len(columns) - len(kept))


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
