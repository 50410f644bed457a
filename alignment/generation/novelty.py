"""How new a text is beside a growing pool: ROUGE-L F against every text of it, exactly, without asking every text.

Two questions. `nearest`: is any text of the pool over the threshold? A text over it has a length within bounds and
shares one of the candidate's rarer words, so an inverted index leaves few to compare (prefix filter, Chaudhuri et al.
2006). `similar`: the most similar texts and the mean over the whole pool, which need every comparison; longest common
subsequences of one text with thousands are computed at once, a bit for each word of the candidate (Crochemore et al.
2001, Hyyro 2004) and a numpy element for each text. Both give the numbers of rouge_score 0.1.2 without a stemmer, to
the last bit. Keeps tokens, never texts.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray

from alignment.words import words

Tokens = Callable[[str], list[str]]
_WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96, 160)
"""Most tokens of a group of texts; longer ones double it. Texts of a group are padded to it."""
_BLOCK = 8192
"""Texts compared at once: what is computed of so many stays in a core's cache."""
_LIMB = 62
"""Bits of a word count in one integer, where a candidate has more than 64 tokens: sums must not overflow."""


def rouge_tokens(text: str) -> list[str]:
    """As rouge_score without a stemmer: lower case, and what is no ASCII letter or digit is a blank. Of `café` that
    leaves `caf`, of Chinese nothing."""
    return re.findall(r"[a-z0-9]+", text.lower())


TOKENS: dict[str, Tokens] = {"rouge": rouge_tokens, "words": words}
"""Name in a config -> tokens of a text. `words`: alignment.words, where every Chinese character is one."""


class Near(NamedTuple):
    """A text of the pool, by its number in the order of adding, and its ROUGE-L F."""

    row: int
    score: float


class Similar(NamedTuple):
    """The most similar texts, the first first (of equals the earlier), and the mean over the whole pool."""

    top: list[Near]
    mean: float


@dataclass
class _Group:
    """Texts of a similar length, a column each.

    Attributes:
        tokens: [width, room] token ids, 0 after a text's end.
        lengths, rows: [room] tokens of each text; its number in the pool.
    """

    width: int
    count: int = 0
    tokens: NDArray[numpy.int32] = field(default_factory=lambda: numpy.zeros((0, 0), numpy.int32))
    lengths: NDArray[numpy.int64] = field(default_factory=lambda: numpy.zeros(0, numpy.int64))
    rows: NDArray[numpy.int64] = field(default_factory=lambda: numpy.zeros(0, numpy.int64))

    def add(self, ids: Sequence[int], row: int) -> int:
        """The column that the text got."""
        if self.count == self.tokens.shape[1]:
            room = max(64, 2 * self.count)
            tokens = numpy.zeros((self.width, room), numpy.int32)
            if self.count:
                tokens[:, : self.count] = self.tokens
            self.tokens = tokens
            self.lengths = numpy.concatenate([self.lengths, numpy.zeros(room - self.count, numpy.int64)])
            self.rows = numpy.concatenate([self.rows, numpy.zeros(room - self.count, numpy.int64)])
        column = self.count
        self.tokens[: len(ids), column] = ids
        self.lengths[column], self.rows[column] = len(ids), row
        self.count += 1
        return column


class Novelty:
    """A pool of texts that candidates are compared with.

    Args:
        tokens: of a text; `rouge_tokens` gives the reference's numbers.
    """

    def __init__(self, tokens: Tokens = rouge_tokens) -> None:
        self.tokens = tokens
        self.size = 0
        self._ids: dict[str, int] = {}
        self._groups: dict[int, _Group] = {}
        self._lengths = array("q")
        self._columns = array("q")
        self._holders = [array("q")]
        """Token id -> the texts that hold it, each once; 0 is no token."""

    def add(self, text: str) -> int:
        """Put a text into the pool; returns its number, from 0."""
        ids = [self._ids.setdefault(token, len(self._ids) + 1) for token in self.tokens(text)]
        self._holders += (array("q") for _ in range(len(self._ids) + 1 - len(self._holders)))
        row, width = self.size, _width(len(ids))
        group = self._groups.setdefault(width, _Group(width))
        self._columns.append(group.add(ids, row))
        self._lengths.append(len(ids))
        for token in set(ids):
            self._holders[token].append(row)
        self.size += 1
        return row

    def nearest(self, text: str, threshold: float) -> Near | None:
        """The most similar text if it is over `threshold` (of equals the earliest), else None."""
        ids = self._known(text)
        near = self._possible(ids, threshold)
        lengths, columns = _view(self._lengths)[near], _view(self._columns)[near]
        best: Near | None = None
        for width in {_width(int(length)) for length in numpy.unique(lengths)}:
            group = self._groups[width]
            at = columns[(lengths <= width) & (lengths > _width_below(width))]
            scores = f_measure(common(ids, group.tokens[:, at], len(self._ids)), len(ids), group.lengths[at])
            found = int(scores.argmax())
            score = float(scores[found])
            row = int(group.rows[at][scores == score].min())
            if score > threshold and (best is None or (-score, row) < (-best.score, best.row)):
                best = Near(row, score)
        return best

    def similar(self, text: str, top: int = 10) -> Similar:
        """The `top` most similar texts with a score above 0, and the mean score over all of the pool (0 of none)."""
        if not self.size:
            return Similar([], 0.0)
        scores = self.scores(text)
        if top < len(scores):
            least = numpy.partition(scores, -top)[-top] if top else math.inf
            rows = numpy.flatnonzero(scores >= max(least, numpy.nextafter(0, 1)))
        else:
            rows = numpy.flatnonzero(scores > 0)
        ordered = sorted((-float(scores[row]), int(row)) for row in rows)[:top]
        return Similar([Near(row, -score) for score, row in ordered], float(scores.mean()))

    def scores(self, text: str) -> NDArray[numpy.float64]:
        """ROUGE-L F against every text, [size], in the order of adding."""
        ids = self._known(text)
        made = numpy.zeros(self.size)
        for group in self._groups.values():
            for start in range(0, group.count, _BLOCK):
                end = min(start + _BLOCK, group.count)
                found = common(ids, group.tokens[:, start:end], len(self._ids))
                made[group.rows[start:end]] = f_measure(found, len(ids), group.lengths[start:end])
        return made

    def _known(self, text: str) -> list[int]:
        """Token ids; -1 for one that the pool has not."""
        return [self._ids.get(token, -1) for token in self.tokens(text)]

    def _possible(self, ids: Sequence[int], threshold: float) -> NDArray[numpy.int64]:
        """Texts that may be over the threshold.

        Of m and n tokens with L in common, F is 2L / (m + n); L is at most n, so n is at least threshold * m /
        (2 - threshold), and L at least threshold * (m + n) / 2. So of all but any L - 1 of the candidate's tokens that
        the pool knows one is in common: the rarest are asked for.
        """
        m = len(ids)
        shortest = math.ceil(threshold * m / (2 - threshold) - 1e-9)
        longest = math.inf if threshold <= 0 else m * (2 - threshold) / threshold + 1e-9
        least = max(1, math.ceil(threshold * (m + shortest) / 2 - 1e-9))
        holders = sorted((self._holders[token] for token in ids if token > 0), key=len)
        rare = {id(rows): rows for rows in holders[: max(0, len(holders) - least + 1)]}
        if not rare:
            return numpy.zeros(0, numpy.int64)
        found: NDArray[numpy.int64] = numpy.unique(numpy.concatenate([_view(rows) for rows in rare.values()]))
        lengths = _view(self._lengths)[found]
        return numpy.compress((lengths >= shortest) & (lengths <= longest), found)


