"""How answers are drawn: the one mapping of it, for every stage that has a model answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from alignment.config.stages.base import MostTokens, Stage
from alignment.config.stages.fields import LENGTH, Place, Positive, Strict

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


class Answering(Stage):
    """What stages have in common that have prompts answered, within `max_prompt_tokens`. Each says by itself what
    becomes of a longer prompt, so the key stands in its class."""

    if TYPE_CHECKING:
        sampling: Sampling
        max_prompt_tokens: int | None

    def samplings(self) -> Iterator[tuple[Place, Sampling]]:
        """How answers are drawn, with the place in the config."""
        yield ("sampling",), self.sampling

    @property
    def longest_prompt(self) -> int:
        """Tokens of a prompt, at most."""
        return self.max_prompt_tokens or LENGTH

    def most_tokens(self) -> MostTokens | None:
        answer = max((given.max_new_tokens for _, given in self.samplings()), default=None)
        if answer is None:
            return None
        most = self.longest_prompt
        return MostTokens(("max_prompt_tokens",), most + answer, f"max_prompt_tokens {most} + max_new_tokens {answer}",
                          beside=answer, said=self.max_prompt_tokens is not None)
