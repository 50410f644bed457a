"""One batch of rows scored or embedded: the makers that every process of a select stage runs (distributed.batches).

A row that cannot be scored is kept with its reason and the others go on. Models are loaded at the first batch. Does not
choose rows or write.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from alignment.config import SelectCoverage, SelectQuality
from alignment.context import StageContext
from alignment.errors import DataError
from alignment.inference.generator import Embedder, Scorer, open_embedder, open_scorer
from alignment.inference.vectors import Vectors
from alignment.rewards import RewardFunction, combine, resolve
from alignment.selection.rows import Judged, Text


@dataclass(frozen=True)
class Scores:
    """What became of one batch.

    Attributes:
        scores: row id -> score; NaN where the scorer gives none.
        refused: row id -> why it could not be scored.
    """

    scores: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Scores:
        raw = json.loads(text)
        return cls(raw["scores"], raw["refused"], raw["seconds"])


class ScoreBatch:
    """Scores rows by a stage's `score`. Raises ConfigError when its function cannot be found."""

    def __init__(self, context: StageContext) -> None:
        score = self.score = context.stage_as(SelectQuality).score
        self.model: Scorer | None = None if score.model is None else open_scorer(context, score.model)
        self.function: RewardFunction | None = None if score.function is None else resolve(score.function)

    def close(self) -> None:
        """Give back the model's memory."""
        if self.model is not None:
            self.model.close()

    def make(self, items: Sequence[Judged]) -> Scores:
        """Scores of one batch.

        Raises:
            ModelError, ConfigError: the model cannot be loaded.
        """
        if self.model is not None:
            self.model.load()  # what is wrong with a model is the stage's trouble, not a row's
        began = time.monotonic()
        try:
            made = self._scores(items)
        except DataError:  # a row that the chat template or the function refuses; the others are not at fault
            made = Scores()
            for item in items:
                try:
                    made.scores.update(self._scores([item]).scores)
                except DataError as error:
                    made.refused[item.id] = error.problem
        return Scores(made.scores, made.refused, round(time.monotonic() - began, 3))

    def _scores(self, items: Sequence[Judged]) -> Scores:
        models: Sequence[float | None] = [None] * len(items)
        if self.model is not None:
            models = self.model.score([(item.prompt, item.answer) for item in items])
        functions = [None if self.function is None else float(self.function(item.record, item.answer))
                     for item in items]
        return Scores({item.id: combine(self.score, function, model)
                       for item, function, model in zip(items, functions, models, strict=True)})


class EmbedBatch:
    """Embeds instructions as a coverage stage asks."""

    def __init__(self, context: StageContext) -> None:
        self.stage = context.stage_as(SelectCoverage)
        self.embedder: Embedder = open_embedder(context, self.stage.embedder)

    def close(self) -> None:
        """Give back the model's memory."""
        self.embedder.close()

    def make(self, items: Sequence[Text]) -> Vectors:
        """Vectors of one batch. Raises ModelError and ConfigError when the model cannot be loaded."""
        began = time.monotonic()
        vectors, cut = self.embedder.embed([item.text for item in items], pooling=self.stage.pooling,
                                           max_tokens=self.stage.max_tokens, normalise=self.stage.normalise)
        return Vectors([item.id for item in items], vectors, [items[at].id for at in cut],
                       round(time.monotonic() - began, 3))
