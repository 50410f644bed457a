"""A document's blocks cut into passages, the end of each shown again at the beginning of the next. Pure.

Cut between paragraphs where that leaves a passage at least half full, else between sentences; within a sentence only
where it is longer than a passage, and then between words: never inside one, nor inside a Chinese character's marks. A
heading goes with what it is above. Passages in their order, without what is shown again, are the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from alignment.data.documents.blocks import BREAK, Block, Part
from alignment.words import word_starts

_END = re.compile(
    r"[.!?…]+[\"'”’»)\]]*(?=\s)"  # scripts with blanks: a stop, what it closes, a blank
    "|[。！？；︒]+[”’」』）】》\"']*"  # Chinese and Japanese: no blank needed
    r"|[।॥۔؟።]+"
    r"|\n")
_BLANK = re.compile(r"\s*")
_ABBREVIATED = re.compile(
    r"(?:^|[\s(])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|No|Fig|Eq|cf|al|approx|[a-z]\.[a-z])\.$")
"""What ends with a full stop and no sentence: initials, titles, `e.g.`"""


class Atom(NamedTuple):
    """A piece of text that is not cut: a sentence, or the words of one that is too long.

    Attributes:
        block: number of the block that it belongs to; the blank space after it is its own.
        first: whether it begins its block.
    """

    start: int
    end: int
    words: int
    block: int
    first: bool


@dataclass(frozen=True)
class Passage:
    """A passage.

    Attributes:
        start, end: places in `Part.text`, what is shown again included.
        text: what stands there, without blank space around it.
        headings: those that it stands under, the highest first, without those that it holds itself.
        pages: the first and the last; None where there are none.
        shown_again: words at its beginning that end the passage before it.
    """

    start: int
    end: int
    text: str
    words: int
    headings: tuple[str, ...]
    pages: tuple[int, int] | None
    shown_again: int


def passages(part: Part, most: int, overlap: int) -> list[Passage]:
    """The passages of a document, in order.

    Args:
        most: words of a passage, at most.
        overlap: words of it that may have been shown before; less than `most`.
    """
    text, blocks = part.text, part.blocks
    atoms = list(_atoms(blocks, overlap or most, most))
    above = list(_above(blocks))
    made, begin, again = [], 0, 0
    while begin + again < len(atoms):
        stop = _stop(atoms, blocks, begin, begin + again, most)
        made.append(_passage(text, blocks, above, atoms[begin:stop], again))
        if stop == len(atoms):
            break
        again = 0 if blocks[atoms[stop].block].heading and atoms[stop].first else _again(
            atoms, blocks, begin, stop, most, overlap)
        begin = stop - again
    return made


def sentences(text: str) -> list[int]:
    """Where each sentence begins; the first is at 0. A line break ends one."""
    starts = [0]
    for match in _END.finditer(text):
        if match[0][0] == "." and _ABBREVIATED.search(text[max(0, match.start() - 12):match.start() + 1]):
            continue
        blank = _BLANK.match(text, match.end())
        after = match.end() if blank is None else blank.end()
        if starts[-1] < after < len(text):
            starts.append(after)
    return starts


def _atoms(blocks: Sequence[Block], piece: int, most: int) -> Iterator[Atom]:
    """Atoms that cover the text from end to end. A sentence of over `most` words comes in pieces of `piece`."""
    at = 0
    for number, block in enumerate(blocks):
        whole = len(block.text) + (len(BREAK) if number + 1 < len(blocks) else 0)
        starts = sentences(block.text)
        for place, start in enumerate(starts):
            end = starts[place + 1] if place + 1 < len(starts) else len(block.text)
            last = place + 1 == len(starts)
            words = word_starts(block.text[start:end])
            cuts = [0, *(words[piece::piece] if len(words) > most else ()), end - start]
            for index, (low, high) in enumerate(pairwise(cuts)):
                ends = whole if last and index + 2 == len(cuts) else start + high
                count = min(piece, len(words) - index * piece) if len(cuts) > 2 else len(words)
                yield Atom(at + start + low, at + ends, max(0, count), number, start + low == 0)
        at += whole


def _stop(atoms: Sequence[Atom], blocks: Sequence[Block], begin: int, new: int, most: int) -> int:
    """The atom that a passage ends before. It takes at least the first that is new.

    Args:
        begin, new: its first atom, and the first that was not shown before.
    """
    full, words = begin, 0
    while full < len(atoms) and (full <= new or words + atoms[full].words <= most):
        words += atoms[full].words
        full += 1
    if full == len(atoms):
        return full
    stop = full
    for place in range(full, new, -1):  # the last border of a paragraph, if that leaves the passage half full
        if atoms[place].first and 2 * words >= most:
            stop = place
            break
        words -= atoms[place - 1].words
    while stop - 1 > new and blocks[atoms[stop - 1].block].heading:
        stop -= 1  # a heading goes with what it is above
    return stop


def _again(atoms: Sequence[Atom], blocks: Sequence[Block], begin: int, stop: int, most: int, overlap: int) -> int:
    """Atoms before `stop` that the next passage shows again: whole sentences, not over a heading, and never so many
    that what is new would not fit."""
    room = min(overlap, most - atoms[stop].words)
    count = words = 0
    for number, atom in enumerate(reversed(atoms[begin + 1:stop]), 1):
        if words + atom.words > room or blocks[atom.block].heading:
            break
        words += atom.words
        count = number if atom.words else count  # signs alone are shown again within what is
    return count


def _passage(
    text: str, blocks: Sequence[Block], above: Sequence[tuple[str, ...]], atoms: Sequence[Atom], again: int
) -> Passage:
    start, end, first = atoms[0].start, atoms[-1].end, atoms[0].block
    while end > start and text[end - 1].isspace():
        end -= 1
    pages = [block.pages for block in blocks[first:atoms[-1].block + 1] if block.pages is not None]
    return Passage(
        start, end, text[start:end], sum(atom.words for atom in atoms), above[first],
        (min(low for low, _ in pages), max(high for _, high in pages)) if pages else None,
        sum(atom.words for atom in atoms[:again]))


def _above(blocks: Sequence[Block]) -> Iterator[tuple[str, ...]]:
    """Of each block the headings that it stands under; of a heading, those above it."""
    open_: list[Block] = []
    named: tuple[str, ...] = ()
    for block in blocks:
        if block.heading:
            open_ = [one for one in open_ if one.heading < block.heading]
            yield tuple(" ".join(one.text.split()) for one in open_)
            open_.append(block)
            named = tuple(" ".join(one.text.split()) for one in open_)
        else:
            yield named
