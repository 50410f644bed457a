"""Win rates as they would be if both answers were as long as each other. Pure.

After AlpacaEval 2 (Dubois et al. 2024, arXiv:2404.04475): the chance of winning is sigmoid(a + b tanh(d / s)), d being
how much longer the challenger's answer is, in words, and s the standard deviation of d; the length-controlled win rate
is sigmoid(a). Theirs has a third term, how hard each instruction is, which they fit over many models on one fixed set;
here it is left out. Ties count half. b is held by a weak ridge, so that lengths which tell every win from every loss
give a finite one; a is free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from alignment.evaluation.metrics import LEVEL, Floats, Interval, win_rate

RIDGE = 0.1
"""What b squared is charged, in rows: at a hundred rows it takes about a hundredth of b."""
_MOST = 12.0
"""a at most: a win rate within 6e-6 of 1."""
_STEPS = 40
_CELLS = 2_000_000
"""Numbers drawn at once while resampling."""


def length_controlled(
    outcomes: Sequence[float], lengths: Sequence[tuple[float, float]], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """The length-controlled win rate with its percentile bootstrap interval over rows.

    Args:
        outcomes: 1 where the challenger wins, 0.5 for a tie, 0; NaN rows take no part and are counted as dropped.
        lengths: (challenger's, baseline's) of each row. Where the two are as long as each other in every row, it is the
            win rate.

    Raises:
        ValueError: the lengths of the arguments differ.
    """
    if len(outcomes) != len(lengths):
        raise ValueError(f"paired values have different lengths: {len(outcomes)} and {len(lengths)}")
    won, pairs = np.asarray(outcomes, dtype=np.float64), np.asarray(lengths, dtype=np.float64).reshape(-1, 2)
    known = np.isfinite(won)
    won, more, dropped = won[known], (pairs[:, 0] - pairs[:, 1])[known], int((~known).sum())
    if not len(won):
        return Interval(math.nan, math.nan, math.nan, dropped)
    spread = float(more.std())
    if (spread == 0 and not more.any()) or (won == won[0]).all():
        plain = win_rate(won.tolist(), (1 - won).tolist(), resamples=resamples, seed=seed)
        return Interval(plain.rate, plain.low, plain.high, dropped)
    # Where the challenger is longer by the same in every row, nothing tells length from merit: b stays 0.
    longer = np.tanh(more / spread) if spread else np.zeros_like(more)
    value = float(fitted(longer, won, np.ones((1, len(won))))[0][0])
    rng, drawn = np.random.default_rng(seed), []
    step = max(1, _CELLS // len(won))
    for start in range(0, resamples, step):
        picks = rng.integers(0, len(won), size=(min(step, resamples - start), len(won)))
        drawn.append(_sigmoid(fitted(longer[picks], won[picks], np.ones(picks.shape))[0]))
    rate = float(_sigmoid(np.array([value]))[0])
    low, high = np.quantile(np.concatenate(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(rate, min(float(low), rate), max(float(high), rate), dropped)


def fitted(longer: Floats, won: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """(a, b) [B] of B weighted samples, by Newton's method.

    Args:
        longer, won: [n], or [B, n].
        weights: [B, n].
    """
    longer, won = np.broadcast_to(longer, weights.shape), np.broadcast_to(won, weights.shape)
    a, b = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(_STEPS):
        chance = _sigmoid(a[:, None] + b[:, None] * longer)
        off, curve = weights * (won - chance), weights * chance * (1 - chance)
        slope_a, slope_b = off.sum(1), (off * longer).sum(1) - RIDGE * b
        aa, ab, bb = curve.sum(1) + 1e-9, (curve * longer).sum(1), (curve * longer**2).sum(1) + RIDGE
        scale = aa * bb - ab**2
        step_a, step_b = (bb * slope_a - ab * slope_b) / scale, (aa * slope_b - ab * slope_a) / scale
        a, b = np.clip(a + np.clip(step_a, -2, 2), -_MOST, _MOST), b + np.clip(step_b, -2, 2)
        if max(np.abs(step_a[np.abs(a) < _MOST]).max(initial=0.0), np.abs(step_b).max()) < 1e-10:
            break
    return a, b


def _sigmoid(values: Floats) -> Floats:
    made: Floats = 1 / (1 + np.exp(-np.clip(values, -700, 700)))
    return made
