"""Two evaluations of the same rows, compared row by row: paired differences with intervals, wins, ties and losses.

Reads lines of answers.jsonl, joined by row id, and what the stages were asked to compare by. Runs no model and
measures nothing anew but the lengths of texts. What the two sides measured by different rules is left out, with the
reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from alignment.config.stages.evaluate import READ_BY
from alignment.errors import DataError
from alignment.evaluation.measures import NAMES, Reply, Rules, measure_of
from alignment.evaluation.measures.base import SHARE
from alignment.evaluation.metrics import (
    Floats,
    Interval,
    difference_ci,
    finite_mean,
    pooled_ci,
    pooled_difference_ci,
)

SCORED = ("style", "reward")
_SHOWN = 300
"""Letters of a text in an error."""


@dataclass(frozen=True)
class Side:
    """One model of one evaluation.

    Attributes:
        label: how messages call it.
        lines: lines of answers.jsonl by row id.
        rules: the stage's config, as its manifest has it, and the `revision` of the stages' kind.
        scorers: {"reward": the reward model's artifact, "style": the function}, of those that it has.
        signatures: of results.json, without the number of references.
    """

    of: ClassVar = "answers"
    label: str
    model: str
    lines: Mapping[str, Mapping[str, Any]]
    rules: Mapping[str, Any]
    scorers: Mapping[str, str]
    signatures: Mapping[str, str]

    def answer(self, row: str) -> Mapping[str, Any]:
        told: Mapping[str, Any] = self.lines[row]["answers"][self.model]
        return told

    def told(self, row: str) -> dict[str, Any]:
        """What a person reads of a row, whoever answered."""
        line = self.lines[row]
        return {"asked": line.get("question") or line["prompt"][-1]["content"], "reference": line.get("reference")}

    def said(self, row: str) -> Any:
        """What this side said of it."""
        return self.answer(row)["text"]


class Compared(NamedTuple):
    """One metric over the rows that both sides have it for.

    Attributes:
        difference: the second less the first, with its 95 % interval; rows are drawn in pairs.
        better, same, worse: rows by how the second did; where no way is better, rows with a higher, equal or lower
            number.
        values: row id -> (first, second).
    """

    metric: str
    way: str
    first: float
    second: float
    difference: Interval
    better: int
    same: int
    worse: int
    values: dict[str, tuple[float, float]]

    @classmethod
    def counted(cls, metric: str, way: str, means: tuple[float, float], difference: Interval,
                values: dict[str, tuple[float, float]]) -> Compared:
        """With the rows won, tied and lost counted."""
        sign = -1 if way == "lower" else 1
        changes = [sign * (second - first) for first, second in values.values()]
        return cls(metric, way, *means, difference, sum(change > 0 for change in changes),
                   sum(change == 0 for change in changes), sum(change < 0 for change in changes), values)


@dataclass(frozen=True)
class Comparison:
    """All metrics that both sides have.

    Attributes:
        rows: ids of the rows compared.
        alone: how many rows only the first has, only the second.
        left_out: metric -> why it is not compared.
    """

    rows: tuple[str, ...]
    alone: tuple[int, int]
    metrics: tuple[Compared, ...]
    left_out: Mapping[str, str]


def compare(first: Side, second: Side, *, resamples: int = 2000, seed: int = 0) -> Comparison:
    """The second side against the first.

    Raises:
        DataError: no row in common; a row that has one id and another prompt or reference.
    """
    rows, alone = common(first, second)
    same_rows(first, second, rows, ("prompt", "reference"))
    left_out = _incomparable(first, second, rows)
    made = []
    for name in (*NAMES, *SCORED):
        if name not in left_out:
            one = _compared(name, first, second, rows, {"resamples": resamples, "seed": seed})
            made += [one] if one is not None else []
    return Comparison(rows, alone, tuple(made), left_out)


def most_changed(compared: Compared, count: int) -> list[str]:
    """Ids of the rows whose numbers differ most, the widest first; of equal ones the losses first."""
    changes = {row: second - first for row, (first, second) in compared.values.items() if first != second}
    sign = -1 if compared.way == "lower" else 1
    return sorted(changes, key=lambda row: (-abs(changes[row]), sign * changes[row]))[:count]


class Rows(Protocol):
    """One side of a comparison."""

    @property
    def label(self) -> str: ...

    @property
    def lines(self) -> Mapping[str, Mapping[str, Any]]: ...


def common(first: Rows, second: Rows) -> tuple[tuple[str, ...], tuple[int, int]]:
    """Ids of the rows that both sides have, and how many each has alone. Raises DataError where there are none."""
    rows = tuple(row for row in first.lines if row in second.lines)
    if not rows:
        raise DataError("the two evaluations have no row in common", where=f"{first.label} and {second.label}",
                        found=f"{next(iter(first.lines), 'no rows')}, and {next(iter(second.lines), 'no rows')}",
                        expected="rows with the same ids: the same file under the same source name")
    return rows, (len(first.lines) - len(rows), len(second.lines) - len(rows))


def same_rows(first: Rows, second: Rows, rows: Sequence[str], parts: Sequence[str]) -> None:
    """Raise DataError where a row has one id and another of these parts."""
    for part in parts:
        differ = [row for row in rows if first.lines[row].get(part) != second.lines[row].get(part)]
        if differ:
            shown = [_clip(side.lines[differ[0]].get(part)) for side in (first, second)]
            raise DataError(f"{len(differ)} of {len(rows)} rows have one id and two {part}s, so they are not the same "
                            "rows", where=f"row {differ[0]}", found=f"{shown[0]} in {first.label}, {shown[1]} in "
                            f"{second.label}", expected="evaluations of the same rows")


def _clip(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def _incomparable(first: Side, second: Side, rows: Sequence[str]) -> dict[str, str]:
    """Metrics that the two sides measured by different rules -> why."""
    found: dict[str, str] = {}
    texts = frozenset(NAMES) - {"perplexity", "finished", "words"}
    for key, readers in {"revision": texts, **READ_BY}.items():
        one, other = first.rules.get(key), second.rules.get(key)
        if one != other:
            found |= dict.fromkeys(sorted(readers), f"{key} is {one} and {other}")
    for what, one_has, other_has in (("score", first.scorers, second.scorers),
                                     ("signature", first.signatures, second.signatures)):
        for name in sorted(one_has.keys() & other_has.keys()):
            if one_has[name] != other_has[name]:
                found[name] = f"its {what} is {one_has[name]} and {other_has[name]}"
    tokens = [[_counts("perplexity", side.answer(row)) for side in (first, second)] for row in rows]
    unlike = sum(one is not None and other is not None and one[1] != other[1] for one, other in tokens)
    if unlike:
        found["perplexity"] = f"{unlike} references have another number of tokens: another tokenizer or template"
    has = {name for name in (*NAMES, *SCORED) for side in (first, second)
           if any(math.isfinite(_number(name, side.answer(row))) for row in rows)}
    return {name: why for name, why in found.items() if name in has}


def _compared(
    name: str, first: Side, second: Side, rows: Sequence[str], draws: Mapping[str, int]
) -> Compared | None:
    """None where no row has the metric on both sides."""
    way = "higher" if name in SCORED else measure_of(name).better
    numbers = [(_number(name, first.answer(row)), _number(name, second.answer(row))) for row in rows]
    values = {row: pair for row, pair in zip(rows, numbers, strict=True) if all(map(math.isfinite, pair))}
    if not values:
        return None
    pooled = None if name in SCORED else measure_of(name).pooled
    one, other = ([pair[side] if row in values else math.nan for row, pair in zip(rows, numbers, strict=True)]
                  for side in (0, 1))
    if pooled is None:
        share = name not in SCORED and measure_of(name).span == SHARE
        means = finite_mean(one), finite_mean(other)
        difference = difference_ci(other, one, share=share, resamples=draws["resamples"], seed=draws["seed"])
    else:
        sums = [_sums(name, side, rows, values) for side in (first, second)]
        if any(each is None for each in sums):
            return None
        before, now = (each for each in sums if each is not None)
        means = pooled_ci(before, pooled.total, resamples=1).value, pooled_ci(now, pooled.total, resamples=1).value
        difference = pooled_difference_ci(now, before, pooled.total, resamples=draws["resamples"], seed=draws["seed"])
    return Compared.counted(name, way, means, difference, values)


def _number(name: str, answer: Mapping[str, Any]) -> float:
    """One answer's number, NaN where the file has none."""
    told = answer.get(name)
    if isinstance(told, int | float):
        return float(told)
    counts = _counts(name, answer)
    if counts is not None:
        pooled = measure_of(name).pooled
        return math.nan if pooled is None else float(pooled.total(np.array([counts]))[0])
    if name == "words":  # of any text, also where it was not asked for
        return measure_of(name).of(Reply(answer["text"]), Rules())
    return math.nan


def _counts(name: str, answer: Mapping[str, Any]) -> list[float] | None:
    found = (answer.get("counts") or {}).get(name)
    return None if found is None or None in found else found


def _sums(name: str, side: Side, rows: Sequence[str], kept: Mapping[str, object]) -> Floats | None:
    """(rows, K) what each row adds, NaN where either side has none."""
    found = [_counts(name, side.answer(row)) if row in kept else None for row in rows]
    width = next((len(one) for one in found if one is not None), None)
    if width is None:
        return None
    return np.array([[math.nan] * width if one is None else one for one in found], dtype=np.float64)
