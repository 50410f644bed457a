"""Numbers of judges against plain counts: kappa, calibration, lengths, places; what holds whatever is drawn."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.evaluation.agreement import (
    agreement_of,
    by_length,
    by_place,
    calibration,
    kappa,
    section_shares,
    verdict_of,
)
from alignment.rewards.judge import Unread

SIDES = ("completion", "rejected", "tie")
side_pairs = st.lists(st.tuples(st.sampled_from(SIDES), st.sampled_from(SIDES)), min_size=1, max_size=30)


def swapped(side: Any) -> Any:
    return {"completion": "rejected", "rejected": "completion", "tie": "tie"}[side]


def cohen(pairs: list[tuple[Any, Any]]) -> float:
    """Cohen's kappa as textbooks have it, by counts of both."""
    one, other = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(one[side] * other[side] for side in SIDES) / len(pairs) ** 2
    seen = sum(a == b for a, b in pairs) / len(pairs)
    return math.nan if chance == 1 else (seen - chance) / (1 - chance)


@given(side_pairs)
def test_kappa_is_cohens_of_every_pair_in_both_orders(pairs: list[tuple[Any, Any]]) -> None:
    both = pairs + [(swapped(a), swapped(b)) for a, b in pairs]
    assert kappa(pairs) == pytest.approx(cohen(both), nan_ok=True)


@given(side_pairs, st.data())
def test_which_answer_a_file_puts_first_changes_no_agreement(pairs: list[tuple[Any, Any]], data: st.DataObject) -> None:
    turned = [(swapped(a), swapped(b)) if data.draw(st.booleans()) else (a, b) for a, b in pairs]
    assert kappa(turned) == pytest.approx(kappa(pairs), nan_ok=True)


def test_a_judge_that_is_always_right_has_a_kappa_of_one_and_a_coin_about_none() -> None:
    assert kappa([("completion", "completion")] * 9) == 1
    draw = random.Random(1)
    coin = [(draw.choice(SIDES[:2]), "completion") for _ in range(4000)]
    assert abs(kappa(coin)) < 0.05
    assert math.isnan(kappa([("tie", "tie")] * 3))
    assert math.isnan(kappa([]))


def test_agreement_counts_the_rows_of_which_both_have_a_verdict() -> None:
    one: list[Any] = ["completion", "tie", None, "rejected", "completion"]
    other: list[Any] = ["completion", "tie", "completion", None, "rejected"]
    found = agreement_of(one, other, resamples=200, seed=1)
    assert (found.rows, found.agreement) == (3, pytest.approx(2 / 3))
    assert found.low <= found.agreement <= found.high
    with pytest.raises(ValueError, match="shorter"):
        agreement_of(one, other[:2])


@pytest.mark.parametrize(("first", "second", "side"), [
    (1.0, 0.5, "completion"), (0.5, 1.0, "rejected"), (2.0, 2.0, "tie"), (math.nan, 1.0, None), (1.0, math.nan, None),
    (math.inf, 1.0, "completion"),
])
def test_the_higher_score_is_preferred(first: float, second: float, side: Any) -> None:
    assert verdict_of(first, second) == side


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=60))
def test_a_calibration_holds_every_pair_once_and_its_error_is_that_of_its_bins(margins: list[float]) -> None:
    found = calibration(margins)
    assert sum(one["rows"] for one in found["bins"]) == len(margins)
    for one in found["bins"]:
        assert one["low"] - 1e-9 <= one["confidence"] <= one["high"] + 1e-9
        assert one["right_low"] <= one["right"] <= one["right_high"]
    assert found["ece"] == pytest.approx(sum(
        one["rows"] / len(margins) * abs(one["right"] - one["confidence"]) for one in found["bins"]))
    assert found["loss"] == pytest.approx(sum(math.log1p(math.exp(-abs(m))) + max(-m, 0) for m in margins)
                                          / len(margins))


def test_a_model_that_is_right_as_often_as_it_says_has_hardly_any_error() -> None:
    rng = np.random.default_rng(3)
    margins = rng.normal(0, 2, 20_000)
    right = rng.random(20_000) < 1 / (1 + np.exp(-np.abs(margins)))
    honest = np.where(right, np.abs(margins), -np.abs(margins))
    assert calibration(honest.tolist())["ece"] < 0.02
    assert calibration((5 * honest).tolist())["ece"] > 0.15
    assert calibration([0.0, math.nan])["bins"][0]["right"] == 0.5
    assert math.isnan(calibration([math.nan])["ece"])


def test_a_judge_that_goes_by_length_is_seen() -> None:
    lengths = [(3, 9), (9, 3), (8, 2), (2, 8), (4, 4), (1, 5)]
    longer: list[Any] = ["completion" if a > b else "rejected" if b > a else "tie" for a, b in lengths]
    found = by_length(longer, lengths)
    assert (found.shorter, found.longer, found.prefers_longer, found.is_longer) == (0, 1, 1, pytest.approx(2 / 5))
    assert (found.rows_shorter, found.rows_longer) == (3, 2)
    right = by_length(["completion"] * 6, lengths)
    assert (right.shorter, right.longer, right.prefers_longer) == (1, 1, pytest.approx(2 / 5))
    assert math.isnan(by_length([None], [(1, 2)]).shorter)
    assert by_length(["tie"], [(1, 2)]).shorter == 0.5


verdicts = st.sampled_from(["first", "second", "tie"]) | st.just(Unread("no-verdict"))


@given(st.lists(st.tuples(verdicts, verdicts), max_size=30))
def test_every_compared_pair_is_consistent_or_prefers_a_place_or_is_half_a_tie_or_unread(compared: Any) -> None:
    found = by_place(compared)
    unread = sum(any(isinstance(said, Unread) for said in both) for both in compared)
    assert found["rows"] + unread == len(compared)
    assert sum(found["unread"].values()) == unread
    if found["rows"]:
        assert sum(found[name] for name in ("consistent", "prefers_first", "prefers_second", "half_tie")) == (
            pytest.approx(1))


def test_places_are_told_apart() -> None:
    found = by_place([("first", "second"), ("tie", "tie"), ("first", "first"), ("second", "second"), ("tie", "first"),
                      ("first", Unread("cut"))])
    assert found == {"rows": 5, "consistent": 0.4, "prefers_first": 0.2, "prefers_second": 0.2, "half_tie": 0.2,
                     "unread": {"cut": 1}}


def test_sections_weigh_maths_as_rewardbench_does() -> None:
    rows = [("Reasoning", "math-prm", 1.0)] * 447 + [("Reasoning", "hep-go", 0.0)] * 984
    found = section_shares([*rows, ("Chat", "alpacaeval-easy", 0.5)])
    assert found["Reasoning"] == {"accuracy": pytest.approx(0.5), "rows": 1431}
    assert found["Chat"] == {"accuracy": 0.5, "rows": 1}
