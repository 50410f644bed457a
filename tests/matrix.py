"""Which cases of a matrix are run: those that cover every method, form and sharding once, or with KUBEALIGN_TEST_ALL=1
(`make test ALL=1`) every combination too."""

from __future__ import annotations

import os
from typing import TypeVar

ALL = os.environ.get("KUBEALIGN_TEST_ALL") == "1"
Case = TypeVar("Case")


def cases(usual: list[Case], rest: list[Case]) -> list[Case]:
    """The usual ones, and the rest where all are asked for."""
    return usual + rest if ALL else usual
