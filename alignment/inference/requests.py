"""What is asked of a model and what it says: prompts with the draws of their answers, completions, batches of them.

Plain values; imports no torch, so that whoever asks needs none. Does not draw (draws.py) or run a model (generator.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from alignment.errors import ModelError, StageError
from alignment.records import Message

Item = tuple[list[Message], str]
"""(prompt, completion): what has a log-probability and a reward."""


@dataclass(frozen=True)
class Draw:
    """Parameters of one answer. temperature 0 is argmax; top_k 0 and top_p 1 filter nothing; penalties 1 and 0 change
    nothing.

    Attributes:
        presence_penalty: taken from the logit of every token that the answer has already.
        stop: texts before which an answer ends, without them; endpoints alone have it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0
    presence_penalty: float = 0.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """A prompt and the draws of its answers, one answer each.

    Attributes:
        calls: whether an endpoint may call one of the prompt's tools instead of answering; without it that is no
            answer. What a model here says is read by `Generator.spoken`.
    """

    id: str
    prompt: list[Message]
    draws: tuple[Draw, ...]
    calls: bool = False


class EndpointStopped(StageError):
    """The endpoint cannot be asked any further: the stage's trouble, never a row's. What was paid is kept."""


class EngineStopped(ModelError):
    """The process that answers is gone, or cannot be started: the stage's trouble, never a row's."""


class Failure(NamedTuple):
    """Why a row got no answer, where others may.

    Attributes:
        reason: in words that are the same for all rows that meet it, since reasons are counted.
        detail: what was seen of it.
    """

    reason: str
    detail: str


class Usage(NamedTuple):
    """What an answer took at an endpoint, over all attempts that it counted.

    Attributes:
        prompt_tokens, completion_tokens: as the endpoint counted them; None where it does not say.
        cost: in the currency of the run file's price; None without one, or without the tokens.
        attempts: requests that were made for it.
        model: as the endpoint calls who answered.
        lost: what attempts whose reply never came may have cost beside, at most.
    """

    prompt_tokens: int | None
    completion_tokens: int | None
    cost: float | None
    attempts: int
    model: str | None = None
    lost: float = 0.0


class Token(NamedTuple):
    """A token of an answer, and how likely it was at temperature 1 with nothing filtered, in nats, where asked for.

    Attributes:
        top: the likeliest tokens in its place with their log-probabilities, in falling order.
    """

    id: int
    log_prob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Told(NamedTuple):
    """A greedy answer with its numbers, as a record that a server is held to keeps it.

    Attributes:
        prompt: ids of the prompt.
        tokens: of the answer, each with the two likeliest; the stop token last where one ended it.
        stop: that token.
        stops: all tokens that would have ended it.
    """

    prompt: tuple[int, ...]
    tokens: tuple[Token, ...]
    stop: int | None
    stops: tuple[int, ...]


@dataclass(frozen=True)
class Completion:
    """An answer. `ids` are as generated, without the stop token; `finished` is False when max_new_tokens cut it.

    `text` is without what the chat template itself puts around an answer (an empty block of reasoning).

    Attributes:
        stop: the stop token that ended it, where one did.
        log_probs: of `ids` and `stop` at the temperature they were drawn at (1 where that is 0), in nats, as the engine
            had them; where asked for.
        usage: what it took at an endpoint, which gives no `ids`; None of a model that computes here.
        failure: set where there is no answer, and `text` is empty; a model that computes here always has one.
        calls: (name, arguments as JSON text) of the calls that an endpoint's model makes beside `text`.
    """

    text: str
    ids: list[int]
    finished: bool
    stop: int | None = None
    log_probs: tuple[float, ...] | None = None
    usage: Usage | None = None
    failure: Failure | None = None
    calls: tuple[tuple[str, str], ...] = ()

    @property
    def length(self) -> int:
        """Tokens of the answer, without the one that ends it where that is known apart; 0 where nobody counted."""
        return len(self.ids) if self.usage is None else self.usage.completion_tokens or 0

    @property
    def tokens(self) -> list[int]:
        """`ids`, and the stop token where there is one."""
        return self.ids if self.stop is None else [*self.ids, self.stop]


class Asked(Protocol):
    """Anything with a row id and a prompt: a record, a question, a request."""

    @property
    def id(self) -> str:
        """Unique among what is asked."""

    @property
    def prompt(self) -> list[Message]:
        """The conversation up to the answer."""


T = TypeVar("T", bound=Asked)


def batches(asked: Sequence[T], batch_size: int) -> list[list[T]]:
    """Batches of prompts of similar length, the longest first: what does not fit in memory shows at once.

    By characters, then id, so that the same prompts always make the same batches.
    """
    def size(item: T) -> tuple[int, str]:
        return -sum(len(message["content"]) for message in item.prompt), item.id

    ordered = sorted(asked, key=size)
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
