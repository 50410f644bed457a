"""Which rows are asked and with which parameters, all from the run's seed and the row's id.

Nothing depends on the order of work, the batch or the number of workers, so a resumed run draws the same. Runs no
model.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

from alignment.config import Sampling
from alignment.inference.requests import Draw


class HasId(Protocol):
    """Anything with a row id."""

    @property
    def id(self) -> str:
        """Unique within the set that is chosen from."""


T = TypeVar("T", bound=HasId)


def choose(rows: Sequence[T], take: int | None, seed: int) -> list[T]:
    """At most `take` rows, drawn by a hash of seed and id, in their input order.

    A larger take holds the smaller one's rows, so that scaling a run up adds rows and swaps none.
    """
    if take is None or take >= len(rows):
        return list(rows)
    ranked = sorted(rows, key=lambda row: hashlib.sha256(f"{seed}/{row.id}".encode()).digest())
    kept = {row.id for row in ranked[:take]}
    return [row for row in rows if row.id in kept]


def choose_of(each: Callable[[], Iterator[T]], take: int | None, seed: int) -> tuple[Iterator[T], int | None]:
    """The rows that `choose` takes, in the memory of their ids: they are gone through twice rather than kept.

    Args:
        each: goes through all rows, anew at each call.

    Returns:
        The rows, and how many there are in all where they were counted: where some are drawn.
    """
    if take is None:
        return each(), None
    there = [_Named(row.id) for row in each()]
    kept = frozenset(row.id for row in choose(there, take, seed))
    return (row for row in each() if row.id in kept), len(there)


class _Named(NamedTuple):
    id: str


def draws(row: str, seed: int, n: int, sampling: Sampling, first: Sampling | None = None,
          model: str = "newest") -> tuple[Draw, ...]:
    """The `n` draws of one prompt; pairs [low, high] of the config become numbers here.

    Args:
        row: the prompt's id.
        seed: the run's seed.
        first: parameters of draw 0, where they differ.
        model: enters the seed, so that two models never share their random numbers.
    """
    made = []
    for index in range(n):
        given = first if first is not None and index == 0 else sampling
        # A string seeds Python's generator by sha512: the same on every machine and version.
        source = random.Random(f"{seed}/{model}/{row}/{index}")
        made.append(Draw(
            temperature=_value(given.temperature, source),
            top_p=_value(given.top_p, source),
            top_k=source.randint(*given.top_k) if isinstance(given.top_k, tuple) else given.top_k,
            repetition_penalty=given.repetition_penalty,
            max_new_tokens=given.max_new_tokens,
            seed=source.getrandbits(62),
            presence_penalty=given.presence_penalty or 0.0,
        ))
    return tuple(made)


def _value(given: float | tuple[float, float], source: random.Random) -> float:
    return source.uniform(*given) if isinstance(given, tuple) else given
