"""The items of one JSON list as they come, in the memory of one item and of one piece of the file.

What json.loads makes of the whole, and refuses, this makes of it and refuses, with line and column; only that here the
items before a fault were given already. Does not open files, nor know what items mean.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_BLANK = " \t\n\r"
_NEAR = 64
"""Characters before the end of what is there, in which a fault, or the end of a number, may be the piece's end."""


def items_of(pieces: Iterable[bytes], hook: Callable[[list[tuple[str, Any]]], Any]) -> Iterator[Any]:
    """The items of a list in UTF-8.

    Args:
        hook: makes an object of its pairs, as json's object_pairs_hook.

    Raises:
        ValueError: no JSON list: of json.JSONDecodeError, `lineno` and `colno` are those of the whole.
    """
    text = _Text(pieces)
    text.expect("[", "Expecting a list")
    if text.next() == "]":
        text.at += 1
    else:
        decoder = json.JSONDecoder(object_pairs_hook=hook)
        while True:
            text.next()
            yield text.item(decoder)
            if text.next() != ",":
                break
            text.at += 1
        text.expect("]", "Expecting ',' delimiter")
    if text.next():
        raise text.fault("Extra data", text.at)


class _Text:
    """What is there of a text that comes in pieces.

    Attributes:
        held: characters that are there; at: the place in them that was reached.
        lines: line ends before `held`; column: characters of its first line before it.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces, self._decode = iter(pieces), codecs.getincrementaldecoder("utf-8")()
        self.held, self.at, self.lines, self.column, self.over = "", 0, 0, 0, False

    def more(self) -> None:
        """Let go of what was passed, and read at least as much as is left, so that a long item is not tried often."""
        done = self.held[:self.at]
        self.lines += done.count("\n")
        self.column = len(done) - done.rindex("\n") - 1 if "\n" in done else self.column + len(done)
        parts = [self.held[self.at:]]
        wanted = max(1, len(parts[0]))
        while wanted > 0 and not self.over:
            piece = next(self._pieces, None)
            self.over = piece is None
            parts.append(self._decode.decode(piece or b"", self.over))
            wanted -= len(parts[-1])
        self.held, self.at = "".join(parts), 0

    def next(self) -> str:
        """The next character that is not blank; "" at the end."""
        while True:
            while self.at < len(self.held) and self.held[self.at] in _BLANK:
                self.at += 1
            if self.at < len(self.held) or self.over:
                return self.held[self.at : self.at + 1]
            self.more()

    def expect(self, sign: str, problem: str) -> None:
        if self.next() != sign:
            raise self.fault(problem, self.at)
        self.at += 1

    def item(self, decoder: json.JSONDecoder) -> Any:
        """The value that begins here."""
        while True:
            try:
                value, end = decoder.raw_decode(self.held, self.at)
            except json.JSONDecodeError as error:
                # A text without an end is said to be wrong where it begins.
                early = error.pos < len(self.held) - _NEAR and not error.msg.startswith("Unterminated string")
                if early or self.over:
                    raise self.fault(error.msg, error.pos) from error
            else:
                if self.over or end < len(self.held) - _NEAR:
                    self.at = end
                    return value
            self.more()

    def fault(self, problem: str, place: int) -> json.JSONDecodeError:
        error = json.JSONDecodeError(problem, self.held, place)
        error.colno += self.column if error.lineno == 1 else 0
        error.lineno += self.lines
        return error
