"""Runs of eight words that several rows hold, found in one pass over any number of rows.

A run is a 64-bit hash. Runs of all rows go to a temporary file in sorted blocks; from there they are read back by
ranges of the hash, and only those that two rows hold stay in memory, about 20 bytes for each row that does. Does not
know what a row is, nor when two overlap.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.data.run_files import AT_ONCE, BITS, Low, Numbers, Sorted, Words, low_bits, runs_of

RUN = 8
"""Units of a run."""
NEVER = np.iinfo(np.int64).max
"""Place of a row that is not compared with."""
_PER_BLOCK = 1 << 21
"""Runs that are looked at together."""


@dataclass(frozen=True)
class Block:
    """Some of the texts that several rows hold, each with the rows that do.

    Attributes:
        rows: the rows, those of one text together, in it those of one name together.
        asked: whether the text is one by which its row may be found; its row may also merely hold it.
        starts: where each text begins in `rows`.
        names: where each name of each text begins in `rows`.
        name_starts: where each text begins in `names`.
    """

    rows: NDArray[np.uint32]
    asked: NDArray[np.bool_]
    starts: Numbers
    names: Numbers
    name_starts: Numbers

    def hits(self, test: NDArray[np.bool_], place: Numbers, limit: int) -> tuple[Numbers, Numbers, NDArray[np.bool_]]:
        """(test row, place of the first seen row that holds it, whether more than `limit` names do) of each text of a
        test row that a seen row holds.

        Args:
            test: of all rows, whether it is looked for.
            place: of all rows, its place among the seen; NEVER.
        """
        places, looked = place[self.rows], test[self.rows] & self.asked
        first = np.minimum.reduceat(places, self.starts)
        there = np.logical_or.reduceat((places != NEVER) | looked, self.names)
        common = np.add.reduceat(there.astype(np.int64), self.name_starts) > limit
        text = np.repeat(np.arange(len(self.starts)), np.diff(self.starts, append=len(self.rows)))
        hit = looked & (first != NEVER)[text]
        return self.rows[hit].astype(np.int64), first[text[hit]], common[text[hit]]


class Runs:
    """Takes rows; gives the runs of words that several of them hold."""

    def __init__(self, folder: Path | None) -> None:
        self._runs, self._short = Sorted(folder), Sorted(folder)
        self._words = Words()
        self._units, self._lengths, self._rows, self._asked = array("Q"), array("q"), array("q"), array("b")
        self._low = Low(folder)
        self._wanted: NDArray[np.bool_] | None = None

    def add(self, row: int, parts: Sequence[Sequence[str]], asked: Sequence[bool], *, short: bool, holds: bool
            ) -> None:
        """A row's parts, as units; no run goes from one part to the next.

        Args:
            row: not less than that of the row before.
            asked: of each part, whether the row may be found by its runs.
            short: the row may be found by its text as a whole.
            holds: a short text may stand anywhere in it.
        """
        if holds:
            self._low.add(row, [self._words[unit] for part in parts for unit in part], short=short)
        for part, one in zip(parts, asked, strict=True):
            if len(part) >= RUN:
                self._units.extend(map(self._words.__getitem__, part))
                self._lengths.append(len(part))
                self._rows.append(row)
                self._asked.append(one)
        if len(self._units) >= AT_ONCE:
            self._flush()

    def only_what_is_there(self) -> None:
        """Keep no further run that no row so far may be found by."""
        self._flush()
        self._wanted = np.zeros(1 << BITS, bool)
        for held in self._runs.blocks(_PER_BLOCK):
            self._wanted[low_bits(held["hash"][held["asked"]])] = True

    def close(self, count: int, names: NDArray[np.uint64], told: NDArray[np.uint64]
              ) -> tuple[Numbers, list[Block], list[Block]]:
        """(different runs that each of `count` rows may be found by; runs, and short texts, that several rows hold).

        Args:
            names: of each row; what few names hold is no boilerplate.
            told: of each row; rows of one value are not compared.
        """
        self._flush()
        own = np.zeros(count, np.int64)
        shared = []
        for held in self._runs.blocks(_PER_BLOCK):
            own += np.bincount(held["row"][held["asked"]], minlength=count)
            shared += _block(held, names, told)
        self._low.into(self._short)
        return own, shared, [block for held in self._short.blocks(_PER_BLOCK) for block in _block(held, names, told)]

    def _flush(self) -> None:
        if len(self._units):
            lengths = np.frombuffer(self._lengths, np.int64)
            part = np.repeat(np.arange(len(lengths)), lengths)
            runs = runs_of(np.frombuffer(self._units, np.uint64), RUN)
            part = part[:len(runs)]
            whole = np.arange(len(runs)) + RUN <= np.cumsum(lengths)[part]
            runs, part = runs[whole], part[whole]
            if self._wanted is not None:
                near = self._wanted[low_bits(runs)]
                runs, part = runs[near], part[near]
            self._runs.add(runs, np.frombuffer(self._rows, np.int64)[part],
                           np.frombuffer(self._asked, np.int8)[part].astype(bool))
        self._units, self._lengths, self._rows, self._asked = array("Q"), array("q"), array("q"), array("b")


def _block(held: NDArray[Any], names: NDArray[np.uint64], told: NDArray[np.uint64]) -> list[Block]:
    """What is shared of what is held, as one block; none where nothing is."""
    starts = _starts(held["hash"])
    if not len(starts):
        return []
    said = told[held["row"]]
    kept = (np.minimum.reduceat(said, starts) != np.maximum.reduceat(said, starts)) & np.logical_or.reduceat(
        held["asked"], starts)
    text = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(held)))
    here = kept[text]
    text, held = text[here], held[here]
    if not len(held):
        return []
    order = np.lexsort((names[held["row"]], text))
    text, rows = text[order], held["row"][order]
    starts, name = _starts(text), names[rows]
    new = np.ones(len(rows), bool)
    new[1:] = (text[1:] != text[:-1]) | (name[1:] != name[:-1])
    begins = np.flatnonzero(new)
    return [Block(rows, held["asked"][order], starts, begins, np.searchsorted(begins, starts))]


def _starts(values: NDArray[Any]) -> Numbers:
    """Where each value of sorted ones begins."""
    return np.flatnonzero(np.concatenate([np.ones(min(1, len(values)), bool), values[1:] != values[:-1]]))
