"""The reward of online training: named parts, each asked for a batch of answers, checked, and summed by weight.

    Judge = (records, answers) -> one number per answer, in order

Whatever a part does wrong (it raises, hangs, gives None, NaN or the wrong number of numbers) is one error that names
the part and the row; a reward is never guessed, and no answer goes without one. Judges of reward models come from
training/online.py, since this room knows no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignment.config.stages.rewards import RewardPart, Rewards
from alignment.errors import KubeAlignError, StageError
from alignment.records import Record
from alignment.rewards.endpoint import Endpoint
from alignment.rewards.functions import resolve, resolve_batch
from alignment.rewards.limits import TookTooLong, within

Judge = Callable[[Sequence[Record], Sequence[str]], Sequence[Any]]
_NUMBER = "one finite number per answer"


@dataclass(frozen=True)
class Judged:
    """What a batch of answers earned.

    Attributes:
        parts: part -> its numbers, before weights, in the order of the answers.
        total: the weighted sums.
    """

    parts: dict[str, list[float]]
    total: list[float]


class RewardSum:
    """The parts of a stage's `reward`.

    Args:
        models: judges of the parts that are reward models, by part.
        where: the stage, in errors.

    Raises:
        ConfigError: a function cannot be found, an endpoint's key is not set.
    """

    def __init__(self, rewards: Rewards, models: Mapping[str, Judge], where: str) -> None:
        self.weights = {name: part.weight for name, part in rewards.parts.items()}
        self._asked: dict[str, tuple[Judge, float | None]] = {}
        self._places = {name: f"{where}, reward.parts.{name}" for name in rewards.parts}
        for name, part in rewards.parts.items():
            judge = models[name] if part.model is not None else _judge(part, self._places[name])
            # An endpoint counts its seconds for each request; a model is trusted to end.
            limit = part.seconds if part.source in ("function", "batch_function") else None
            self._asked[name] = judge, limit

    def judge(self, records: Sequence[Record], answers: Sequence[str]) -> Judged:
        """What each answer earns by each part, and in all.

        Raises:
            StageError: a part failed; names part and row.
        """
        parts = {name: self.part(name, records, answers) for name in self._asked}
        total = [sum(self.weights[name] * values[index] for name, values in parts.items())
                 for index in range(len(answers))]
        return Judged(parts, total)

    def part(self, name: str, records: Sequence[Record], answers: Sequence[str]) -> list[float]:
        """The numbers of one part, checked, before its weight. Raises as `judge`."""
        if not records:
            return []
        (judge, limit), where = self._asked[name], self._places[name]
        try:
            said = judge(records, answers) if limit is None else within(limit, lambda: judge(records, answers))
        except TookTooLong:
            raise StageError("a part of the reward did not end in time", where=f"{where}, {_rows(records)}",
                             found=f"nothing after {limit:g} s", expected=_NUMBER,
                             hint="raise its timeout, or mend the function") from None
        except KubeAlignError as error:
            if isinstance(error, StageError):
                raise
            raise StageError(f"a part of the reward failed: {error.problem}", found=error.found, hint=error.hint,
                             where=f"{where}, {error.where or _rows(records)}", expected=error.expected) from error
        except _Raised as error:
            cause = error.cause
            raise StageError(f"a part of the reward failed: {type(cause).__name__}: {cause}",
                             where=f"{where}, row {error.row}", expected=_NUMBER) from cause
        except Exception as error:
            raise StageError(f"a part of the reward failed: {type(error).__name__}: {error}",
                             where=f"{where}, {_rows(records)}", expected=_NUMBER) from error
        return _numbers(said, records, where)


class _Raised(Exception):
    """A function of one answer raised."""

    def __init__(self, row: str, cause: Exception) -> None:
        super().__init__(str(cause))
        self.row, self.cause = row, cause


def _judge(part: RewardPart, where: str) -> Judge:
    if part.function is not None:
        function = resolve(part.function, f"{where}.function")

        def one_by_one(records: Sequence[Record], answers: Sequence[str]) -> list[Any]:
            said = []
            for record, answer in zip(records, answers, strict=True):
                try:
                    said.append(function(record, answer))
                except KubeAlignError:
                    raise
                except Exception as error:
                    raise _Raised(record.id, error) from error
            return said

        return one_by_one
    if part.batch_function is not None:
        return resolve_batch(part.batch_function, f"{where}.batch_function")
    return Endpoint(part, where)


def _numbers(said: Any, records: Sequence[Record], where: str) -> list[float]:
    """`said` as floats, held to one finite number per record."""
    try:
        values = list(said)
    except TypeError:
        raise StageError("a part of the reward gave no list", where=f"{where}, {_rows(records)}", found=said,
                         expected=f"a list of {len(records)} numbers") from None
    if len(values) != len(records):
        raise StageError("a part of the reward gave another number of numbers than it got answers",
                         where=f"{where}, {_rows(records)}", found=len(values), expected=str(len(records)))
    made = []
    for record, value in zip(records, values, strict=True):
        try:
            number = math.nan if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise StageError("a part of the reward gave no number", where=f"{where}, row {record.id}",
                             found=str(value) if isinstance(value, float) else value, expected="a finite number")
        made.append(number)
    return made


def _rows(records: Sequence[Record]) -> str:
    return f"rows {records[0].id} to {records[-1].id}" if len(records) > 1 else f"row {records[0].id}"
