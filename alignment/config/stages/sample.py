"""Sampling: answers of a model, scored, as best-of-N rows and preference pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from alignment.config.stages.base import Finding, ModelRef, Outside, RowsPlace, plural
from alignment.config.stages.fields import Dtype, Name, Place, Positive, RowsRef
from alignment.config.stages.sampling import Answering, Sampling
from alignment.config.stages.score import JudgedScorer

SPLITS = ("best", "pairs", "samples")
"""What a sample stage writes: best-of-N rows, preference pairs, every scored answer."""


class Sample(Answering):
    """N answers per prompt, scored and joined by row id: best-of-N rows and preference pairs."""

    tag: ClassVar[str] = "sample"
    makes = "rows"
    body = "alignment.distributed.sample:sample_stage"
    opens_all = True
    script = "sample"
    # 1 rewarded answers without blanks (Chinese, Thai, ...) as one word, and took answers that differ in indentation or
    # line breaks for the same.
    revision = 2
    on_workers = True
    bfloat16_on = frozenset({"gpu", "cpu"})

    kind: Literal["sample"] = "sample"
    """`sample`: a model answers prompts, and the answers are scored."""
    model: Name
    """The newest model: its answers are judged."""
    previous: Name | None = None
    """The model before; needed for pairs: newest-previous."""
    prompts: tuple[RowsRef, ...] = Field(min_length=1)
    """The row sets to answer, each STAGE/SPLIT. Answers that the rows may have are not shown to the model; reward
    functions compare with them."""
    take: Positive | None = None
    """At most so many prompts (times the run's scale)."""
    n: Positive = 4
    """Answers per prompt; 4 to 16 are usual. Time grows with n; what each further answer adds to the best
    score shrinks."""
    sampling: Sampling = Sampling()
    """How answers are drawn. All alike would leave nothing to choose from: keep the temperature above 0."""
    first: Sampling | None = None
    """Sampling of each prompt's first answer, where it differs from the others: keys it leaves out are `sampling`'s."""
    score: JudgedScorer
    """What judges the answers: a reward model, a function, a judge, or their weighted sum."""
    pairs: Literal["max-min", "newest-previous", "none"] = "max-min"
    """max-min: a prompt's best answer against its worst, of all models that answered. newest-previous: the best of
    `model` against the worst of `previous`. none: no pairs, as where n is 1 and only the scores are wanted."""
    min_margin: Annotated[float, Field(ge=0)] = 0.0
    """A pair is made only when chosen scores more than rejected by over this much."""
    min_score: float | None = None
    """An answer is a good example (a best-of-N row, the chosen side of a pair) only with at least this score."""
    batch_size: Positive = 32
    """Prompts in one generation batch (times n sequences)."""
    max_prompt_tokens: Positive | None = None
    """A prompt longer than this many tokens is not asked; it is counted and kept in bad.jsonl. Default: 1024, or what
    the models' context lengths leave beside max_new_tokens, where that is less."""
    dtype: Dtype | None = None
    """Arithmetic of all models. Left out: compute.dtype, whose auto is bfloat16 where the hardware has it, else float32
    (and float32 on a cluster's CPUs); what is settled is part of what the stage is."""

    @model_validator(mode="after")
    def _first(self) -> Self:
        if self.first is not None:
            own = {key: getattr(self.first, key) for key in self.first.model_fields_set}
            object.__setattr__(self, "first", self.sampling.model_copy(update=own))  # frozen from here on
        return self

    @model_validator(mode="after")
    def _needs(self) -> Self:
        if self.pairs == "newest-previous" and self.previous is None:
            raise ValueError("pairs: newest-previous needs `previous`")
        if self.pairs == "max-min" and self.n < 2:
            raise ValueError("pairs: max-min needs n of 2 or more; for single answers without pairs: none")
        return self

    def model_refs(self) -> Iterator[ModelRef]:
        yield ModelRef(("model",), self.model, "policy", asked=True)
        if self.previous is not None:
            yield ModelRef(("previous",), self.previous, "policy", asked=True)
        yield from self.score.model_refs()

    def row_refs(self) -> Iterator[RowsPlace]:
        return (RowsPlace(("prompts", index), ref) for index, ref in enumerate(self.prompts))

    def samplings(self) -> Iterator[tuple[Place, Sampling]]:
        yield from super().samplings()
        if self.first is not None:
            yield ("first",), self.first

    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if split != "pairs" or self.pairs != "none")

    def sources(self) -> tuple[Outside, ...]:
        return self.score.sources()

    def relocated(self, paths: Mapping[str, str]) -> Self:
        return self.model_copy(update={"score": self.score.relocated(paths)})

    def learned(self, scaled: Callable[[int | None], int | None]) -> dict[str, Any]:
        return self.score.without_paths(super().learned(scaled))

    def findings(self) -> Iterator[Finding]:
        alike = self.sampling.greedy and self.n > (1 if self.first is None or self.first.greedy else 2)
        if alike:
            yield Finding(("sampling",), f"all {self.n} answers to a prompt are the same",
                          {"temperature": self.sampling.temperature, "top_k": self.sampling.top_k},
                          "a temperature above 0, or n: 1 with pairs: newest-previous")
        if self.previous == self.model:
            yield Finding(("previous",), "is the model itself", self.previous, "the model before")
        if self.n == 1 and self.previous is None and self.score.judge is not None and (
                self.score.judge.mode == "compare"):
            yield Finding(("score", "judge", "mode"), "has nothing to compare a prompt's one answer with", "compare",
                          "n of 2 or more, or mode: score")
        yield from self.score.findings()

    def mended(self) -> dict[str, int]:
        # Adapters were merged into models whose rotary positions were then in bfloat16 as well.
        return super().mended() | ({"positions": 2} if self.arithmetic == "bfloat16" else {})

    def title(self) -> str:
        return f"sample · {plural(self.n, 'answer')}"
