"""One batch of prompts: answers of the stage's models, scored. What every process that samples does.

A row that cannot be answered is kept with its reason and the others go on. Does not choose prompts, select or write.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from alignment.config import Sample
from alignment.context import StageContext
from alignment.errors import KubeAlignError, StageError
from alignment.inference.draws import draws
from alignment.inference.generator import Generator, open_engine
from alignment.inference.judging import Answered, AnswerScorer, JudgeTally
from alignment.inference.requests import Completion, Draw, EndpointStopped, EngineStopped, Failure, Request
from alignment.records import Record, bad_row
from alignment.sampling.answers import Answer, Source
from alignment.sampling.prompts import TOO_LONG

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """What became of one batch.

    Attributes:
        bad: {"id", "reason", "raw"} of each row without answers, and of each answer that an endpoint refused or failed
            on also which, with what was seen and what it took.
        seconds: spent generating and scoring; the only number here that is not the same when made again.
        judge: what asking the judge came to.
        engines: which model -> who answered (Generator.made_by); nothing of endpoints.
    """

    answers: list[Answer] = field(default_factory=list)
    bad: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    judge: JudgeTally = field(default_factory=JudgeTally)
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line; scores that are NaN are written as NaN, which `from_json` reads."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Part:
        """Inverse of to_json."""
        raw = json.loads(text)
        return cls([Answer(**answer) for answer in raw["answers"]], raw["bad"], raw["seconds"],
                   JudgeTally(**raw.get("judge", {})), raw.get("engines", {}))


def used_by(part: Part) -> Iterator[tuple[Source | Literal["judge"], dict[str, Any]]]:
    """(which model, what it took at its endpoint) of every answer and failure; nothing of models that compute here."""
    yield from (("judge", usage) for usage in part.judge.used)
    yield from ((answer.model, answer.usage) for answer in part.answers if answer.usage is not None)
    yield from ((row["model"], row["usage"]) for row in part.bad if row.get("usage") is not None)


class SampleBatch:
    """Answers batches of a sample stage: a maker of distributed.batches. Models are loaded at the first batch.

    Raises ConfigError when the stage's reward function cannot be found.
    """

    def __init__(self, context: StageContext) -> None:
        self.context, self.stage = context, context.stage_as(Sample)
        names: dict[Source, str | None] = {"newest": self.stage.model, "previous": self.stage.previous}
        self.engines: dict[Source, Generator] = {
            source: open_engine(context, name) for source, name in names.items() if name is not None}
        opened = {str(names[source]): engine for source, engine in self.engines.items()}
        self.scorer = AnswerScorer(context, self.stage.score, opened, self.stage.batch_size)

    @property
    def ahead(self) -> bool:
        """Whether a model here works on several batches at once and would hear of another."""
        return any(engine.ahead for engine in self.engines.values())

    def begin(self, items: Sequence[Record]) -> None:
        """Have the models begin with a batch that will be made soon."""
        fit, _ = self._lengths(items)
        for source, engine in self.engines.items():
            engine.begin(self._requests(source, fit))

    def close(self) -> None:
        """Give back the memory of the models."""
        for engine in self.engines.values():
            engine.close()
        self.scorer.close()

    def make(self, items: Sequence[Record]) -> Part:
        """Answer and score one batch of prompts.

        Raises:
            StageError: no row of a batch of several could be answered; then it isn't the rows.
            ModelError, ConfigError: a model cannot be loaded.
        """
        for engine in self.engines.values():
            engine.load()  # what is wrong with a model is the stage's trouble, not a row's
        self.scorer.load()
        fit, bad = self._lengths(items)
        began = time.monotonic()
        try:
            answers, failed, judge = self._answers(fit)
            bad += failed
        except (EndpointStopped, EngineStopped):
            raise
        except Exception as error:
            if len(fit) > 1:
                log.warning("a batch of %d rows failed (%s); its rows are tried one by one", len(fit), _said(error))
            answers, failed, judge = self._one_by_one(fit)
            bad += failed
            if len(failed) == len(fit) > 1:
                raise StageError(f"no row of a batch could be answered: {_said(error)}",
                                 where=f"stage {self.stage.name}", found=[record.id for record in fit][:5],
                                 hint="the rows are probably not at fault: look at the models, the reward function "
                                      "and memory (a smaller batch_size)") from error
        engines = {str(source): dict(engine.made_by) for source, engine in self.engines.items() if engine.made_by}
        return Part(answers, bad, round(time.monotonic() - began, 3), judge, engines)

    def _lengths(self, records: Sequence[Record]) -> tuple[list[Record], list[dict[str, Any]]]:
        """Rows whose prompt fits, and the bad ones; a prompt that the template refuses is bad too."""
        fit, bad = [], []
        # An endpoint counts nothing before it is asked; a model here beside it does.
        asked = self.context.run.stage(self.stage.model).endpoint is not None
        engine = self.engines["previous" if asked and "previous" in self.engines else "newest"]
        for record in records:
            try:
                length = engine.prompt_tokens(record.prompt)
            except Exception as error:
                bad.append(bad_row(record, _said(error)))
                continue
            if length > self.stage.longest_prompt:
                bad.append(bad_row(record, TOO_LONG))
            else:
                fit.append(record)
        return fit, bad

    def _one_by_one(self, records: Sequence[Record]) -> tuple[list[Answer], list[dict[str, Any]], JudgeTally]:
        answers: list[Answer] = []
        bad: list[dict[str, Any]] = []
        judge = JudgeTally()
        for record in records:
            try:
                made, failed, told = self._answers([record])
                answers, bad = answers + made, bad + failed
                judge.add(told)
            except (EndpointStopped, EngineStopped):
                raise
            except Exception as error:
                bad.append(bad_row(record, _said(error)))
        return answers, bad, judge

    def _answers(self, records: Sequence[Record]) -> tuple[list[Answer], list[dict[str, Any]], JudgeTally]:
        """Scored answers of all models to the records, the rows of bad.jsonl for those that were not given, and what
        asking the judge came to."""
        if not records:
            return [], [], JudgeTally()
        prompts = {record.id: record for record in records}
        said: list[Answer] = []
        bad: list[dict[str, Any]] = []
        for source in self.engines:
            for answer, failure in self._generate(source, records):
                if failure is None:
                    said.append(answer)
                else:
                    bad.append({**bad_row(prompts[answer.id], failure.reason), "found": failure.detail,
                                "model": source, "index": answer.index, "usage": answer.usage})
        marks, judge = self.scorer.marks([Answered(prompts[answer.id], answer.text) for answer in said])
        return [replace(answer, score=own.score, function_score=own.function, model_score=own.model,
                        judge_score=own.judge, judged=own.judged)
                for answer, own in zip(said, marks, strict=True)], bad, judge

    def _generate(self, source: Source, records: Sequence[Record]) -> list[tuple[Answer, Failure | None]]:
        """Answers of one model, not yet scored, each with why it is none where it is none."""
        requests = self._requests(source, records)
        made = self.engines[source].generate(requests)
        return [
            (_unscored(request.id, source, index, draw, completion), completion.failure)
            for request, completions in zip(requests, made, strict=True)
            for index, (draw, completion) in enumerate(zip(request.draws, completions, strict=True))
        ]

    def _requests(self, source: Source, records: Sequence[Record]) -> list[Request]:
        stage, seed = self.stage, self.context.run.seed
        return [
            Request(record.id, record.prompt, draws(record.id, seed, stage.n, stage.sampling, stage.first, source))
            for record in records
        ]


def _unscored(row: str, source: Source, index: int, draw: Draw, completion: Completion) -> Answer:
    if completion.usage is not None:  # the endpoint counts the token that ends an answer itself
        return Answer(row, source, index, completion.text, completion.length, completion.finished, math.nan,
                      draw=asdict(draw), usage=completion.usage._asdict())
    return Answer(row, source, index, completion.text, tokens=len(completion.ids) + completion.finished,
                  finished=completion.finished, score=math.nan, draw=asdict(draw))


def _said(error: Exception) -> str:
    """The error in one line that is the same for all rows it meets, since reasons are counted."""
    if isinstance(error, KubeAlignError):
        return error.problem
    return f"{type(error).__name__}: {error}".splitlines()[0]
