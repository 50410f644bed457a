"""What is asked of a model that is served, and what is heard of it. Plain values and a protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from alignment.inference.requests import Draw, Token


@dataclass(frozen=True)
class Question:
    """Answer `ids`, which are not empty, as `draw` says.

    Attributes:
        adapter: artifact key of the adapter that answers; None: the full weights alone.
        top: how many alternatives each token says beside its own log-probability; None: neither.
    """

    ids: tuple[int, ...]
    draw: Draw
    adapter: str | None
    top: int | None = None


@dataclass(frozen=True)
class Grown:
    """Tokens that an answer has grown by.

    Attributes:
        ended: whether it is whole.
        stop: whether the last token is the one that ended it, and no part of its text.
    """

    tokens: tuple[Token, ...]
    ended: bool
    stop: bool = False


@dataclass(frozen=True)
class Broken:
    """There will be no answer.

    Attributes:
        gone: whether the engine has ended, so that no other question will be answered either.
    """

    words: str
    gone: bool


Heard = Grown | Broken
Hear = Callable[[Heard], None]
"""Called from the engine's own thread, in order; must not wait. After `ended` or Broken there is nothing more."""


class LiveEngine(Protocol):
    """Full weights, and adapters over them that are not merged. All methods may be called from any thread."""

    @property
    def made_by(self) -> Mapping[str, Any]:
        """Engine, version, dtype."""

    @property
    def trouble(self) -> str | None:
        """Why it can answer no more; None while it can."""

    def ask(self, question: Question, hear: Hear) -> int:
        """Begin; returns the question's number at once."""

    def cancel(self, number: int) -> None:
        """Nobody waits for this answer any more; nothing more is heard of it, and its work ends soon."""

    def load(self, adapter: str | None) -> None:
        """Have the full weights loaded, and an adapter. Before the first question. Raises ModelError where its file is
        damaged, lacks a part or has what the model has no place for."""

    def close(self) -> None:
        """End it; questions that are open hear Broken."""