def _view(values: array[int]) -> NDArray[numpy.int64]:
    return numpy.frombuffer(values, numpy.int64) if values else numpy.zeros(0, numpy.int64)


def common(ids: Sequence[int], tokens: NDArray[numpy.int32], highest: int) -> NDArray[numpy.int64]:
    """Lengths of the longest common subsequences of one text with many, [texts].

    Args:
        ids: the text's tokens; those that are not in 1..highest match nothing.
        tokens: [tokens, texts], 0 where a text has ended.
        highest: the highest token id.
    """
    m = len(ids)
    limbs = 1 if m <= 64 else -(-m // _LIMB)
    kind: Any = numpy.uint32 if m <= 32 else numpy.uint64
    bits = m if limbs == 1 else _LIMB
    table = numpy.zeros((limbs, highest + 1), kind)
    for place, token in enumerate(ids):
        if token > 0:
            table[place // bits, token] |= kind(1 << (place % bits))
    texts = tokens.shape[1]
    if not m or not texts:
        return numpy.zeros(texts, numpy.int64)
    rest = _one_limb(table[0], tokens) if limbs == 1 else _limbs(table, tokens)
    left = numpy.zeros(texts, numpy.int64)
    for limb, value in enumerate(rest):
        own = min(bits, m - limb * bits)
        left += numpy.bitwise_count(value & kind((1 << own) - 1))
    return m - left


def _one_limb(table: NDArray[Any], tokens: NDArray[numpy.int32]) -> list[NDArray[Any]]:
    """A bit stays set where the candidate's token has no part in the longest common subsequence so far."""
    free = numpy.full(tokens.shape[1], numpy.iinfo(table.dtype).max, table.dtype)
    hit, total = numpy.empty_like(free), numpy.empty_like(free)
    for row in tokens:
        numpy.take(table, row, out=hit, mode="clip")
        numpy.bitwise_and(free, hit, out=hit)
        numpy.add(free, hit, out=total)
        numpy.subtract(free, hit, out=free)
        numpy.bitwise_or(free, total, out=free)
    return [free]


def _limbs(table: NDArray[Any], tokens: NDArray[numpy.int32]) -> list[NDArray[Any]]:
    """The same over several integers, sums carried from one to the next."""
    full, shift = numpy.uint64((1 << _LIMB) - 1), numpy.uint64(_LIMB)
    free = [numpy.full(tokens.shape[1], full, numpy.uint64) for _ in table]
    for row in tokens:
        carry: NDArray[Any] = numpy.zeros(tokens.shape[1], numpy.uint64)
        for limb, masks in enumerate(table):
            hit = free[limb] & masks[row]
            total = free[limb] + hit + carry
            carry = total >> shift
            free[limb] = (total & full) | (free[limb] - hit)
    return free


def f_measure(common: NDArray[numpy.int64], m: int, lengths: NDArray[numpy.int64]) -> NDArray[numpy.float64]:
    """rouge_score's F of longest common subsequences, in its own order of operations."""
    if not m:
        return numpy.zeros(len(common))
    precision, recall = common / m, common / numpy.maximum(lengths, 1)
    total = precision + recall
    return numpy.where(total > 0, 2 * precision * recall / numpy.where(total > 0, total, 1), 0.0)


def _width(tokens: int) -> int:
    width = next((width for width in _WIDTHS if tokens <= width), _WIDTHS[-1])
    while width < tokens:
        width *= 2
    return width


def _width_below(width: int) -> int:
    """Most tokens of the group before."""
    if width > _WIDTHS[-1]:
        return width // 2
    return ([-1, *_WIDTHS])[_WIDTHS.index(width)]
