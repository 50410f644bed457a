"""Aims: what a run is meant to reach, written as `METRIC OP NUMBER` or `METRIC OP METRIC`.

A metric is STAGE.NAME, where NAME may hold dots and slashes as in a manifest's metrics
(`eval.dpo.exact_match > eval.sft.exact_match`, `rm.eval_accuracy >= 0.8`). Judging is pure; nothing here
runs or stops a stage.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_METRIC = r"[a-z][a-z0-9-]*\.[A-Za-z0-9_./-]+"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_AIM = re.compile(rf"^\s*(?P<left>{_METRIC})\s*(?P<op>>=|<=|>|<)\s*(?P<right>{_METRIC}|{_NUMBER})\s*$")
_OPS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}


@dataclass(frozen=True)
class Aim:
    """One bound. `right` is a number or the name of another metric."""

    left: str
    op: str
    right: float | str

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.left, self.right) if isinstance(self.right, str) else (self.left,)

    def __str__(self) -> str:
        right = self.right if isinstance(self.right, str) else f"{self.right:g}"
        return f"{self.left} {self.op} {right}"


@dataclass(frozen=True)
class Verdict:
    """An aim held against the metrics; `met` is None where a metric is missing or not a number."""

    aim: Aim
    left: float | None
    right: float | None
    met: bool | None


def parse_aim(text: str) -> Aim:
    """Raises ValueError with the rule when `text` is not an aim."""
    match = _AIM.match(text)
    if match is None:
        raise ValueError("STAGE.METRIC, then one of >= <= > <, then a number or STAGE.METRIC")
    right = match["right"]
    value: float | str = float(right) if re.fullmatch(_NUMBER, right) else right
    return Aim(match["left"], match["op"], value)


def judge(aim: Aim, metrics: Mapping[str, float]) -> Verdict:
    """Hold one aim against metrics named STAGE.NAME."""
    left = metrics.get(aim.left)
    right = metrics.get(aim.right) if isinstance(aim.right, str) else aim.right
    if left is None or right is None or math.isnan(left) or math.isnan(right):
        return Verdict(aim, left, right, None)
    return Verdict(aim, left, right, _OPS[aim.op](left, right))
