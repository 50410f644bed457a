"""Rows that are gone through, to splits: which row goes where, what crosses the splits, and what is counted of each.

Holds numbers of rows and texts, and no rows. Reads and writes no split: the import stage does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.config import FieldSplit, RatioSplit
from alignment.data.compared import text_of
from alignment.data.overlap import Overlaps
from alignment.data.splits import Ratios
from alignment.data.text import prompt_of, units
from alignment.records import Record

_EXAMPLES = 3


@dataclass
class Divided:
    """Rows and their splits.

    Attributes:
        names: of the splits.
        split: number of each row's split; -1 outside all.
        texts: what is compared of the rows; None where there is one split, which nothing crosses.
    """

    names: tuple[str, ...]
    split: NDArray[np.int32]
    texts: Overlaps | None

    @property
    def outside(self) -> int:
        return int((self.split < 0).sum())

    def counts(self) -> dict[str, int]:
        """Rows of each split."""
        return {name: int((self.split == number).sum()) for number, name in enumerate(self.names)}

    def crossing(self) -> Iterator[tuple[str, int, dict[str, tuple[str, str]]]]:
        """(split, its rows, those that overlap rows of the splits before it, as `find_overlap` gives them) of each
        split where there are such."""
        if self.texts is None:
            return
        earlier = np.zeros(0, np.int64)
        for number, name in enumerate(self.names):
            own = np.flatnonzero(self.split == number)
            found = self.texts.between(own, earlier, self.texts.subjects(np.concatenate([own, earlier])))
            earlier = np.concatenate([earlier, own])
            if found:
                ids = self.texts.ids
                yield name, len(own), {ids[row]: (ids[other], reason) for row, other, reason in found}


def divide(
    records: Iterable[Record], names: tuple[str, ...], split: FieldSplit | RatioSplit, seed: int, folder: Path
) -> Divided:
    """The split of each record.

    Args:
        names: of the splits, in the order in which one is compared with those before it.
        folder: for temporary files.
    """
    if isinstance(split, FieldSplit):
        texts, numbers = Overlaps(folder), []
        for record in records:
            numbers.append(names.index(record.meta["split"]))
            if len(names) > 1:
                texts.add(text_of(record))
        texts.close()
        return Divided(names, np.array(numbers, np.int32), texts if len(names) > 1 else None)
    if list(split.ratios.values()) == [1.0]:
        return Divided(names, np.zeros(sum(1 for _ in records), np.int32), None)
    ratios = Ratios(split.cut, seed, folder)
    for record in records:
        ratios.add(text_of(record))
    number = {"": -1, **{name: number for number, name in enumerate(names)}}
    made = np.fromiter((number[name] for name in ratios.cut()), np.int32, len(ratios.rows))
    return Divided(names, made, ratios.rows if len(names) > 1 else None)


def taken_lines(path: Path, taken: Sequence[NDArray[np.bool_]]) -> Iterator[bytes]:
    """The lines of a file that are taken, with their ends."""
    with path.open("rb") as file:
        for line, wanted in zip(file, chain.from_iterable(taken), strict=True):
            if wanted:
                yield line


@dataclass
class SplitTally:
    """What is counted of the rows of a split, and the first of them. Lengths are in units (words; in scripts without
    blanks, characters)."""

    rows: int = 0
    first: list[Record] = field(default_factory=list)
    types: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    prompts: list[int] = field(default_factory=lambda: [0, 0, 0])
    answers: list[int] = field(default_factory=lambda: [0, 0, 0])

    def add(self, record: Record) -> None:
        """One row more."""
        self.rows += 1
        if len(self.first) < _EXAMPLES:
            self.first.append(record)
        self.types[record.type] += 1
        if "kind" in record.meta:
            self.kinds[str(record.meta["kind"])] += 1
        _add(self.prompts, sum(len(units(turn["content"])) for turn in prompt_of(record)))
        if (turns := record.conversation()) and turns[-1]["role"] == "assistant":
            _add(self.answers, len(units(turns[-1]["content"])))


def _add(lengths: list[int], length: int) -> None:
    """Number, sum and greatest of lengths."""
    lengths[:] = lengths[0] + 1, lengths[1] + length, max(lengths[2], length)


def metrics_of(splits: dict[str, SplitTally]) -> dict[str, float]:
    """Rows per split; units of prompts and answers over all splits."""
    metrics: dict[str, float] = {f"rows_{name}": tally.rows for name, tally in splits.items()}
    for name, parts in (("prompt_words", [tally.prompts for tally in splits.values()]),
                        ("answer_words", [tally.answers for tally in splits.values()])):
        if count := sum(part[0] for part in parts):
            metrics[f"mean_{name}"] = round(sum(part[1] for part in parts) / count, 2)
            metrics[f"max_{name}"] = max(part[2] for part in parts)
    return metrics


def facts_of(splits: dict[str, SplitTally]) -> dict[str, Any]:
    """Types and kinds over all splits."""
    return {"types": dict(sum((tally.types for tally in splits.values()), Counter())),
            "kinds": dict(sum((tally.kinds for tally in splits.values()), Counter()))}
