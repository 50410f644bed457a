"""A contrastive stage: rows with good answers -> scores -> tries for an opposite, scored too -> preference rows.

Holds the loop alone: what is asked and kept is `generation.contrastive`, who answers `shared.Asking`, who scores
`inference.judging`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from alignment.artifacts import digest_of
from alignment.config import Contrastive
from alignment.context import Outcome, StageContext
from alignment.distributed.batches import make_parts, plan
from alignment.distributed.generate.shared import Asking, apart, finish, prompts_of, teacher, teacher_digest
from alignment.errors import DataError
from alignment.generation.contrastive import Contrast
from alignment.generation.good_rows import ONE_KIND, TWICE, Needs, good_row
from alignment.inference.draws import choose
from alignment.inference.generator import Generator
from alignment.inference.judging import Answered, AnswerScorer, JudgeTally, Marks
from alignment.records import Record
from alignment.rewards import resolve

WITHOUT_MODELS = 1000
"""Answers in one batch where a function alone scores."""


def contrastive_stage(context: StageContext) -> Outcome:
    """Body of the stages of recipe contrastive; fills rows/train.jsonl and bad.jsonl in `context.out`.

    Raises:
        ConfigError: the prompt file, the rubric or the function cannot be used.
        DataError: no row can serve, or a function's needs are not met.
        StageError: no row got a pair; bad.jsonl is then in the stage's work folder. Nothing that a judge said of the
            rows' own answers could be read.
        EndpointStopped: teacher or judge is an endpoint that cannot be asked any further; what was paid is kept.
    """
    stage = context.stage_as(Contrastive)
    if stage.score.function is not None:
        resolve(stage.score.function)  # a wrong name shows now, not after the models are loaded
    texts = prompts_of(stage)
    read, rows, unfit = _rows(context, stage, Needs.of(stage, texts.get("opposite", "")))
    state = Contrast(stage, rows, context.run.seed, texts, teacher_digest(context, stage))
    judge = JudgeTally()
    with teacher(context, stage) as asking:
        scoring = Scoring(context, stage, asking.engine, judge)
        try:
            _make(asking, scoring, state)
        finally:
            scoring.close()
    records = apart(context, stage, state.in_order, state.bad)
    used = {} if stage.score.judge is None else {stage.score.judge.model: judge.used}
    facts: dict[str, Any] = {"requests": state.asked, "tries": dict(state.outcomes.most_common())}
    return finish(context, stage, records, state.bad, asking.took, read=read, unfit=unfit, used=used,
                  metrics=_metrics(state, records, judge, stage),
                  facts=facts if stage.score.judge is None else {**facts, "judge": judge.facts()})


def _rows(context: StageContext, stage: Contrastive, needs: Needs) -> tuple[int, list[Record], Counter[str]]:
    """(rows read, those to make pairs of, why others are none)."""
    fit: dict[str, Record] = {}
    unfit: Counter[str] = Counter()
    read = 0
    for record in (record for ref in stage.rows for record in context.each_row(ref)):
        read += 1
        made = good_row(record, needs)
        if isinstance(made, str) or made.id in fit:
            unfit[made if isinstance(made, str) else TWICE] += 1
        else:
            fit[made.id] = made
    chosen = choose(list(fit.values()), context.run.scaled(stage.take), context.run.seed)
    if not chosen:
        raise DataError("no row has a prompt and a good answer", where=f"stage {stage.name}", found=dict(unfit))
    if not needs.met(chosen):
        raise DataError(ONE_KIND, where=f"stage {stage.name}", found=chosen[0].meta["kind"],
                        expected="rows of two kinds or more, or a prompt without {other}")
    unfit["not taken"] += len(fit) - len(chosen)
    return read, chosen, +unfit


def _make(asking: Asking, scoring: Scoring, state: Contrast) -> None:
    """The rows' own answers first, then tries, each for the rows that still wait."""
    state.read_good(scoring.marks({row.id: Answered(row, row.completion or "") for row in state.rows}, "answers"))
    if state.stage.score.judge is not None:
        scoring.judge.demand(f"stage {state.stage.name}")
    while asks := state.ask():
        kept, step = len(state.pairs), f"try-{state.number}"
        said = asking.answered(asks, step)
        answers = state.answers(asks, said)
        rows = {ask.id: state.by_id[ask.seeds[0]] for ask in asks}
        marks = scoring.marks({id_: Answered(rows[id_], text) for id_, text in answers.items()}, f"scores-{step}")
        state.read(asks, answers, marks)
        asking.context.event("try", number=state.number, requests=len(asks), kept=len(state.pairs) - kept,
                             left=len(state.waiting))


