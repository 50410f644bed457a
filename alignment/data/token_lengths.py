"""How long rows are in tokens: thresholds, quantiles, a histogram, and what a limit would cut. Pure; no tokenizer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

THRESHOLDS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
QUANTILES = (0.5, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Lengths:
    """Of token sequences.

    Attributes:
        sequences: how many.
        tokens, learned: of all together; `learned` of them have a loss.
        mean, longest: tokens of a sequence.
        quantiles: share of the sequences -> tokens that they do not exceed.
        above: threshold -> sequences that are longer.
    """

    sequences: int
    tokens: int
    learned: int
    mean: float
    longest: int
    quantiles: dict[float, int]
    above: dict[int, int]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Limit:
    """What `max_length` does to sequences.

    Attributes:
        over: sequences that are longer: `too_long: drop` loses them.
        answers_over: those whose learned part alone leaves no room for a prompt: lost under `truncate-prompt` as well.
        tokens_cut: tokens of prompts that `truncate-prompt` takes away.
    """

    tokens: int
    over: int
    answers_over: int
    tokens_cut: int


def summary(lengths: Sequence[int], learned: Sequence[int]) -> Lengths:
    """Figures of sequences.

    Args:
        lengths: tokens of each, at least one.
        learned: of each, how many of them have a loss.
    """
    ordered = sorted(lengths)
    count = len(ordered)
    return Lengths(
        count, sum(ordered), sum(learned), sum(ordered) / count, ordered[-1],
        {share: ordered[min(count - 1, -int(-share * count // 1) - 1)] for share in QUANTILES},
        {size: sum(length > size for length in ordered) for size in THRESHOLDS if size < ordered[-1]},
    )


def limited(lengths: Sequence[int], learned: Sequence[int], limit: int) -> Limit:
    """What a limit does to the same sequences."""
    over = [(length, said) for length, said in zip(lengths, learned, strict=True) if length > limit]
    cut = [length - limit for length, said in over if said < limit]
    return Limit(limit, len(over), len(over) - len(cut), sum(cut))


def bins(lengths: Sequence[int], most: int = 20) -> tuple[list[int], list[int]]:
    """Edges and counts of a histogram with round edges and at most so many columns; a column has its lower edge."""
    shortest, longest = min(lengths), max(lengths)
    widths = (size * 10 ** power for power in itertools.count() for size in (1, 2, 5))
    width = next(width for width in widths if longest // width - shortest // width < most)
    first = shortest // width
    counts = [0] * (longest // width - first + 1)
    for length in lengths:
        counts[length // width - first] += 1
    return [(first + index) * width for index in range(len(counts) + 1)], counts
