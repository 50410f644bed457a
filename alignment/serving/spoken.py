"""What chat and completions have in common: choices that grow, and how OpenAI writes them, whole or in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from alignment.inference.requests import Token
from alignment.serving.answering import Part
from alignment.serving.measured import Asked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Parts = AsyncIterator[tuple[int, Part]]
Reply = dict[str, Any] | AsyncIterator[dict[str, Any]]


@dataclass
class Choice:
    """One answer as far as it is made."""

    text: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    end: Part | None = None

    def add(self, part: Part) -> None:
        self.text.append(part.text)
        self.tokens += part.tokens
        if part.finish is not None:
            self.end = part


@dataclass(frozen=True)
class Frame:
    """What stands around the choices of one response."""

    kind: str
    model: str
    name: str
    created: int

    @classmethod
    def of(cls, kind: str, model: str, prefix: str) -> Frame:
        return cls(kind, model, f"{prefix}-{uuid.uuid4().hex}", int(time.time()))

    def body(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {"id": self.name, "object": self.kind, "created": self.created, "model": self.model,
                "choices": choices, **more}


def usage(prompt: int, choices: Sequence[Choice]) -> dict[str, int]:
    answer = sum(len(choice.tokens) for choice in choices)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


async def gathered(asked: Asked, told: Parts, count: int) -> list[Choice]:
    """All choices, whole."""
    choices = [Choice() for _ in range(count)]
    async with aclosing(told) as parts:  # type: ignore[type-var]
        async for index, part in parts:
            asked.first()
            choices[index].add(part)
    return choices


async def streamed(
    asked: Asked, told: Parts, count: int, prompt: int, frame: Frame,
    delta: Callable[[int, Part], dict[str, Any] | None], *, first: dict[str, Any] | None, with_usage: bool,
    more: dict[str, Any],
) -> AsyncIterator[dict[str, Any]]:
    """Chunks as parts come.

    Args:
        delta: a part as a choice of a chunk; None where there is nothing to say of it.
        first: what each choice begins with.
        more: keys of the first chunk beside.
    """
    choices = [Choice() for _ in range(count)]
    try:
        if first is not None:
            yield frame.body([{"index": index, **first} for index in range(count)], **more)
            more = {}
        async with aclosing(told) as parts:  # type: ignore[type-var]
            async for index, part in parts:
                asked.first()
                choices[index].add(part)
                if (choice := delta(index, part)) is not None:
                    yield frame.body([choice], **more)
                    more = {}
        if with_usage:
            yield frame.body([], usage=usage(prompt, choices))
    finally:
        asked.tokens(prompt, sum(len(choice.tokens) for choice in choices))


def chat_log_probs(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Token]) -> dict[str, Any]:
    """As chat has them."""
    def one(token: int, value: float | None) -> dict[str, Any]:
        text = _text(tokenizer, token)
        return {"token": text, "logprob": _finite(value), "bytes": list(text.encode("utf-8", "surrogatepass"))}

    return {"content": [{**one(token.id, token.log_prob), "top_logprobs": [one(*other) for other in token.top]}
                        for token in tokens]}


def text_log_probs(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Token], offset: int) -> dict[str, Any]:
    """As completions have them."""
    texts = [_text(tokenizer, token.id) for token in tokens]
    places = [offset + sum(map(len, texts[:index])) for index in range(len(texts))]
    return {"tokens": texts, "token_logprobs": [_finite(token.log_prob) for token in tokens], "text_offset": places,
            "top_logprobs": [{_text(tokenizer, other): _finite(value) for other, value in token.top}
                             for token in tokens]}


def _finite(value: float | None) -> float | None:
    """JSON has no infinity; OpenAI writes -9999."""
    return None if value is None else max(value, -9999.0)


def _text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
