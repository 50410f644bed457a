"""A recorded row and what was served for the same messages: equal, equal but for a tie, or how they differ.

Ids of the prompt and the tokens that end an answer must be equal. Log-probabilities are sums of many rounded numbers,
and another engine, batch or card rounds them otherwise, so they may differ by a bound that goes by the arithmetic; and
where the likeliest token is hardly likelier than the next, the greedy answer may go another way there. Plain functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignment.inference.proof_rows import ProofRow

LEAST_COMPARED = 0.5
"""Of the recorded tokens: where ties leave less, nothing is proved."""


@dataclass(frozen=True)
class Bounds:
    """What may differ, in nats of one token: the largest, and the mean over all tokens of all rows.

    Float32: engines here differ by under 1e-4 in tests. Bfloat16 keeps 8 bits, and an adapter beside its base rounds
    otherwise than one that is merged.
    """

    most: float
    mean: float

    @property
    def tie(self) -> float:
        """A greedy choice between tokens that are nearer to each other may fall otherwise: each may be off by `most`,
        in other directions."""
        return 2 * self.most


FLOAT32 = Bounds(5e-4, 5e-5)
BFLOAT16 = Bounds(0.25, 0.03)
SCORE = {"float32": 1e-3, "bfloat16": 0.25}
"""How far a reward may be off, and this times its size where that is over 1."""


VECTOR = {"float32": 1e-4, "bfloat16": 0.03}
"""How far a vector may lie from the recorded one, as a share of its length: for small ones, the sine of the angle
between them and the difference of their lengths in one number."""


def bounds_of(recorded: str, served: str) -> Bounds:
    """For answers recorded in one arithmetic and served in another, or the same."""
    return FLOAT32 if recorded == served == "float32" else BFLOAT16


@dataclass(frozen=True)
class Served:
    """What came back for a row's messages."""

    prompt: Sequence[int]
    answer: Sequence[int]
    log_probs: Sequence[float]
    stop: int | None


@dataclass(frozen=True)
class Compared:
    """A row's outcome.

    Attributes:
        problem: how it differs, in words; None where it does not.
        off: how far each compared token's log-probability was off, in nats.
        tie: place of the answer where a tie was decided otherwise; nothing behind it is compared.
    """

    id: str
    problem: str | None
    off: tuple[float, ...] = ()
    tie: int | None = None


def compare(row: ProofRow, stops: Sequence[int], served: Served, bounds: Bounds) -> Compared:
    """Args:
        stops: tokens that end an answer of the served model.
    """
    if (place := _apart(row.prompt, served.prompt)) is not None:
        return Compared(row.id, f"the prompt has other ids: at place {place} {_at(served.prompt, place)}, recorded "
                                f"{_at(row.prompt, place)}")
    if sorted(stops) != sorted(row.stops):
        return Compared(row.id, f"other tokens end an answer: {sorted(stops)}, recorded {sorted(row.stops)}")
    place = _apart(row.answer, served.answer)
    shared = len(row.answer) if place is None else place
    off = tuple(abs(a - b) for a, b in zip(row.log_probs[:shared], served.log_probs[:shared], strict=True))
    far = next((at for at, value in enumerate(off) if not value <= bounds.most), None)
    if far is not None:
        return Compared(row.id, f"token {far} of the answer ({row.answer[far]}) has log-probability "
                                f"{served.log_probs[far]:.4f}, recorded {row.log_probs[far]:.4f}; at most "
                                f"{bounds.most:g} apart", off)
    if place is None:
        if served.stop != row.stop:
            return Compared(row.id, f"the answer ended by {served.stop}, recorded {row.stop}", off)
        return Compared(row.id, None, off)
    if place < min(len(row.answer), len(served.answer)) and row.gaps[place] <= bounds.tie and (
            served.answer[place] == row.runners_up[place]):
        return Compared(row.id, None, off, tie=place)
    return Compared(row.id, f"the answer differs at token {place}: {_at(served.answer, place)}, recorded "
                            f"{_at(row.answer, place)}"
                    + (f", which was likelier than any other by {row.gaps[place]:.3f} nats"
                       if place < len(row.gaps) else ""), off)


def together(rows: Sequence[ProofRow], outcomes: Sequence[Compared], bounds: Bounds) -> str | None:
    """What is wrong with all rows together, where each alone would pass."""
    off = [value for one in outcomes for value in one.off]
    recorded = sum(len(row.answer) for row in rows)
    if len(off) < LEAST_COMPARED * recorded:
        return (f"only {len(off)} of {recorded} recorded tokens could be compared, since the others stand behind "
                "choices between equals")
    mean = sum(off) / max(len(off), 1)
    if mean > bounds.mean:
        return f"log-probabilities are {mean:.2g} nats apart in the mean of {len(off)} tokens; at most {bounds.mean:g}"
    return None


def _apart(one: Sequence[Any], other: Sequence[Any]) -> int | None:
    """The first place where two lists differ; None where they are equal."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return None if len(one) == len(other) else min(len(one), len(other))


def _at(ids: Sequence[int], place: int) -> str:
    return str(ids[place]) if place < len(ids) else "nothing"
