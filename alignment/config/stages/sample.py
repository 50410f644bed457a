"""Sampling: answers of a model, scored, as best-of-N rows and preference pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from alignment.config.stages.base import Finding, ModelRef, MostTokens, RowsPlace, Stage, plural
from alignment.config.stages.fields import LENGTH, Dtype, Name, Place, Positive, RowsRef, Strict

SPLITS = ("best", "pairs", "samples")
"""What a sample stage writes: best-of-N rows, preference pairs, every scored answer."""
Range = tuple[float, float]


class Sampling(Strict):
    """A value is fixed; a pair [low, high] is drawn uniformly for each sample, from the run's seed."""

    temperature: float | Range = 1.0
    """0 always takes the likeliest token; 1 draws from the model's own distribution; above 1 answers get wilder. 0.6
    to 1 for best-of-N, where answers must differ; at most 10."""
    top_p: float | Range = 1.0
    """Draws only among the likeliest tokens that together hold this much probability; 1 leaves all. 0.9 to 0.95 cuts
    off nonsense at high temperatures."""
    top_k: int | tuple[int, int] = 0
    """Draws only among so many likeliest tokens; 0 leaves all."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Above 1, tokens that prompt or answer already hold get less likely; 1 changes nothing. 1.05 to 1.2 against
    loops of small models; it also punishes words quoted from the prompt."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Taken from the score of every token that the answer holds already, once, as OpenAI's and vLLM's key of this name:
    0 (left out) changes nothing, up to 2 makes answers wander on to other words. The prompt does not count."""
    max_new_tokens: Positive = 128
    """Longest answer, in tokens. One that is cut here never becomes a good example; see finished_share. Time and
    memory grow with it."""

    @property
    def greedy(self) -> bool:
        """Whether a prompt always gets the same answer."""
        return self.temperature in (0.0, (0.0, 0.0)) or self.top_k in (1, (1, 1))

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        limits = {"temperature": (0.0, 10.0), "top_p": (0.0, 1.0), "top_k": (0, 10**6)}
        for key, (low, high) in limits.items():
            value = getattr(self, key)
            ends = value if isinstance(value, tuple) else (value, value)
            if not (low <= ends[0] <= ends[1] <= high) or (key == "top_p" and ends[0] == 0):
                shown = list(value) if isinstance(value, tuple) else value
                raise ValueError(f"{key}: {shown} is outside {low}..{high}, or low is above high")
        return self


def prompt_and_answer(prompt: int | None, answer: int) -> MostTokens:
    """The longest sequence of a stage that has prompts answered; `prompt` is its max_prompt_tokens."""
    most = prompt or LENGTH
    return MostTokens(("max_prompt_tokens",), most + answer, f"max_prompt_tokens {most} + max_new_tokens {answer}",
                      beside=answer, said=prompt is not None)


class Scorer(Strict):
    """How good an answer is: a reward model's scalar, a plain function's value, or a weighted sum of both."""

    model: Name | None = None
    """A stage of method reward, or an import with role: reward."""
    function: str | None = None
    """A built-in reward function (`kubealign explain reward` lists them), or package.module:function of your own."""
    model_weight: float = 1.0
    """What the reward model's value is multiplied by in the sum. Its scale is arbitrary: choose weights so that both
    parts spread alike."""
    function_weight: float = 1.0
    """What the function's value is multiplied by in the sum."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.model is None and self.function is None:
            raise ValueError("give model, function, or both")
        return self

    def model_refs(self) -> Iterator[ModelRef]:
        """The reward model, where one scores; the place is a stage's that has this as `score`."""
        if self.model is not None:
            yield ModelRef(("score", "model"), self.model, "reward")

    def findings(self) -> Iterator[Finding]:
        """What makes every score the same."""
        parts = ((self.model, self.model_weight), (self.function, self.function_weight))
        if not any(weight for name, weight in parts if name is not None):
            yield Finding(("score",), "every score is 0, since nothing that judges has a weight", 0.0,
                          "a weight other than 0")


class Sample(Stage):
    """N answers per prompt, scored and joined by row id: best-of-N rows and preference pairs."""

    tag: ClassVar[str] = "sample"
    makes = "rows"
    body = "alignment.distributed.sample:sample_stage"
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
    score: Scorer
    """What judges the answers: a reward model, a function, or the weighted sum of both."""
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

    def most_tokens(self) -> MostTokens:
        return prompt_and_answer(self.max_prompt_tokens, max(given.max_new_tokens for _, given in self.samplings()))

    def samplings(self) -> Iterator[tuple[Place, Sampling]]:
        """How answers are drawn, with the place in the config."""
        yield ("sampling",), self.sampling
        if self.first is not None:
            yield ("first",), self.first

    @property
    def longest_prompt(self) -> int:
        """Tokens of a prompt, at most."""
        return self.max_prompt_tokens or LENGTH

    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if split != "pairs" or self.pairs != "none")

    def findings(self) -> Iterator[Finding]:
        alike = self.sampling.greedy and self.n > (1 if self.first is None or self.first.greedy else 2)
        if alike:
            yield Finding(("sampling",), f"all {self.n} answers to a prompt are the same",
                          {"temperature": self.sampling.temperature, "top_k": self.sampling.top_k},
                          "a temperature above 0, or n: 1 with pairs: newest-previous")
        if self.previous == self.model:
            yield Finding(("previous",), "is the model itself", self.previous, "the model before")
        yield from self.score.findings()

    def mended(self) -> dict[str, int]:
        # Adapters were merged into models whose rotary positions were then in bfloat16 as well.
        return super().mended() | ({"positions": 2} if self.arithmetic == "bfloat16" else {})

    def title(self) -> str:
        return f"sample · {plural(self.n, 'answer')}"
