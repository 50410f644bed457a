"""Aims: what parses, what does not, and how they are judged."""

from __future__ import annotations

import math
import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.config import judge, parse_aim

STAGES = st.from_regex(r"[a-z][a-z0-9-]{0,9}", fullmatch=True)
METRICS = st.builds("{}.{}".format, STAGES, st.from_regex(r"[A-Za-z0-9_./-]{1,20}", fullmatch=True))
NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)
OPS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
BLANKS = st.text(" ", max_size=3)


@given(METRICS, st.sampled_from(sorted(OPS)), NUMBERS, BLANKS, BLANKS)
def test_any_metric_against_any_number(left: str, op: str, number: float, before: str, after: str) -> None:
    aim = parse_aim(f"{before}{left}{after}{op}{before}{number!r}{after}")
    assert (aim.left, aim.op, aim.right) == (left, op, number)
    assert aim.metrics == (left,)


@given(METRICS, st.sampled_from(sorted(OPS)), METRICS)
def test_any_metric_against_any_metric_and_its_text_parses_back(left: str, op: str, right: str) -> None:
    aim = parse_aim(f"{left} {op} {right}")
    assert (aim.left, aim.op, aim.right) == (left, op, right)
    assert aim.metrics == (left, right)
    assert parse_aim(str(aim)) == aim


@given(st.text(max_size=40))
def test_text_is_an_aim_or_a_value_error(text: str) -> None:
    try:
        aim = parse_aim(text)
    except ValueError:
        return
    assert aim.op in text
    assert aim.left in text


@given(METRICS, st.sampled_from(sorted(OPS)), METRICS, NUMBERS, NUMBERS)
def test_judging_is_the_operator(left: str, op: str, right: str, a: float, b: float) -> None:
    metrics = {right: b, left: a}  # the same name twice is one metric, holding `a`
    verdict = judge(parse_aim(f"{left} {op} {right}"), metrics)
    assert verdict.met is OPS[op](metrics[left], metrics[right])


@pytest.mark.parametrize("text", [
    "", "rm.accuracy", "rm.accuracy = 0.8", "rm.accuracy == 0.8", "0.8 <= rm.accuracy", "accuracy >= 0.8",
    "RM.accuracy >= 0.8", "rm.accuracy >= 0.8 extra", "rm.accuracy >= ", "rm.accuracy => 1", "rm. >= 1", "a.b >= 1e",
])
def test_not_an_aim(text: str) -> None:
    with pytest.raises(ValueError, match=r"STAGE\.METRIC"):
        parse_aim(text)


@pytest.mark.parametrize(("metrics", "met"), [
    ({"a.x": 0.5}, None), ({"a.x": math.nan, "b.y": 1.0}, None), ({"a.x": 1.0, "b.y": math.nan}, None),
    ({"a.x": math.inf, "b.y": 1.0}, True), ({}, None),
])
def test_a_missing_metric_or_nan_is_neither_met_nor_missed(metrics: dict[str, float], met: bool | None) -> None:
    assert judge(parse_aim("a.x > b.y"), metrics).met is met
