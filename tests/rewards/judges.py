"""Reward functions as a user would write them, good and faulty; found by import path."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from alignment.errors import DataError
from alignment.records import Record

NOT_CALLABLE = 3


def lengths(records: Sequence[Record], answers: Sequence[str]) -> list[float]:
    return [float(len(answer)) for answer in answers]


def share_of_a(record: Record, answer: str) -> float:
    return answer.count("a") / max(1, len(answer))


def raises(record: Record, answer: str) -> float:
    if record.id == "r1":
        raise ZeroDivisionError("by zero")
    return 1.0


def lacks(record: Record, answer: str) -> float:
    raise DataError("needs a passage", where=f"row {record.id}", found=[], expected="meta.passage")


def raises_all(records: Sequence[Record], answers: Sequence[str]) -> list[float]:
    raise OSError("no such judge")


def not_a_number(records: Sequence[Record], answers: Sequence[str]) -> list[float]:
    return [1.0, math.nan, *[1.0] * (len(answers) - 2)]


def nothing(records: Sequence[Record], answers: Sequence[str]) -> list[Any]:
    return [1.0, None, *[1.0] * (len(answers) - 2)]


def words(records: Sequence[Record], answers: Sequence[str]) -> list[Any]:
    return ["0.5"] * len(answers)


def too_few(records: Sequence[Record], answers: Sequence[str]) -> list[float]:
    return [1.0] * (len(answers) - 1)


def one_number(records: Sequence[Record], answers: Sequence[str]) -> Any:
    return 1.0


def hangs(records: Sequence[Record], answers: Sequence[str]) -> list[float]:
    time.sleep(60)
    return [0.0] * len(answers)


def es(records: Sequence[Record], answers: Sequence[str]) -> list[float]:
    """Learnable by a model that knows nothing: the share of one letter."""
    return [answer.count("e") / max(1, len(answer)) for answer in answers]


SEEN: list[tuple[Record, str]] = []
FAILS_AT: list[int] = []
"""Calls from which `fragile` raises; empty: never."""
_CALLS = [0]


def remembers(records: Sequence[Record], answers: Sequence[str]) -> list[float]:
    """`es`, and what was judged is kept in SEEN."""
    SEEN.extend(zip(records, answers, strict=True))
    return es(records, answers)


def fragile(records: Sequence[Record], answers: Sequence[str]) -> list[float]:
    """`es`, until it breaks."""
    _CALLS[0] += 1
    if FAILS_AT and _CALLS[0] >= FAILS_AT[0]:
        raise ConnectionError("the judge has gone")
    return es(records, answers)
