"""Text that grows with an answer's tokens, and is never taken back. Knows neither requests nor engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignment.templates import Spoken


class Text(Protocol):
    """Text that grows with tokens."""

    def add(self, token: int) -> str: ...

    def end(self, *, finished: bool) -> str: ...


class Plain:
    """Text that continues a prompt as it stands, no answer of a conversation."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._ids, self._given = tokenizer, list[int](), ""

    def add(self, token: int) -> str:
        self._ids.append(token)
        return self._give(plain(self._tokenizer, self._ids).rstrip("\ufffd"))

    def end(self, *, finished: bool) -> str:
        return self._give(plain(self._tokenizer, self._ids))

    def _give(self, text: str) -> str:
        if not text.startswith(self._given):
            return ""
        piece, self._given = text[len(self._given):], text
        return piece


class Whole:
    """Text that nobody reads before its end: decoded once, by a function of ids and whether a stop token came."""

    def __init__(self, decode: Callable[[list[int], bool], str]) -> None:
        self._decode, self._ids = decode, list[int]()

    def add(self, token: int) -> str:
        self._ids.append(token)
        return ""

    def end(self, *, finished: bool) -> str:
        return self._decode(self._ids, finished)


class Until:
    """Another text, up to the first of some stop texts and without it: what may become one is held back."""

    def __init__(self, text: Text, stops: Sequence[str]) -> None:
        self._text, self._stops = text, stops
        self._held = ""
        self.found: str | None = None

    @property
    def call(self) -> Spoken | None:
        """The call that it ended with (calls.py)."""
        call: Spoken | None = getattr(self._text, "call", None)
        return call

    def add(self, token: int) -> str:
        return self._take(self._text.add(token), last=False)

    def end(self, *, finished: bool) -> str:
        return self._take(self._text.end(finished=finished), last=True)

    def _take(self, piece: str, *, last: bool) -> str:
        if self.found is not None:
            return ""
        held = self._held + piece
        places = [(place, stop) for stop in self._stops if (place := held.find(stop)) >= 0]
        if places:
            place, self.found = min(places)
            return held[:place]
        keep = 0 if last else max((size for stop in self._stops for size in range(1, min(len(stop), len(held) + 1))
                                   if held.endswith(stop[:size])), default=0)
        self._held = held[len(held) - keep:]
        return held[: len(held) - keep]


def plain(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of ids that continue a text, special tokens left out."""
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
