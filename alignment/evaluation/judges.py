"""What judges say of pairs, for one batch: `PairBatch` is a maker of distributed.batches and holds one judge.

A judge sees the prompt and the two answers, and nothing of what is known of them: the row's completion, which is the
chosen answer, is no reference here. A pair that a judge cannot judge is kept with the reason and the others go on.
Does not choose pairs or measure.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from alignment.config import EvaluatePairs
from alignment.context import StageContext
from alignment.errors import DataError, KubeAlignError
from alignment.inference.judging import Answered, AnswerScorer, Compared, JudgeTally, Marks
from alignment.records import Message, Record
from alignment.rewards import RewardFunction, combine

NO_SCORE = "no score (NaN): none given, or over the model's context length"


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt; `record` says nothing of which is better."""

    record: Record
    first: str
    second: str

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def prompt(self) -> list[Message]:
        return self.record.prompt


def pair_of(record: Record) -> Pair:
    """A preference or a tie, as a judge is shown it."""
    return Pair(replace(record, type="prompt-only", completion=None, rejected=None),
                record.completion or "", record.rejected or "")


@dataclass
class Judgement:
    """What one judge says of one pair.

    Attributes:
        first, second: scores; NaN where it gives none.
        unread: why there is no verdict, where there is none.
        said, swapped: of a judge that compares, its verdicts in the two orders, or why one was not read (`unread: `
            before it); None of others, and of answers that are the same.
        judged: what a judge said of each answer.
    """

    first: float
    second: float
    unread: str | None = None
    said: str | None = None
    swapped: str | None = None
    judged: list[dict[str, Any] | None] | None = None

    @property
    def compared(self) -> Compared | None:
        """The two verdicts, where there are two."""
        if self.said is None or self.swapped is None:
            return None
        return Compared.read_back(self.said, self.swapped)


@dataclass
class Judgements:
    """What one judge says of a batch, by row id, and what asking took."""

    rows: dict[str, Judgement] = field(default_factory=dict)
    judge: JudgeTally = field(default_factory=JudgeTally)
    seconds: float = 0.0
    engines: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> str:
        """One line; scores that are NaN are written as NaN, which `from_json` reads."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Judgements:
        """Inverse of to_json; raises ValueError, TypeError or KeyError on anything else."""
        raw = json.loads(text)
        return cls({id_: Judgement(**own) for id_, own in raw["rows"].items()}, JudgeTally(**raw["judge"]),
                   raw["seconds"], raw["engines"])


class PairBatch:
    """Judges batches of pairs, as the stage's judge `name`. Raises ConfigError as AnswerScorer."""

    def __init__(self, context: StageContext, *, name: str) -> None:
        self.stage, self.name = context.stage_as(EvaluatePairs), name
        self.scorer = AnswerScorer(context, self.stage.judges[name], {}, self.stage.batch_size,
                                   place=f"judges.{name}")
        if (function := self.scorer.function) is not None:
            self.scorer.function = partial(self._called, function)

    def close(self) -> None:
        """Give back the memory of its models."""
        self.scorer.close()

    def make(self, items: Sequence[Pair]) -> Judgements:
        """Judge one batch.

        Raises:
            ModelError, ConfigError: a model cannot be loaded.
            DataError: the judge's function failed; names the row.
            EndpointStopped: the judge is an endpoint that cannot be asked any further.
        """
        self.scorer.load()
        began = time.monotonic()
        try:
            made = self._judged(items)
        except DataError:
            made = self._one_by_one(items)
        made.seconds = round(time.monotonic() - began, 3)
        engine = self.scorer.engine
        made.engines = [dict(engine.made_by)] if engine is not None and engine.made_by else []
        return made

    def _one_by_one(self, items: Sequence[Pair]) -> Judgements:
        """A conversation that a template refuses, or a row that lacks what a function needs, is one row's trouble."""
        whole = Judgements()
        for item in items:
            try:
                made = self._judged([item])
            except FunctionFailed:
                raise
            except DataError as error:
                whole.rows[item.id] = Judgement(math.nan, math.nan, error.problem)
            else:
                whole.rows |= made.rows
                whole.judge.add(made.judge)
        return whole

    def _judged(self, items: Sequence[Pair]) -> Judgements:
        sides = [(Answered(item.record, item.first), Answered(item.record, item.second)) for item in items]
        judge = self.scorer.judge
        if judge is not None and judge.mode == "compare":
            return self._compared(items, sides)
        marks, tally = self.scorer.marks([one for pair in sides for one in pair])
        pairs = zip(marks[::2], marks[1::2], strict=True)
        return Judgements({item.id: _scored(*pair) for item, pair in zip(items, pairs, strict=True)}, tally)

    def _compared(self, items: Sequence[Pair], sides: Sequence[tuple[Answered, Answered]]) -> Judgements:
        others, made = self.scorer.unjudged([one for pair in sides for one in pair]), Judgements()
        compared, made.judge = self.scorer.compare(sides)
        for item, one, parts in zip(items, compared, zip(others[::2], others[1::2], strict=True), strict=True):
            share = 0.5 if one is None else one.share
            won = (None, None) if share is None else (share, 1 - share)
            first, second = (combine(self.scorer.score, *own, part, self.scorer.judge)
                             for own, part in zip(parts, won, strict=True))
            judgement = Judgement(first, second, _missing(first, second))
            if one is not None:
                judgement.said, judgement.swapped = one.written
                judgement.unread = one.unread.reason if one.unread is not None else judgement.unread
            made.rows[item.id] = judgement
        return made

    def _called(self, function: RewardFunction, record: Record, answer: str) -> float:
        """Raises FunctionFailed where the user's own code raises what is no error of ours: the row is named."""
        try:
            return float(function(record, answer))
        except KubeAlignError:
            raise
        except Exception as error:
            raise FunctionFailed(
                f"the scoring function failed: {type(error).__name__}: {error}", found=answer,
                where=f"stage {self.stage.name}, judges.{self.name}, row {record.id}",
                expected="a number (NaN for an answer that it cannot judge)") from error


class FunctionFailed(DataError):
    """A function of the user's raised: the stage's trouble, never a row's."""


def _scored(first: Marks, second: Marks) -> Judgement:
    judged = None if first.judged is None and second.judged is None else [first.judged, second.judged]
    refused = [one["refused"] for one in judged or () if one is not None and "refused" in one]
    missing = _missing(first.score, second.score)
    return Judgement(first.score, second.score, refused[0] if missing and refused else missing, judged=judged)


def _missing(first: float, second: float) -> str | None:
    return NO_SCORE if math.isnan(first) or math.isnan(second) else None
