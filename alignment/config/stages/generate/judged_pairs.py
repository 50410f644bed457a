"""Judged pairs: answers drawn over ranges of temperature and top_p, scored by a judge, the best against the worst.

It is `sample` with a judge: draws, scores, ties, margins and pairs are made there and nowhere else. Here are the
numbers of the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from alignment.config.stages.base import Finding, plural
from alignment.config.stages.sample import Sample
from alignment.config.stages.sampling import Sampling

DRAWS = Sampling(temperature=(0.2, 0.95), top_p=(0.1, 0.7), top_k=(0, 4), repetition_penalty=1.1, max_new_tokens=128)
"""How answers for reward data are drawn in the Qwen QA system."""
FIRST = {"temperature": 0.7, "top_p": 0.2, "top_k": 0}
"""The first of a prompt's answers, where it differs."""


class JudgedPairs(Sample):
    """Reward data: answers of a model over ranges of temperature and top_p, scored by a judge, as preference pairs. A
    sample stage with a judge and these draws for its defaults."""

    tag: ClassVar[str] = "judged-pairs"
    script = "generate"

    kind: Literal["generate"] = "generate"  # type: ignore[assignment]
    """`generate`: rows that a model makes; `recipe` says how."""
    recipe: Literal["judged_pairs"]
    """`judged_pairs`: `model` answers, `score.judge` judges, and each prompt's best answer stands against its worst."""
    sampling: Sampling = DRAWS
    """How answers are drawn. Keys left out: T 0.2 to 0.95, top_p 0.1 to 0.7, top_k 0 to 4, repetition penalty 1.1, 128
    tokens. For an endpoint that does not take the last three: top_k: 0, repetition_penalty: 1.0."""
    first: Sampling | None = None
    """How each prompt's first answer is drawn. Keys left out: T 0.7, top_p 0.2, top_k 0, then `sampling`'s."""

    @classmethod
    def is_meant(cls, get: Callable[[str], Any]) -> bool:
        return super().is_meant(get) and get("recipe") == "judged_pairs"

    @model_validator(mode="after")
    def _first(self) -> Self:
        sampling, first = (
            {} if given is None else {key: getattr(given, key) for key in given.model_fields_set}
            for given in (self.sampling, self.first))
        settled = DRAWS.model_copy(update=sampling)
        object.__setattr__(self, "sampling", settled)  # frozen from here on
        object.__setattr__(self, "first", settled.model_copy(update={**FIRST, **first}))
        return self

    def findings(self) -> Iterator[Finding]:
        yield from super().findings()
        if self.score.judge is None:
            yield Finding(("score",), "has no judge", self.score.model or self.score.function,
                          "score: {judge: {model: STAGE}}, or kind: sample, which needs none")

    def title(self) -> str:
        return f"generate · judged_pairs, {plural(self.n, 'answer')}"
