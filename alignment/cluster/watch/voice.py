"""`Voice`: where what a command has to say goes. Nothing in `cluster` prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Voice:
    """Where sentences of progress (`say`) and lines of a stage's output (`write`) go."""

    say: Callable[[str], None]
    write: Callable[[str], None]
