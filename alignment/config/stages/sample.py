"""Sampling: answers of a model, scored, as best-of-N rows and preference pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from alignment.config.stages.base import (
    ModelRef,
    Name,
    Positive,
    RowsPlace,
    RowsRef,
    Stage,
    Strict,
    some,
)

SPLITS = ("best", "pairs", "samples")
"""What a sample stage writes: best-of-N rows, preference pairs, every scored answer."""
Range = tuple[float, float]


class Sampling(Strict):
    """A value is fixed; a pair [low, high] is drawn uniformly for each sample, from the run's seed."""

    temperature: float | Range = 1.0
    top_p: float | Range = 1.0
    top_k: int | tuple[int, int] = 0
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    max_new_tokens: Positive = 128

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        limits = {"temperature": (0.0, 10.0), "top_p": (0.0, 1.0), "top_k": (0, 10**6)}
        for key, (low, high) in limits.items():
            value = getattr(self, key)
            ends = value if isinstance(value, tuple) else (value, value)
            if not (low <= ends[0] <= ends[1] <= high) or (key == "top_p" and ends[0] == 0):
                raise ValueError(f"{key}: {value} is outside {low}..{high}, or low is above high")
        return self


class Scorer(Strict):
    """How good an answer is: a reward model's scalar, a plain function's value, or a weighted sum of both."""

    model: Name | None = None
    """A stage of method reward."""
    function: str | None = None
    """A built-in reward function, or package.module:function of your own."""
    model_weight: float = 1.0
    function_weight: float = 1.0

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.model is None and self.function is None:
            raise ValueError("give model, function, or both")
        return self

    def model_refs(self) -> Iterator[ModelRef]:
        """The reward model, where one scores; the place is a stage's that has this as `score`."""
        if self.model is not None:
            yield ModelRef(("score", "model"), self.model, "reward")


class Sample(Stage):
    """N answers per prompt, scored and joined by row id: best-of-N rows and preference pairs."""

    tag: ClassVar[str] = "sample"
    makes = "rows"
    body = "alignment.distributed.sample:sample_stage"
    script = "sample"
    on_workers = True

    kind: Literal["sample"] = "sample"
    model: Name
    """The newest model: its answers are judged."""
    previous: Name | None = None
    """The model before; needed for pairs: newest-previous."""
    prompts: tuple[RowsRef, ...] = Field(min_length=1)
    take: Positive | None = None
    """At most so many prompts (times the run's scale)."""
    n: Positive = 4
    sampling: Sampling = Sampling()
    first: Sampling | None = None
    """Sampling of each prompt's first answer, where it differs from the others."""
    score: Scorer
    pairs: Literal["max-min", "newest-previous"] = "max-min"
    min_margin: Annotated[float, Field(ge=0)] = 0.0
    """A pair is made only when chosen scores more than rejected by over this much."""
    min_score: float | None = None
    """An answer is a good example (a best-of-N row, the chosen side of a pair) only with at least this score."""
    batch_size: Positive = 32
    """Prompts in one generation batch (times n sequences)."""
    max_prompt_tokens: Positive = 1024

    @model_validator(mode="after")
    def _needs(self) -> Self:
        if self.pairs == "newest-previous" and self.previous is None:
            raise ValueError("pairs: newest-previous needs `previous`")
        if self.pairs == "max-min" and self.n < 2:
            raise ValueError("pairs: max-min needs n of 2 or more")
        return self

    def model_refs(self) -> Iterator[ModelRef]:
        yield ModelRef(("model",), self.model, "policy")
        if self.previous is not None:
            yield ModelRef(("previous",), self.previous, "policy")
        yield from self.score.model_refs()

    def row_refs(self) -> Iterator[RowsPlace]:
        return (RowsPlace(("prompts", index), ref) for index, ref in enumerate(self.prompts))

    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def title(self) -> str:
        return f"sample · {some(self.n, 'answer')}"