@dataclass(frozen=True)
class Item:
    """An answer to score: what tells it apart, and the row whose prompt it answers."""

    id: str
    record: Record
    text: str

    @property
    def prompt(self) -> list[dict[str, Any]]:
        return self.record.prompt


@dataclass(frozen=True)
class Part:
    """Scores of one batch, by the items' ids, and what asking the judge came to."""

    marks: dict[str, Marks] = field(default_factory=dict)
    judge: JudgeTally = field(default_factory=JudgeTally)

    def to_json(self) -> str:
        """One line; scores that are NaN are written as NaN, which `from_json` reads."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Part:
        raw = json.loads(text)
        return cls({id_: Marks(**marks) for id_, marks in raw["marks"].items()}, JudgeTally(**raw["judge"]))


class ScoreBatch:
    """Scores batches of answers: a maker of distributed.batches.

    Args:
        scorer: an open one that stays open; None: one of its own.
    """

    def __init__(self, context: StageContext, scorer: AnswerScorer | None = None) -> None:
        stage = context.stage_as(Contrastive)
        self.owned = scorer is None
        self.scorer = scorer or AnswerScorer(context, stage.score, {}, stage.batch_size)

    def close(self) -> None:
        if self.owned:
            self.scorer.close()

    def make(self, items: Sequence[Item]) -> Part:
        """Raises as `AnswerScorer.marks`."""
        marks, judge = self.scorer.marks([Answered(one.record, one.text) for one in items])
        return Part({one.id: own for one, own in zip(items, marks, strict=True)}, judge)


class Scoring:
    """What says how good answers are, for all steps of a stage.

    Args:
        engine: the teacher's, which is also the judge's where both are one model.
        judge: gets what asking the judge came to.
    """

    def __init__(self, context: StageContext, stage: Contrastive, engine: Generator, judge: JudgeTally) -> None:
        self.context, self.stage, self.judge = context, stage, judge
        names = {ref.stage for ref in stage.score.model_refs()}
        # Without a model it takes no time; an endpoint is asked from one process, for one count of what was spent.
        self.here = not context.run.compute.workers or not names or any(
            context.run.stage(name).endpoint is not None for name in names)
        self.size = stage.batch_size if names else WITHOUT_MODELS
        self.scorer = (AnswerScorer(context, stage.score, {stage.teacher: engine}, stage.batch_size) if self.here
                       else None)

    def close(self) -> None:
        """Give back the memory of its models."""
        if self.scorer is not None:
            self.scorer.close()

    def marks(self, answers: Mapping[str, Answered], folder: str) -> dict[str, Marks]:
        """What each answer is worth, by the id that it came with; those of an earlier attempt are read.

        Args:
            folder: the step's name, one for each call: its parts lie there.
        """
        items, size = [Item(id_, record, text) for id_, (record, text) in answers.items()], self.size
        planned = plan(self.context, [items[start:start + size] for start in range(0, len(items), size)],
                       lambda item: [item.id, digest_of(item.text)])
        maker = partial(ScoreBatch, scorer=self.scorer)
        parts = list(make_parts(self.context, planned, maker, Part, folder=folder,
                                label=f"{self.stage.name}: {folder}", unit="answers", here=self.here))
        for part in parts:
            self.judge.add(part.judge)
        return {id_: own for part in parts for id_, own in part.marks.items()}


def _metrics(state: Contrast, records: Sequence[Record], judge: JudgeTally, stage: Contrastive) -> dict[str, float]:
    gaps, tries = [record.meta["gap"] for record in records], [record.meta["tries"] for record in records]
    found = {
        "requests": float(state.asked), "rows": float(len(state.rows)),
        "good_share": round(len(state.good) / len(state.rows), 4),
        "pair_share": round(len(records) / max(1, len(state.good)), 4),
        "mean_gap": round(sum(gaps) / max(1, len(gaps)), 4),
        "mean_tries": round(sum(tries) / max(1, len(tries)), 4),
    }
    if stage.score.judge is not None:
        found["judge_read_share"] = judge.read_share
    return found
