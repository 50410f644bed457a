"""What a judge says of the answers of an evaluation: a mark for each, or which of two is better, shown in both orders.

`OpinionBatch` is a maker of distributed.batches. Everything is joined by row id and text; equal answers are asked about
once and tie. Does not count who wins.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from alignment.config import Evaluate
from alignment.context import StageContext
from alignment.inference.judging import Answered, AnswerScorer, JudgeTally
from alignment.records import Message, Record


@dataclass(frozen=True)
class Contest:
    """Answers to one question. `record`: as sampling shows it, the reference as its completion.

    Attributes:
        texts: the different answers, for a judge that marks; pairs: those to compare, for one that compares.
    """

    record: Record
    texts: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def prompt(self) -> list[Message]:
        return self.record.prompt


@dataclass
class Opinions:
    """What the judge says, by row id.

    Attributes:
        marks: text -> score; NaN where none could be read.
        verdicts: of each two answers {"first", "second", "share", "said", "swapped"}; share is the first one's, NaN
            where a verdict could not be read.
    """

    marks: dict[str, dict[str, float]] = field(default_factory=dict)
    verdicts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    judge: JudgeTally = field(default_factory=JudgeTally)
    seconds: float = 0.0
    engines: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, parts: Iterable[Opinions]) -> Opinions:
        """The opinions of all parts together."""
        whole = cls()
        for part in parts:
            whole.marks |= part.marks
            whole.verdicts |= part.verdicts
            whole.judge.add(part.judge)
            whole.seconds += part.seconds
            whole.engines += [one for one in part.engines if one not in whole.engines]
        return whole

    def mark(self, id_: str, text: str) -> float:
        """The score of an answer; NaN without one."""
        return self.marks.get(id_, {}).get(text, math.nan)

    def verdict(self, id_: str, first: str, second: str) -> dict[str, Any] | None:
        """What was said of two answers, as it was asked; None of answers that are the same, and of others."""
        return next((one for one in self.verdicts.get(id_, ()) if {one["first"], one["second"]} == {first, second}),
                    None)

    def share(self, id_: str, first: str, second: str) -> float:
        """1 where the first answer is better, 0.5 for a tie, 0; NaN where that could not be read."""
        if first.strip() == second.strip():
            return 0.5
        found = self.verdict(id_, first, second)
        if found is None:
            return math.nan
        return float(found["share"] if found["first"] == first else 1 - found["share"])

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Opinions:
        """Inverse of to_json; raises ValueError, TypeError or KeyError on anything else."""
        raw = json.loads(text)
        return cls(raw["marks"], raw["verdicts"], JudgeTally(**raw["judge"]), raw["seconds"], raw["engines"])


class OpinionBatch:
    """Asks the judge of the stage's score about batches of contests."""

    def __init__(self, context: StageContext) -> None:
        stage = context.stage_as(Evaluate)
        assert stage.score is not None
        alone = stage.score.model_copy(update={"model": None, "function": None})
        self.scorer = AnswerScorer(context, alone, {}, stage.batch_size)

    def close(self) -> None:
        """Give back the judge's memory."""
        self.scorer.close()

    def make(self, items: Sequence[Contest]) -> Opinions:
        """Raises ModelError when the judge cannot be loaded, EndpointStopped when it is an endpoint that cannot be
        asked any further."""
        self.scorer.load()
        began, made = time.monotonic(), Opinions()
        asked = [(item, text) for item in items for text in item.texts]
        if asked:
            marks, tally = self.scorer.marks([Answered(item.record, text) for item, text in asked])
            made.judge.add(tally)
            for (item, text), own in zip(asked, marks, strict=True):
                made.marks.setdefault(item.id, {})[text] = math.nan if own.judge is None else own.judge
        pairs = [(item, pair) for item in items for pair in item.pairs]
        if pairs:
            compared, tally = self.scorer.compare([
                (Answered(item.record, first), Answered(item.record, second)) for item, (first, second) in pairs])
            made.judge.add(tally)
            for (item, (first, second)), one in zip(pairs, compared, strict=True):
                if one is not None:
                    said, swapped = one.written
                    made.verdicts.setdefault(item.id, []).append({
                        "first": first, "second": second, "share": math.nan if one.share is None else one.share,
                        "said": said, "swapped": swapped})
        made.seconds = round(time.monotonic() - began, 3)
        engine = self.scorer.engine
        made.engines = [dict(engine.made_by)] if engine is not None and engine.made_by else []
        return made
