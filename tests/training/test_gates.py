"""Gates of online training, on values as they are logged."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from alignment.config.stages.online import Gates
from alignment.errors import StageError
from alignment.training.gates import LOGGED, RULES, Gate, prove_start


def log(gate: Gate, step: int, **values: float) -> None:
    gate.on_log(None, SimpleNamespace(global_step=step), None,
                logs={"loss": 0.1, **{LOGGED[name]: value for name, value in values.items()}})


@pytest.mark.parametrize(("name", "limit", "good", "bad"), [
    ("kl", 0.5, 0.5, 0.51), ("mismatch", 0.01, 0.0, 0.02), ("entropy", 0.1, 0.1, 0.09), ("reward", -1.0, 3.0, -1.5),
    ("length", 2.0, 2.0, 1.0),
])
def test_a_limit_that_is_passed_three_times_in_a_row_stops_the_training(
        name: str, limit: float, good: float, bad: float) -> None:
    gate = Gate(Gates.model_validate({name: limit}), "stage g")
    for step, value in enumerate((bad, bad, good, bad, bad), 1):
        log(gate, step, **{name: value})
    with pytest.raises(StageError, match="a gate stopped the training") as caught:
        log(gate, 6, **{name: bad})
    assert caught.value.where == f"stage g, gates.{name}, step 6"
    assert caught.value.found == bad
    assert f"{limit:g}" in str(caught.value.expected)
    assert RULES[name].meaning in str(caught.value.hint)


def test_what_is_not_asked_for_stops_only_a_kl_or_a_mismatch_that_cannot_be_right() -> None:
    gate = Gate(Gates(), "stage g")
    for step in range(5):
        log(gate, step, kl=9.9, mismatch=0.19, entropy=0.0, reward=-1e9, length=1.0)
    for name in ("kl", "mismatch"):
        gate = Gate(Gates(), "stage g")
        log(gate, 1, **{name: 10.1})
        log(gate, 2, **{name: 10.1})
        with pytest.raises(StageError, match="a gate stopped"):
            log(gate, 3, **{name: 10.1})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_stops_it_at_once(value: float) -> None:
    with pytest.raises(StageError, match="is no number"):
        log(Gate(Gates(), "stage g"), 1, reward=value)


def test_a_resumed_run_counts_on_from_the_lines_before_its_checkpoint() -> None:
    gate = Gate(Gates(reward=0.0), "stage g")
    history: list[dict[str, Any]] = [{"step": step, "loss": 0.0, "reward": -1.0} for step in (1, 2)]
    gate.on_train_begin(None, SimpleNamespace(log_history=[*history, {"step": 2, "eval_reward": 1.0}]), None)
    with pytest.raises(StageError, match="a gate stopped"):
        log(gate, 3, reward=-1.0)


@pytest.mark.parametrize("kl", [0.01, -0.01, math.nan])
def test_a_policy_that_is_not_its_reference_is_stopped_before_the_first_step(kl: float) -> None:
    prove_start(1e-5, "stage g")
    with pytest.raises(StageError, match="not its reference"):
        prove_start(kl, "stage g")
