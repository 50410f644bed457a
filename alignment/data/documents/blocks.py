"""What a reader gives: a document as blocks of text, each a paragraph or a heading. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

BREAK = "\n\n"
"""Between two blocks, in the text that places are counted in."""


class Block(NamedTuple):
    """A paragraph or a heading.

    Attributes:
        heading: its level, from 1; 0: a paragraph.
        pages: the first and the last page that it stands on, from 1; None where the file has no pages.
    """

    text: str
    heading: int = 0
    pages: tuple[int, int] | None = None


@dataclass(frozen=True)
class Part:
    """What is cut into passages by itself: a document, or one row of a table.

    Attributes:
        row: of a table, its number from 1, the line of names not counted.
    """

    blocks: list[Block] = field(default_factory=list)
    row: int | None = None

    @property
    def text(self) -> str:
        """All of it: what the characters of a passage are counted in."""
        return BREAK.join(block.text for block in self.blocks)
