"""A few of many rows, drawn in one pass that counts all: for estimates that say what share they rest on."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
WHOLE = 20_000
"""Up to so many rows are all taken."""
FEW = 5_000
"""Of more, so many are drawn."""
LONGEST = 32
"""Beside those that are drawn, so many of the longest."""


class Few:
    """Draws from one set of rows.

    Attributes:
        read: rows that were gone through.
        drawn: how many of those that `of` gave were drawn; what it gave after them are the longest of the others.
    """

    def __init__(self, seed: str, whole: int = WHOLE, few: int = FEW) -> None:
        self._seed, self._whole, self._few = seed, whole, few
        self.read = self.drawn = 0

    @property
    def is_whole(self) -> bool:
        """Whether all rows were taken."""
        return self.drawn == self.read

    def of(self, rows: Iterable[T], size: Callable[[T], int]) -> list[T]:
        """The rows, or those that are drawn of more than `whole`, in their order, and then the longest of the others.

        Args:
            size: of a row, by which it is among the longest.
        """
        draw, kept, longest = random.Random(self._seed), list[tuple[int, T]](), list[tuple[int, int, T]]()
        number = -1
        for number, row in enumerate(rows):
            if number < self._whole:
                kept.append((number, row))
            else:
                if number == self._whole:
                    kept = draw.sample(kept, self._few)
                if (place := draw.randrange(number + 1)) < self._few:
                    kept[place] = number, row
            held = size(row), -number, row
            if len(longest) < LONGEST:
                heapq.heappush(longest, held)
            elif held[0] > longest[0][0]:
                heapq.heapreplace(longest, held)
        self.read, self.drawn = number + 1, len(kept)
        if self.is_whole:
            return [row for _, row in kept]
        there = {at for at, _ in kept}
        return [*(row for _, row in sorted(kept, key=lambda item: item[0])),
                *(row for _, at, row in longest if -at not in there)]
