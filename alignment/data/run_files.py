"""Temporary files of hashes: sorted ones that are read back by ranges, and short rows that are gone through twice.

What runs.py keeps outside memory. Files go with whoever holds them.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
BITS = 24
"""Of a hash, by which a table of what is wanted goes: 16 MiB."""
AT_ONCE = 1 << 19
"""Units in memory before what is made of them is written."""
_HELD = np.dtype([("hash", np.uint64), ("row", np.uint32), ("asked", np.bool_)])
_IN_MEMORY = 32 << 20
"""Bytes of a temporary file that stay in memory."""
_RANGES = 256
_WORDS = 200_000
"""Words whose hashes are kept at hand."""
_TURN = np.uint64(0x9E3779B97F4A7C15)


class Sorted:
    """(hash, row, asked) in a temporary file, in blocks that are sorted by hash."""

    def __init__(self, folder: Path | None) -> None:
        self._file = _temporary(folder)
        self._bounds: list[Numbers] = []

    def add(self, hashes: NDArray[np.uint64], rows: Numbers, asked: NDArray[np.bool_]) -> None:
        """A block, by rising rows; what stands in a row twice is kept once, and is asked for if one of both is."""
        order = np.argsort(hashes, kind="stable")
        held = np.empty(len(order), _HELD)
        held["hash"], held["row"], held["asked"] = hashes[order], rows[order], asked[order]
        if len(held):
            new = np.ones(len(held), bool)
            new[1:] = (held["hash"][1:] != held["hash"][:-1]) | (held["row"][1:] != held["row"][:-1])
            starts = np.flatnonzero(new)
            either = np.logical_or.reduceat(held["asked"], starts)
            held = held[starts]
            held["asked"] = either
        edges = np.arange(1, _RANGES, dtype=np.uint64) << np.uint64(56)
        begin = self._bounds[-1][-1] if self._bounds else 0
        self._bounds.append(begin + np.concatenate([[0], np.searchsorted(held["hash"], edges), [len(held)]]))
        self._file.write(held.tobytes())

    def blocks(self, most: int) -> Iterator[NDArray[Any]]:
        """All of it by ranges of the hash, sorted by hash and then row, about `most` at once."""
        if not self._bounds:
            return
        bounds = np.stack(self._bounds)
        upto = (bounds - bounds[:, :1]).sum(axis=0)
        begin = 0
        while begin < _RANGES:
            end = max(begin + 1, int(np.searchsorted(upto, upto[begin] + most, side="right")) - 1)
            made = np.concatenate([self._read(low, high) for low, high in bounds[:, [begin, end]].tolist()])
            yield made[np.argsort(made["hash"], kind="stable")]
            begin = end
        self._file.seek(0, 2)

    def _read(self, low: int, high: int) -> NDArray[Any]:
        self._file.seek(low * _HELD.itemsize)
        return np.frombuffer(self._file.read((high - low) * _HELD.itemsize), _HELD)


class Low:
    """Rows with few units: whole, so that a short text can be looked for in them once all are known."""

    def __init__(self, folder: Path | None) -> None:
        self._file = _temporary(folder)
        self._units, self._rows, self._lengths = array("Q"), array("Q"), array("B")
        self._short = array("b")
        self._done: list[tuple[Any, Any, Any]] = []

    def add(self, row: int, units: Sequence[int], *, short: bool) -> None:
        self._units.extend(units)
        self._rows.append(row)
        self._lengths.append(len(units))
        self._short.append(short)
        if len(self._units) >= AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        self._file.write(self._units.tobytes())
        self._done.append((np.array(self._rows, np.int64), np.array(self._lengths, np.int64),
                           np.array(self._short, bool)))
        self._units, self._rows, self._lengths = array("Q"), array("Q"), array("B")
        self._short = array("b")

    def into(self, held: Sorted) -> None:
        """Every short text with the rows that hold it."""
        self._flush()
        sizes = sorted({int(size) for _, lengths, short in self._done for size in np.unique(lengths[short])})
        if not sizes:
            return
        wanted = np.zeros(1 << BITS, bool)
        for units, _, lengths, short in self._each():
            starts = np.cumsum(lengths) - lengths
            for size in sizes:
                at = starts[short & (lengths == size)]
                wanted[low_bits(runs_of(units, size)[at])] = True
        for units, rows, lengths, short in self._each():
            row, ends = np.repeat(np.arange(len(lengths)), lengths), np.cumsum(lengths)
            found: list[tuple[Any, Any, Any]] = []
            for size in sizes:
                runs = runs_of(units, size)
                at = np.flatnonzero(wanted[low_bits(runs)])
                at = at[at + size <= ends[row[at]]]
                whole = short[row[at]] & (lengths[row[at]] == size)
                found.append((runs[at], row[at], whole))
            hashes, numbers, asked = (np.concatenate(column) for column in zip(*found, strict=True))
            order = np.argsort(numbers, kind="stable")
            held.add(hashes[order], rows[numbers[order]], asked[order])

    def _each(self) -> Iterator[tuple[NDArray[np.uint64], Any, Any, Any]]:
        self._file.seek(0)
        for rows, lengths, short in self._done:
            yield np.frombuffer(self._file.read(8 * int(lengths.sum())), np.uint64), rows, lengths, short


def _temporary(folder: Path | None) -> SpooledTemporaryFile[bytes]:
    return SpooledTemporaryFile(_IN_MEMORY, dir=None if folder is None else str(folder))


class Words(dict[str, int]):
    """Word -> 64 bits, the same in every process."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _WORDS:
            self.clear()
        made = self[word] = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"),
                                                           digest_size=8).digest())
        return made


def runs_of(units: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """A hash of each `size` units that follow on each other: a polynomial in them, modulo 2^64, and the size."""
    count = max(0, len(units) - size + 1)
    return reduce(lambda made, at: made * _TURN + units[at:at + count], range(size),
                  np.full(count, size, np.uint64))


def low_bits(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return hashes & np.uint64((1 << BITS) - 1)
