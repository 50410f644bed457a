"""Metrics and intervals against values worked out by hand, and properties that hold for any numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from alignment.evaluation.measures import Reply, Rules, answer_of, measure_of
from alignment.evaluation.metrics import (
    Interval,
    difference_ci,
    finite_mean,
    histogram,
    mean_ci,
    pooled_ci,
    wilson,
    win_rate,
)
from alignment.evaluation.rouge import rouge

numbers = st.floats(-1e6, 1e6, allow_nan=False, width=32)
columns = st.lists(numbers, min_size=1, max_size=30)
pairs = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=30)


def text_metrics(
    text: str, references: list[str], pattern: str | None = None, language: str | None = None
) -> dict[str, float]:
    reply, rules = Reply(text, True, tuple(references)), Rules(pattern, language)
    return {name: measure_of(name).of(reply, rules) for name in ("exact_match", "f1", "rouge_l")}


def rouge_l(text: str, references: list[str]) -> float:
    return rouge("rougeL", text, references)


def perplexity_ci(log_probs: list[float], tokens: list[float]) -> Interval:
    pooled = measure_of("perplexity").pooled
    assert pooled is not None
    return pooled_ci(np.array([log_probs, tokens], dtype=np.float64).T, pooled.total)


# --- one answer ---


def test_values_by_hand() -> None:
    got = text_metrics("The cat sat.", ["the cat"])
    assert got["exact_match"] == 0
    assert got["f1"] == pytest.approx(2 / 3)  # articles go: {cat, sat} against {cat}
    assert got["rouge_l"] == pytest.approx(0.8)  # articles stay: 2 of 3 and 2 of 2 words in order


def test_best_reference_counts_for_each_metric() -> None:
    got = text_metrics("Paris", ["the city of Paris", "paris!"])
    assert got == {"exact_match": 1.0, "f1": 1.0, "rouge_l": 1.0}


def test_the_language_of_the_answers_has_its_own_articles() -> None:
    assert text_metrics("„Der Hund“", ["hund"], language="de")["exact_match"] == 1
    assert text_metrics("der Hund", ["hund"])["exact_match"] == 0
    assert text_metrics("Nghệ An", ["Nghệ"])["exact_match"] == 1, "an is an article in English"
    assert text_metrics("Nghệ An", ["Nghệ"], language="vi")["exact_match"] == 0


def test_no_reference_is_undefined_not_zero() -> None:
    assert all(math.isnan(value) for value in text_metrics("Paris", []).values())


def test_pattern_applies_to_both_sides_where_it_matches() -> None:
    pattern = r"Answer:\s*(?P<answer>.+?)\s*$"
    got = text_metrics("Because it is.\nAnswer: Paris", ["Long words.\nAnswer: paris"], pattern)
    assert got["exact_match"] == 1
    assert got["rouge_l"] < 0.5  # whole texts
    assert text_metrics("Answer: Paris", ["Paris"], pattern)["exact_match"] == 1  # a bare reference is itself
    assert text_metrics("It is Paris", ["Answer: Paris"], pattern)["exact_match"] == 0
    assert answer_of("x <a>1\n2</a> y", r"<a>(?P<answer>.*)</a>") == "1\n2"
    assert answer_of("yes", r"yes(?P<answer> really)?") == "yes"


def test_rouge_l_in_other_scripts() -> None:
    assert rouge_l("कताब माज पर हो", ["किताब मेज पर है"]) == 0.25, "one word of four: consonants alone are no word"
    assert rouge_l("ประเทศไทย", ["ไทย"]) == 0.5
    assert rouge_l("我爱北京", ["我爱上海"]) == pytest.approx(0.5)
    assert rouge_l("Größe zählt", ["größe zählt"]) == 1.0


@settings(deadline=None)  # the first one loads tables
@given(*[st.text(st.sampled_from("ab c"), max_size=20)] * 2)
def test_rouge_l_is_rouge_scores_own_on_ascii(text: str, reference: str) -> None:
    oracle = rouge_scorer.RougeScorer(["rougeL"]).score(reference, text)["rougeL"].fmeasure
    assert rouge_l(text, [reference]) == pytest.approx(oracle)


# --- many answers ---


def test_two_values_by_hand() -> None:
    # Resampled means of {0, 1} are 0, 1/2, 1 with chances 1/4, 1/2, 1/4.
    assert mean_ci([0.0, 1.0], seed=3) == (0.5, 0.0, 1.0, 0)


def test_interval_has_the_width_of_the_normal_approximation() -> None:
    value, low, high, _ = mean_ci([0.0, 1.0] * 200, resamples=4000)
    half = 1.96 * math.sqrt(0.25 / 400)
    assert value - low == pytest.approx(half, rel=0.1)
    assert high - value == pytest.approx(half, rel=0.1)


def test_difference_is_paired() -> None:
    a = np.random.default_rng(0).normal(0, 100, 50)
    value, low, high, dropped = difference_ci(a.tolist(), (a - 0.25).tolist())
    assert (value, low, high) == pytest.approx((0.25, 0.25, 0.25))
    assert dropped == 0


def test_undefined_values_are_left_out_and_counted() -> None:
    nan, inf = math.nan, math.inf
    assert mean_ci([1.0, nan, 1.0, inf]) == (1.0, 1.0, 1.0, 2)
    assert difference_ci([1.0, nan, inf], [0.0, 1.0, inf]) == (1.0, 1.0, 1.0, 2)
    assert finite_mean([1.0, nan, 2.0]) == 1.5
    assert math.isnan(finite_mean([nan]))
    empty = mean_ci([nan])
    assert empty.dropped == 1
    assert all(map(math.isnan, empty[:3]))


def test_equal_shares_have_wilsons_interval() -> None:
    """0 of 20 and 81 of 263 are published (Newcombe 1998, method 3)."""
    assert mean_ci([0.0] * 10, share=True)[:3] == pytest.approx((0, 0, 0.2775), abs=1e-4)
    assert mean_ci([1.0] * 10 + [math.nan], share=True) == pytest.approx((1, 0.7225, 1, 1), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert mean_ci([3.0] * 10)[:3] == (3, 3, 3), "a length is no share"
    assert mean_ci([0.0, 1.0] * 5, share=True) == mean_ci([0.0, 1.0] * 5)


@given(st.integers(1, 60), st.sampled_from([-1.0, 0.0, 1.0]))
def test_equal_differences_say_as_much_as_equal_wins(count: int, value: float) -> None:
    ones, others = [max(value, 0.0)] * count, [max(-value, 0.0)] * count
    got, rate = difference_ci(ones, others, share=True), win_rate(ones, others)
    assert got.low < got.value < got.high or abs(value) == 1
    assert got.low < got.high
    assert -1 <= got.low <= got.value <= got.high <= 1
    assert (rate.low, rate.high) == pytest.approx(((got.low + 1) / 2, (got.high + 1) / 2))


def test_perplexity_weighs_tokens_not_rows() -> None:
    assert perplexity_ci([-1.0, -6.0], [1, 2]).value == pytest.approx(math.exp(7 / 3))
    same = perplexity_ci([-2.0, -6.0], [1, 3])
    assert same[:3] == pytest.approx((math.exp(2),) * 3)
    assert perplexity_ci([-2.0, math.nan], [1, 2]) == (math.exp(2), math.exp(2), math.exp(2), 1)
    assert measure_of("perplexity").lacks(Reply("", likelihood=(0.0, 0)), Rules()) == "no reference answer"


def test_win_rate_by_hand() -> None:
    nan = math.nan
    got = win_rate([1, 2, 3, nan, 5, 1], [0, 2, 4, 1, 5, nan])
    assert (got.wins, got.ties, got.losses, got.dropped) == (1, 2, 1, 2)
    assert got.rate == 0.5
    assert win_rate([2, 2], [1, 1])[:3] == pytest.approx((1, 0.3424, 1), abs=1e-4)
    assert win_rate([2] * 24, [2] * 24)[:3] == pytest.approx((0.5, 0.5 - 0.1380 / 2, 0.5 + 0.1380 / 2), abs=1e-4)
    assert win_rate([-math.inf], [0.0]).losses == 1
    assert math.isnan(win_rate([nan], [1.0]).rate)


@pytest.mark.parametrize("compare", [difference_ci, win_rate])
def test_unpaired_lengths_are_an_error(compare: object) -> None:
    with pytest.raises(ValueError, match="lengths: 2 and 1"):
        compare([1.0, 2.0], [1.0])  # type: ignore[operator]


@settings(max_examples=50)
@given(pairs)
def test_win_rate_is_symmetric(scores: list[tuple[float, float]]) -> None:
    a, b = [x for x, _ in scores], [y for _, y in scores]
    one, other = win_rate(a, b, resamples=200), win_rate(b, a, resamples=200)
    assert one.rate + other.rate == pytest.approx(1)
    assert one.low + other.high == pytest.approx(1)
    assert (one.wins, one.ties, one.losses) == (other.losses, other.ties, other.wins)
    assert 0 <= one.low <= one.rate <= one.high <= 1


@settings(max_examples=50)
@given(columns, st.integers(0, 2**31))
def test_interval_holds_its_value_and_repeats(values: list[float], seed: int) -> None:
    got = mean_ci(values, resamples=200, seed=seed)
    assert got.low <= got.value <= got.high
    assert got.value == pytest.approx(np.mean(values), abs=1e-6)
    assert min(values) - 1e-6 <= got.low
    assert got.high <= max(values) + 1e-6
    assert got == mean_ci(values, resamples=200, seed=seed)


def test_seed_and_number_of_resamples_matter() -> None:
    values = np.random.default_rng(1).normal(size=40).tolist()
    assert mean_ci(values, seed=1) != mean_ci(values, seed=2)
    assert mean_ci(values, resamples=100) != mean_ci(values, resamples=200)


def test_chunked_resampling_draws_as_many_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=40).tolist()
    whole = mean_ci(values, resamples=1000)
    monkeypatch.setattr("alignment.evaluation.metrics._CELLS", 400)  # 10 resamples at a time
    assert mean_ci(values, resamples=1000) == whole


def test_histogram_has_common_edges_and_loses_nothing() -> None:
    got = histogram({"a": [0.0, 1.0, math.nan], "b": [2.0, 10.0], "c": [math.nan]}, bins=5)
    assert set(got) == {"a", "b"}
    assert got["a"]["edges"] == got["b"]["edges"] == [0, 2, 4, 6, 8, 10]
    assert got["a"]["counts"] == [2, 0, 0, 0, 0]
    assert got["b"]["counts"] == [0, 1, 0, 0, 1]
    assert histogram({"a": [math.nan]}) == {}
    close = histogram({"a": [0.1, math.nextafter(0.1, 1)]})
    assert sum(close["a"]["counts"]) == 2
