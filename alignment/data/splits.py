"""Records to splits: by what the file says, or by ratio so that no text crosses a split.

By ratio, rows that share a group, a passage or a prompt are one piece, and so are rows whose texts overlap
(overlap.py): what evaluation would refuse is never made. Pieces are ordered by a hash of seed and piece and cut at
the ratios, so each split is within one piece of its share of the rows. A piece's place in the order does not depend
on the other rows or on the file's order: rows that are added move a border a little, and reshuffle nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.data.compared import Text, number_of, text_of
from alignment.data.overlap import Overlaps, Rows
from alignment.records import Record


def by_field(records: Iterable[Record], names: Sequence[str]) -> dict[str, list[Record]]:
    """Split name -> its rows, from meta.split (importers let only rows pass whose value is one of `names`)."""
    made: dict[str, list[Record]] = {name: [] for name in names}
    for record in records:
        made[record.meta["split"]].append(record)
    return made


def by_ratio(
    records: Sequence[Record], ratios: Mapping[str, float], seed: int
) -> tuple[dict[str, list[Record]], list[Record]]:
    """(split name -> its rows, rows outside all ratios), each in the order of `records`; see `Ratios.cut`."""
    rows = Ratios(ratios, seed)
    for record in records:
        rows.add(text_of(record))
    made: dict[str, list[Record]] = {name: [] for name in ratios}
    outside: list[Record] = []
    for record, name in zip(records, rows.cut(), strict=True):
        made.get(name, outside).append(record)
    return made, outside


class Ratios:
    """Rows to be divided by ratio.

    Attributes:
        rows: what was added, to look for overlap in; closed by `cut`.
    """

    def __init__(self, ratios: Mapping[str, float], seed: int, folder: Path | None = None) -> None:
        """
        Args:
            ratios: split name -> share of the rows, in the order in which they are cut; their sum is at most 1.
            seed: another seed, another order of the pieces.
            folder: for temporary files, where there is much text.
        """
        self.ratios, self.seed = dict(ratios), seed
        self.rows = Overlaps(folder)
        self._groups: list[int] = []
        self._places, self._about = bytearray(), dict[int, bytes]()

    def add(self, text: Text) -> None:
        """Take one row more; ids are unique."""
        row = len(self.rows)
        self.rows.add(text)
        self._groups.append(0 if text.group is None else number_of(f"group {text.group}"))
        # Only the strongest name counts, so that one more question about a passage does not move the passage.
        strongest = f"passage {text.passage}" if text.passage else f"prompt {text.prompt}"
        self._places += self._place(strongest if text.group is None else f"group {text.group}")
        if text.about and text.group is None:
            self._about[row] = self._place(f"prompt {text.about}")

    def _place(self, name: str) -> bytes:
        return hashlib.sha256(f"{self.seed}\0{name}".encode()).digest()[:16]

    def cut(self) -> list[str]:
        """The split of each row, "" for rows outside all ratios. No row of a split overlaps another split.

        Where a cut would part two rows that overlap, they become one piece and the cut is made again; each time there
        are fewer pieces, so it ends.
        """
        self.rows.close()
        every = np.arange(len(self.rows))
        subject = self.rows.subjects(every)
        pieces = _Pieces(self._tied(subject), self._order(subject))
        while True:
            split = pieces.cut(list(self.ratios.values()))
            parted: list[tuple[int, int]] = []
            for number in range(len(self.ratios)) if len(self.ratios) > 1 else ():
                others = np.concatenate([every[split == other] for other in range(len(self.ratios)) if other != number])
                parted += [(one, other) for one, other, _ in
                           self.rows.between(every[split == number], others, subject)]
            if not parted:
                names = [*self.ratios, ""]
                return [names[number] for number in split.tolist()]
            pieces.tie(parted)

    def _tied(self, subject: NDArray[np.bool_]) -> Rows:
        """For each row, one that stands for all that share a group, a passage or a prompt with it, or with such."""
        parent = np.arange(len(self.rows)).tolist()
        prompts = np.where(subject, self.rows.prompts_about, self.rows.prompts)
        for keys in (np.array(self._groups, np.uint64), self.rows.passages, prompts):
            values, first, own, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
            several = (counts > 1) & (values != 0)
            for row in np.flatnonzero(several[own]).tolist():
                parent[_root(parent, row)] = _root(parent, int(first[own[row]]))
        return np.array([_root(parent, row) for row in range(len(parent))], np.int64)

    def _order(self, subject: NDArray[np.bool_]) -> Rows:
        """The place of each row among all."""
        places = np.frombuffer(bytes(self._places), ">u8").reshape(-1, 2).copy()
        for row, place in self._about.items():
            if subject[row]:
                places[row] = np.frombuffer(place, ">u8")
        order = np.empty(len(places), np.int64)
        order[np.lexsort((places[:, 1], places[:, 0]))] = np.arange(len(places))
        return order


class _Pieces:
    """Rows that must stay together, with their places in the order."""

    def __init__(self, tied: Rows, order: Rows) -> None:
        _, self._piece = np.unique(tied, return_inverse=True)
        count = int(self._piece.max(initial=-1)) + 1
        self._parent = list(range(count))
        self._sizes = np.bincount(self._piece, minlength=count)
        self._first = np.full(count, len(order))
        np.minimum.at(self._first, self._piece, order)

    def tie(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Make one piece of those that two rows are in."""
        for one, other in pairs:
            self._parent[_root(self._parent, int(self._piece[one]))] = _root(self._parent, int(self._piece[other]))

    def cut(self, ratios: Sequence[float]) -> NDArray[Any]:
        """The number of each row's split, len(ratios) outside all: pieces are divided in their order, and the one that
        a border falls into goes where its middle lies."""
        roots = np.array([_root(self._parent, piece) for piece in range(len(self._parent))], np.int64)
        sizes = np.bincount(roots, weights=self._sizes, minlength=len(roots))
        first = np.full(len(roots), len(self._piece))
        np.minimum.at(first, roots, self._first)
        whole = np.flatnonzero(sizes)
        whole = whole[np.argsort(first[whole])]
        bounds, reached = [], 0.0
        for ratio in ratios:
            reached += ratio
            bounds.append(reached * len(self._piece) + 1e-6)
        middle = np.cumsum(sizes[whole]) - sizes[whole] / 2
        target = np.zeros(len(roots), np.int64)
        target[whole] = np.searchsorted(bounds, middle)
        return target[roots][self._piece]


def _root(parent: list[int], index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index
