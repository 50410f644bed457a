"""The length-controlled win rate: what lengths alone explain is taken out, what they do not explain stays."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.evaluation.length_control import RIDGE, fitted, length_controlled
from alignment.evaluation.metrics import win_rate

outcomes = st.sampled_from([0.0, 0.5, 1.0])
rows = st.lists(st.tuples(outcomes, st.integers(1, 60), st.integers(1, 60)), min_size=2, max_size=40)
few = {"resamples": 100, "seed": 1}


def rate(made: list[tuple[float, int, int]]) -> float:
    return length_controlled([won for won, *_ in made], [(a, b) for _, a, b in made], **few).value


@settings(max_examples=25)
@given(rows)
def test_the_other_way_round_it_is_one_less_it(made: list[tuple[float, int, int]]) -> None:
    turned = [(1 - won, b, a) for won, a, b in made]
    assert rate(turned) == pytest.approx(1 - rate(made), abs=1e-6)


@settings(max_examples=25)
@given(rows)
def test_the_fit_is_where_the_likelihood_is_level(made: list[tuple[float, int, int]]) -> None:
    more = np.array([float(a - b) for _, a, b in made])
    won = np.array([own for own, *_ in made])
    if more.std() == 0 or (won == won[0]).all():
        return
    longer = np.tanh(more / more.std())
    (a,), (b,) = fitted(longer, won, np.ones((1, len(won))))
    off = won - 1 / (1 + np.exp(-(a + b * longer)))
    if abs(a) < 11:
        assert off.sum() == pytest.approx(0, abs=1e-5)
        assert (off * longer).sum() - RIDGE * b == pytest.approx(0, abs=1e-5)


def drawn(count: int, merit: float, by_length: float, mean: float, seed: int = 2) -> list[tuple[float, int, int]]:
    """Wins by merit and by length, of a challenger whose answers are longer by `mean` words."""
    rng = np.random.default_rng(seed)
    base, more = rng.integers(40, 60, count), rng.normal(mean, 10, count).round()
    chance = 1 / (1 + np.exp(-(merit + by_length * np.tanh(more / more.std()))))
    return [(float(won), int(own + extra), int(own)) for won, own, extra in
            zip(rng.random(count) < chance, base, more, strict=True)]


def test_what_a_judge_gives_for_length_alone_is_taken_out() -> None:
    longer = drawn(3000, merit=0.0, by_length=3.0, mean=8)
    assert win_rate([won for won, *_ in longer], [1 - won for won, *_ in longer], **few).rate > 0.7
    assert rate(longer) == pytest.approx(0.5, abs=0.04)
    better = drawn(3000, merit=1.0, by_length=3.0, mean=8)
    assert rate(better) == pytest.approx(1 / (1 + math.exp(-1)), abs=0.04)


def test_where_lengths_say_nothing_it_is_the_win_rate() -> None:
    made = drawn(3000, merit=0.7, by_length=0.0, mean=8)
    found = length_controlled([won for won, *_ in made], [(a, b) for _, a, b in made], resamples=200, seed=1)
    plain = win_rate([won for won, *_ in made], [1 - won for won, *_ in made], resamples=200, seed=1)
    assert found.value == pytest.approx(plain.rate, abs=0.02)
    assert found.low < found.value < found.high
    assert found.high - found.low < 0.1
    same = [(won, a, a) for won, a, _ in made[:200]]
    assert rate(same) == pytest.approx(np.mean([won for won, *_ in same]), abs=1e-6)


@pytest.mark.parametrize("won", [0.0, 0.5, 1.0])
def test_equal_outcomes_have_the_interval_of_a_win_rate(won: float) -> None:
    found = length_controlled([won] * 9, [(n, 3) for n in range(9)], **few)
    plain = win_rate([won] * 9, [1 - won] * 9, **few)
    assert (found.value, found.low, found.high) == (plain.rate, plain.low, plain.high)


def test_lengths_that_tell_every_win_from_every_loss_give_a_number() -> None:
    made = [(float(n % 2), 10 + 5 * (n % 2), 10 + 5 * (1 - n % 2)) for n in range(40)]
    assert rate(made) == pytest.approx(0.5, abs=1e-6)


def test_what_is_not_known_takes_no_part() -> None:
    found = length_controlled([1.0, math.nan, 0.0], [(3, 2), (9, 1), (2, 3)], **few)
    assert (found.dropped, found.value) == (1, pytest.approx(0.5))
    assert math.isnan(length_controlled([math.nan], [(1, 2)], **few).value)
    with pytest.raises(ValueError, match="different lengths"):
        length_controlled([1.0], [], **few)
