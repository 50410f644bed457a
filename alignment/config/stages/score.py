"""What says how good an answer is: a reward model, a function, a judge, or their weighted sum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

from pydantic import model_validator

from alignment.config.prompts import PromptFile
from alignment.config.stages.base import Finding, ModelRef, Outside
from alignment.config.stages.fields import Name, Strict
from alignment.config.stages.sampling import Range, Sampling


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

    def _parts(self) -> list[tuple[str | None, float]]:
        return [(self.model, self.model_weight), (self.function, self.function_weight)]

    def findings(self) -> Iterator[Finding]:
        """What is wrong in a stage that has this as `score`."""
        if not any(weight for name, weight in self._parts() if name is not None):
            yield Finding(("score",), "every score is 0, since nothing that judges has a weight", 0.0,
                          "a weight other than 0")


class Judgement(Sampling):
    """Sampling of a judge's answers: the likeliest ones, unless a temperature is given."""

    temperature: float | Range = 0.0
    """0 always takes the likeliest token, so that a judge says the same of the same answer; at most 10."""


class Judge(Strict):
    """A language model that marks answers by a rubric, or says which of two is better."""

    model: Name
    """The stage whose model judges; it may name an endpoint, or the very model that answers."""
    mode: Literal["score", "compare"] = "score"
    """`score`: a number for each answer. `compare`: every two answers to a prompt, in both orders, n(n-1) requests;
    where the orders disagree it is a tie, and an answer's score is the share that it wins, 0 to 1."""
    scale: Range | None = None
    """Lowest and highest number of mode score; what is outside is refused. Default: [1, 10]."""
    language: Literal["en", "zh"] | None = None
    """Language of the shipped rubric, configs/prompts/judge-LANGUAGE/. Default: en."""
    prompt: str | None = None
    """A rubric of your own, a text file: with {prompt} and {answer}, or for mode compare {prompt}, {first} and
    {second}; it may have {reference}, and for mode score {low} and {high}."""
    sampling: Judgement = Judgement()
    """How the judge answers. What max_new_tokens cuts is not read: half of a 10 is a 1."""
    weight: float = 1.0
    """What the judge's score is multiplied by in the sum."""

    @property
    def bounds(self) -> Range:
        """Lowest and highest score."""
        return (0.0, 1.0) if self.mode == "compare" else self.scale or (1.0, 10.0)

    @property
    def file(self) -> PromptFile:
        """Its rubric."""
        needed, allowed = (("prompt", "answer"), ("low", "high", "reference")) if self.mode == "score" else (
            ("prompt", "first", "second"), ("reference",))
        return PromptFile(f"judge-{self.language or 'en'}", self.mode, self.prompt, needed, allowed)

    @model_validator(mode="after")
    def _heeded(self) -> Self:
        if self.scale is not None and self.mode == "compare":
            raise ValueError("scale is of mode score; compared answers have the share that they win")
        if self.scale is not None and not self.scale[0] < self.scale[1]:
            raise ValueError(f"scale: {list(self.scale)} has no room between its ends")
        if self.prompt is not None and self.language is not None:
            raise ValueError("language is of the shipped rubric, and prompt names one of your own")
        return self


class JudgedScorer(Scorer):
    """How good an answer is: a reward model's scalar, a function's value, a judge's score, or their weighted sum."""

    judge: Judge | None = None
    """A language model that is asked how good an answer is."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.model is None and self.function is None and self.judge is None:
            raise ValueError("give model, function or judge, or several of them")
        return self

    def model_refs(self) -> Iterator[ModelRef]:
        """The reward model and the judge; places are a stage's that has this as `score`."""
        yield from super().model_refs()
        if self.judge is not None:
            yield ModelRef(("score", "judge", "model"), self.judge.model, "policy", asked=True,
                           drawn=((("score", "judge", "sampling"), self.judge.sampling),))

    def sources(self) -> tuple[Outside, ...]:
        """The judge's rubric."""
        if self.judge is None:
            return ()
        own = self.judge.prompt is not None
        return (Outside(("score", "judge", "prompt") if own else ("score", "judge"), self.judge.file,
                        self.judge.prompt, travels=own),)

    def relocated(self, paths: Mapping[str, str]) -> Self:
        """With the rubric's path replaced."""
        if self.judge is None or self.judge.prompt is None:
            return self
        path = paths.get(self.judge.prompt, self.judge.prompt)
        return self.model_copy(update={"judge": self.judge.model_copy(update={"prompt": path})})

    def _parts(self) -> list[tuple[str | None, float]]:
        return [*super()._parts(), *([] if self.judge is None else [(self.judge.model, self.judge.weight)])]

    @staticmethod
    def without_paths(config: dict[str, Any]) -> dict[str, Any]:
        """A stage's config with its `score`, without where the rubric lies: its content counts."""
        if "judge" in config["score"]:
            config["score"]["judge"].pop("prompt", None)
            config["score"]["judge"].pop("language", None)
        return config
