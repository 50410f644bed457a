"""Records to splits: by what the file says, or by ratio so that no text crosses a split.

By ratio, rows that share a group, a passage or a prompt are one piece, and so are rows whose texts overlap
(overlap.py): what evaluation would refuse is never made. Pieces are ordered by a hash of seed and piece and cut at
the ratios, so each split is within one piece of its share of the rows. A piece's place in the order does not depend
on the other rows or on the file's order: rows that are added move a border a little, and reshuffle nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from alignment.data.overlap import Text, find_text_overlap, texts_of
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
    """(split name -> its rows, rows outside all ratios), each in the order of `records`.

    No row of a split overlaps another split. Where a cut would part two rows that overlap, they become one piece and
    the cut is made again; each time there are fewer pieces, so it ends.

    Args:
        ratios: split name -> share of the rows, in the order in which they are cut; their sum is at most 1.
        seed: another seed, another order of the pieces.
    """
    texts = {text.id: text for text in texts_of(records)}
    ties: list[tuple[str, str]] = []
    while True:
        splits, outside = _cut(records, ratios, _pieces(records, texts, ties, seed))
        parted = []
        for name, rows in splits.items():
            others = [texts[record.id] for other in splits if other != name for record in splits[other]]
            overlap = find_text_overlap([texts[record.id] for record in rows], others)
            parted += [(row, other) for row, (other, _) in overlap.items()]
        if not parted:
            return splits, outside
        ties += parted


def _cut(
    records: Sequence[Record], ratios: Mapping[str, float], pieces: Sequence[tuple[bytes, list[int]]]
) -> tuple[dict[str, list[Record]], list[Record]]:
    """Divide the pieces in their order; the one that a border falls into goes where its middle lies."""
    target: dict[int, str] = {}
    bounds, reached = [], 0.0
    for name, ratio in ratios.items():
        reached += ratio
        bounds.append((name, reached * len(records)))
    filled = 0
    for _, members in sorted(pieces):
        middle = filled + len(members) / 2
        name = next((name for name, bound in bounds if middle <= bound + 1e-6), "")
        target.update(dict.fromkeys(members, name))
        filled += len(members)
    made: dict[str, list[Record]] = {name: [] for name in ratios}
    outside: list[Record] = []
    for index, record in enumerate(records):
        made.get(target[index], outside).append(record)
    return made, outside


def _pieces(
    records: Sequence[Record], texts: Mapping[str, Text], ties: Iterable[tuple[str, str]], seed: int
) -> list[tuple[bytes, list[int]]]:
    """(place in the order, row numbers) of each set of rows that must stay together (union-find).

    Ties are pairs of row ids.
    """
    parent = list(range(len(records)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[str, int] = {}
    names = [_names(record, texts[record.id]) for record in records]
    for index, row_names in enumerate(names):
        for name in row_names:
            parent[root(index)] = root(first.setdefault(name, index))
    numbers = {record.id: index for index, record in enumerate(records)}
    for one, other in ties:
        parent[root(numbers[one])] = root(numbers[other])
    members: dict[int, list[int]] = {}
    places: dict[int, bytes] = {}
    for index, row_names in enumerate(names):
        # Only the strongest name counts, so that one more question about a passage does not move the passage.
        place = hashlib.sha256(f"{seed}\0{row_names[0]}".encode()).digest()
        top = root(index)
        members.setdefault(top, []).append(index)
        places[top] = min(place, places.get(top, place))
    return [(places[top], rows) for top, rows in members.items()]


def _names(record: Record, text: Text) -> list[str]:
    """What ties a row to others, strongest first."""
    group = record.meta.get("group")
    names = [] if group is None else [f"group {group}"]
    return [*names, *([f"passage {text.passage}"] if text.passage else []),
            *([f"prompt {text.prompt}"] if text.prompt else [])]
