"""The sum of an online reward's parts, and everything that a part can do wrong."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from alignment.config import RewardPart, Rewards
from alignment.errors import ConfigError, StageError
from alignment.records import Record
from alignment.rewards import RewardSum

HERE = "tests.rewards.judges"
ROWS = [Record(f"r{index}", "prompt-only", [{"role": "user", "content": "?"}]) for index in range(3)]
ANSWERS = ["aab", "b", "aaaa"]


def summed(**parts: dict[str, Any]) -> RewardSum:
    return RewardSum(Rewards.model_validate({"parts": parts}), {}, "stage grpo")


def test_a_reward_is_the_weighted_sum_of_its_parts_and_each_part_keeps_its_own_numbers() -> None:
    reward = summed(share={"function": f"{HERE}:share_of_a", "weight": 2.0},
                    length={"batch_function": f"{HERE}:lengths", "weight": -0.1}, brief={"function": "brevity"})
    judged = reward.judge(ROWS, ANSWERS)
    assert judged.parts == {"share": [2 / 3, 0.0, 1.0], "length": [3.0, 1.0, 4.0], "brief": [1.0, 1.0, 1.0]}
    assert judged.total == pytest.approx([4 / 3 - 0.3 + 1, -0.1 + 1, 2 - 0.4 + 1])


@given(weights=st.lists(st.floats(-5, 5), min_size=1, max_size=4).filter(any),
       texts=st.lists(st.text("ab ", max_size=9), min_size=1, max_size=6), seed=st.randoms(use_true_random=False))
def test_an_answer_earns_the_same_wherever_it_stands_and_weights_count_in_a_straight_line(
        weights: list[float], texts: list[str], seed: Any) -> None:
    names = [f"p{index}" for index in range(len(weights))]
    functions = [f"{HERE}:share_of_a", "brevity", f"{HERE}:share_of_a", "brevity"]
    given_parts = {name: {"function": function, "weight": weight}
                   for name, function, weight in zip(names, functions, weights, strict=False)}
    rows = [Record(f"x{index}", "prompt-only", ROWS[0].prompt) for index in range(len(texts))]
    judged = summed(**given_parts).judge(rows, texts)
    doubled = summed(**{name: part | {"weight": 2 * part["weight"]} for name, part in given_parts.items()})
    assert doubled.judge(rows, texts).total == pytest.approx([2 * value for value in judged.total])
    assert judged.total == pytest.approx(
        [sum(w * judged.parts[name][index] for name, w in zip(names, weights, strict=True))
         for index in range(len(texts))])
    order = seed.sample(range(len(texts)), len(texts))
    moved = summed(**given_parts).judge([rows[index] for index in order], [texts[index] for index in order])
    assert moved.total == [judged.total[index] for index in order]


@pytest.mark.parametrize(("key", "function", "problem", "row", "found"), [
    ("function", "raises", "ZeroDivisionError: by zero", "row r1", None),
    ("function", "lacks", "needs a passage", "row r0", []),
    ("batch_function", "raises_all", "OSError: no such judge", "rows r0 to r2", None),
    ("batch_function", "not_a_number", "gave no number", "row r1", "nan"),
    ("batch_function", "nothing", "gave no number", "row r1", None),
    ("batch_function", "words", "gave no number", "row r0", "0.5"),
    ("batch_function", "too_few", "another number of numbers", "rows r0 to r2", 2),
    ("batch_function", "one_number", "gave no list", "rows r0 to r2", 1.0),
    ("function", "lengths", "gave no number", "row r0", [1.0, 1.0, 1.0]),  # of a batch, named as one of an answer
    ("batch_function", "share_of_a", "gave no list", "rows r0 to r2", 0.0),  # and the other way round
])
def test_a_part_that_fails_is_named_with_its_row(key: str, function: str, problem: str, row: str, found: Any) -> None:
    reward = summed(good={"function": "brevity"}, bad={key: f"{HERE}:{function}"})
    with pytest.raises(StageError) as caught:
        reward.judge(ROWS, ["aaa"] * 3)
    assert problem in caught.value.problem
    assert caught.value.where == f"stage grpo, reward.parts.bad, {row}"
    assert caught.value.found == found
    assert caught.value.expected


def test_a_function_that_hangs_is_given_up() -> None:
    reward = summed(slow={"batch_function": f"{HERE}:hangs", "timeout": 0.2})
    with pytest.raises(StageError, match="did not end in time") as caught:
        reward.judge(ROWS, ANSWERS)
    assert caught.value.found == "nothing after 0.2 s"


def test_a_judge_that_is_a_model_is_held_to_the_same() -> None:
    rewards = Rewards.model_validate({"parts": {"rm": {"model": "rm", "weight": 0.5}}})
    assert RewardSum(rewards, {"rm": lambda rows, said: [1.0, 2.0, 3.0]}, "stage g").judge(ROWS, ANSWERS).total == [
        0.5, 1.0, 1.5]
    with pytest.raises(StageError, match="gave no number"):
        RewardSum(rewards, {"rm": lambda rows, said: [1.0, float("nan"), 3.0]}, "stage g").judge(ROWS, ANSWERS)


@pytest.mark.parametrize("name", ["nowhere.at_all:f", f"{HERE}:missing", f"{HERE}:NOT_CALLABLE", "brevity"])
def test_a_function_of_a_batch_that_cannot_be_found_is_refused_with_its_key(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        summed(mine={"batch_function": name})
    assert caught.value.where == "stage grpo, reward.parts.mine.batch_function"


@pytest.mark.parametrize(("part", "says"), [
    ({}, "give one of"),
    ({"model": "rm", "function": "brevity"}, "not model and function"),
    ({"model": "rm", "timeout": 3.0}, "timeout is not heeded by model"),
    ({"function": "brevity", "retries": 1}, "retries is not heeded by function"),
    ({"batch_function": "a:b", "batch_size": 1}, "batch_size is not heeded"),
    ({"url": "ftp://host/"}, "an endpoint is http"),
    ({"url": "http://host:port/"}, "no URL"),
    ({"url": "https://me:secret@host/"}, "a key does not stand in a URL"),
    ({"function": "brevity", "weight": float("inf")}, "finite"),
])
def test_a_part_that_means_nothing_is_refused(part: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        RewardPart.model_validate(part)


def test_how_long_is_waited_is_no_part_of_what_a_reward_is() -> None:
    one = Rewards.model_validate({"parts": {"a": {"url": "http://h/", "timeout": 3.0, "key_env": "K", "retries": 1}}})
    other = Rewards.model_validate({"parts": {"a": {"url": "http://h/", "batch_size": 7}}})
    assert one.judged() == other.judged() == {"parts": {"a": {"url": "http://h/", "weight": 1.0}}}
