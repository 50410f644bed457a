"""Gates of rounds: which further rounds are needed, by the metrics of what is finished."""

from __future__ import annotations

import pytest

from alignment.config import parse_aim
from alignment.config.stops import Stops, passed, standing

GROUP = Stops("improve", (("dpo-1", "dev-1"), ("dpo-2", "dev-2"), ("dpo-3", "dev-3")),
              tuple(parse_aim(f"dev-{number}.gain > 0") for number in (1, 2, 3)), "dpo")


def dev(number: int, gain: float) -> dict[str, dict[str, float]]:
    return {f"dev-{number}": {"gain": gain}}


def test_later_rounds_wait_until_a_gate_is_judged() -> None:
    now = standing([GROUP], {})
    assert now.unneeded == {}
    assert set(now.waiting) == {"dpo-2", "dev-2", "dpo-3", "dev-3"}
    assert now.waiting["dpo-2"] == "waits for dev-1: the gate of round 1 of improve"
    assert set(standing([GROUP], dev(1, 0.1)).waiting) == {"dpo-3", "dev-3"}


def test_rounds_after_one_that_gained_nothing_are_not_needed() -> None:
    now = standing([GROUP], dev(1, 0.1) | dev(2, -0.0125))
    assert set(now.unneeded) == {"dpo-3", "dev-3"}
    assert now.unneeded["dev-3"] == (
        "not needed: round 2 of improve did not meet its gate, dev-2.gain > 0 (-0.0125)")
    assert (now.waiting, now.broken) == ({}, {})
    assert set(standing([GROUP], dev(1, 0)).unneeded) == {"dpo-2", "dev-2", "dpo-3", "dev-3"}


def test_after_the_last_round_nothing_is_left_to_spare() -> None:
    for gain in (0.1, -0.1):
        now = standing([GROUP], dev(1, 0.1) | dev(2, 0.1) | dev(3, gain))
        assert now == ({}, {}, {})


@pytest.mark.parametrize("metrics", [{"dev-1": {"gain": float("nan")}}, {"dev-1": {}}])
def test_a_gate_without_a_number_is_neither_met_nor_missed(metrics: dict[str, dict[str, float]]) -> None:
    now = standing([GROUP], metrics)
    assert now.unneeded == {}
    assert set(now.waiting) == {"dpo-2", "dev-2", "dpo-3", "dev-3"}
    assert "no finite dev-1.gain among the metrics" in now.broken["improve"]


def test_what_was_chosen_stays_chosen() -> None:
    """The evaluation of a round was lost and made anew elsewhere, and came out a little better."""
    again = dev(1, 0.1) | dev(2, 0.001)
    assert set(standing([GROUP], again | {"dpo": {"round": 1.0}}).unneeded) == {"dpo-3", "dev-3"}
    assert standing([GROUP], again | {"dpo": {"round": 3.0}}).unneeded == {}
    assert set(standing([GROUP], {"dpo": {"round": 0.0}}).unneeded) == {"dpo-2", "dev-2", "dpo-3", "dev-3"}


def test_rounds_count_up_to_the_first_that_does_not_meet_its_gate() -> None:
    number, verdicts = passed(GROUP.bounds, dev(1, 0.1) | dev(2, -0.1) | dev(3, 0.2))
    assert number == 1
    assert [verdict.met for verdict in verdicts] == [True, False]
    assert passed(GROUP.bounds, dev(1, 0.1) | dev(2, 0.1) | dev(3, 0.2))[0] == 3
