"""Text -> ids for one row or for many at once, by the same code.

A function that needs ids is a generator: it yields the texts that it wants encoded, all that it knows of at once, is
sent their ids, and returns what it makes of them. Alone, its texts are encoded as it asks. Of many, the first texts of
all are encoded in one batch, on every core, and each then goes on by itself, in order: so a batch gives what one row
after another gives, errors too. Encodes nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from alignment.templates.control import Disguise, Ids

T = TypeVar("T")
Wanted = tuple[str, Disguise]
"""A text, and what it hides."""
Encoding = Generator[list[Wanted], list[Ids], T]
Encode = Callable[[Sequence[Wanted]], list[Ids]]


def alone(steps: Encoding[T], encode: Encode) -> T:
    """What the steps return; raises what they raise."""
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send(encode(wanted))
    except StopIteration as end:
        made: T = end.value
        return made


def in_order(many: Iterable[Encoding[T]], encode: Encode) -> Iterator[Callable[[], T]]:
    """For each of many a call, to be made once and in turn: it gives what the steps return, or raises what they do."""
    begun = [_begin(steps) for steps in many]
    ids = encode([wanted for first, _ in begun for wanted in first])
    at = 0
    for first, rest in begun:
        own = ids[at:at + len(first)]
        at += len(first)
        yield partial(alone, rest(own), encode)


def gather(many: Sequence[Encoding[T]]) -> Encoding[list[T]]:
    """Steps that ask for the first texts of several at once, and return what each returns."""
    begun = [_begin(steps) for steps in many]
    ids = yield [wanted for first, _ in begun for wanted in first]
    made, at = [], 0
    for first, rest in begun:
        own = ids[at:at + len(first)]
        at += len(first)
        made.append((yield from rest(own)))
    return made


def _begin(steps: Encoding[T]) -> tuple[list[Wanted], Callable[[list[Ids]], Encoding[T]]]:
    """The first texts, and the steps after them; what is raised before them is raised there."""
    try:
        first = next(steps)
    except StopIteration as end:
        return [], partial(_ended, end.value)
    except Exception as error:
        return [], partial(_failed, error)
    return first, partial(_after, steps)


def _ended(value: T, ids: list[Ids]) -> Encoding[T]:
    yield from ()
    return value


def _failed(error: Exception, ids: list[Ids]) -> Encoding[T]:
    yield from ()
    raise error


def _after(steps: Encoding[T], ids: list[Ids]) -> Encoding[T]:
    try:
        wanted = steps.send(ids)
        while True:
            wanted = steps.send((yield wanted))
    except StopIteration as end:
        made: T = end.value
        return made
