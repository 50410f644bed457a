"""Rendered text -> the ids of its stretches between cuts; see encode.py for what a cut is.

What stands left of a cut is encoded without what stands right of it. Where a control token stands before the cut, only
the stretch behind that token is encoded again: a tokenizer takes such tokens out of a text first and encodes what is
between them apart, so that all before is as it is in the whole text (`ControlTokens.apart` says of which tokenizers
this is true).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignment.errors import ModelError
from alignment.templates.control import ControlTokens, Disguise, Ids
from alignment.templates.steps import Encoding

if TYPE_CHECKING:
    import re


def pieces(control: ControlTokens, disguise: Disguise, text: str, cuts: list[int], where: str) -> Encoding[list[Ids]]:
    """Ids of the stretches between cuts, which are sorted. What stands left of a cut never depends on what is right.

    Raises:
        ModelError: two stretches do not read as their text once they are encoded apart.
    """
    ends = [*cuts, len(text)]
    wholes = yield from _prefixes(control, disguise, text, ends)
    made: list[Ids] = []
    run: Ids = []
    run_start = last = 0
    for index, cut in enumerate(ends):
        whole = (yield [(text[run_start:cut], disguise)])[0] if run_start else wholes[index]
        if whole[: len(run)] == run:
            piece, run = whole[len(run):], whole
        else:
            piece = (yield [(text[last:cut], disguise)])[0]
            if control.tokenizer.decode(run + piece) != control.tokenizer.decode(whole):
                raise ModelError("prompt and answer cannot be tokenized apart", where=where,
                                 found=disguise.reveal(text[max(0, last - 20): last + 20]),
                                 hint="the tokenizer adds text at the start of a piece; use a template that puts a "
                                      "special token or a space before the answer")
            run_start, run = last, piece
        made.append(piece)
        last = cut
    return made


def _prefixes(control: ControlTokens, disguise: Disguise, text: str, ends: list[int]) -> Encoding[list[Ids]]:
    """Ids of the text up to each of the ends, of which the last is its own."""
    if disguise or not control.apart:
        return (yield [(text[:end], disguise) for end in ends])
    found = list(control.pattern.finditer(text))
    before = [_last_before(found, end) for end in ends[:-1]]
    starts = [0 if number is None else found[number].start() for number in before]
    asked = [(text[start:end], disguise) for start, end in zip(starts, ends, strict=False)]
    *tails, whole = yield [*asked, (text, disguise)]
    at = control.places(found, whole)
    if at is None:  # added tokens that overlap
        return (yield [(text[:end], disguise) for end in ends])
    return [*(whole[:at[number]] + tail if number is not None else tail
              for number, tail in zip(before, tails, strict=True)), whole]


def _last_before(found: list[re.Match[str]], end: int) -> int | None:
    """The last control token that ends at a cut or before it; none where the cut parts one."""
    number = next((index for index in reversed(range(len(found))) if found[index].start() < end), None)
    return number if number is None or found[number].end() <= end else None


def join(stretches: list[Ids]) -> Ids:
    """One after the other."""
    return [index for ids in stretches for index in ids]
