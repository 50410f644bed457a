"""When the next request may go: how many at once, how many a minute, and how long to wait after a failure.

    Crowd        requests under way: one more for each round of answers, half as many after a refusal for load
    Minute       requests or tokens in any 60 seconds, at most
    pause        before a further attempt: doubled each time, with jitter, and never less than Retry-After says
    retry_after  what that header says, in seconds

Plain objects that are told the time; nothing here waits, asks or reads a clock.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before the first further attempt, doubled each time, and at most."""
WINDOW = 60.0
"""Seconds over which `Minute` counts."""
BEGIN = 4
"""Requests at once before the endpoint has shown what it bears."""


class Crowd:
    """How many requests may be under way, between 1 and `most`: additive increase, multiplicative decrease.

    As TCP does it (Chiu and Jain 1989): a round of answers adds one, a sign of load halves. Of all signs from requests
    that went before the last halving, none counts again: they tell of the same jam.
    """

    def __init__(self, most: int) -> None:
        self.most, self.bound = most, float(min(BEGIN, most))
        self.under_way = 0
        self._round = 0
        self.halvings = 0

    @property
    def room(self) -> bool:
        """Whether one more may go."""
        return self.under_way < int(self.bound)

    def enter(self) -> int:
        """One more is under way; returns what `leave` wants back."""
        self.under_way += 1
        return self._round

    def leave(self, entered: int, *, jam: bool | None) -> None:
        """It has ended.

        Args:
            jam: True: by a sign of load. False: by an answer. None: by anything that says nothing about load.
        """
        self.under_way -= 1
        if jam is False:
            self.bound = min(float(self.most), self.bound + 1 / int(self.bound))
        elif jam and entered == self._round:
            self.bound, self._round = max(1.0, self.bound / 2), self._round + 1
            self.halvings += 1


class Minute:
    """At most `limit` units in any WINDOW seconds; None: as many as there are."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._taken: deque[list[float]] = deque()  # [when, amount], oldest first
        self._sum = 0.0

    def wait(self, now: float, amount: float) -> float:
        """Seconds until `amount` may be taken; 0: now; infinity: it is more than a whole minute's."""
        if self.limit is None:
            return 0.0
        if amount > self.limit:
            return math.inf
        while self._taken and self._taken[0][0] <= now - WINDOW:
            self._sum -= self._taken.popleft()[1]
        over = self._sum + amount - self.limit
        if over <= 1e-9:
            return 0.0
        for when, taken in self._taken:
            over -= taken
            if over <= 1e-9:
                return max(when + WINDOW - now, 1e-3)
        return WINDOW

    def take(self, now: float, amount: float) -> list[float]:
        """Count `amount` from now on; returns the entry, for `correct`."""
        entry = [now, amount]
        if self.limit is not None:
            self._taken.append(entry)
            self._sum += amount
        return entry

    def correct(self, entry: list[float], amount: float) -> None:
        """It was another amount, as shows now."""
        if any(entry is one for one in self._taken):
            self._sum += amount - entry[1]
            entry[1] = amount


def pause(attempt: int, asked: float | None, draw: Callable[[], float] = random.random) -> float:
    """Seconds before the attempt after `attempt` (from 0).

    Args:
        asked: what Retry-After says.
        draw: a number of [0, 1).

    Returns: between half and all of FIRST_PAUSE x 2^attempt, LONGEST_PAUSE at most; and after Retry-After in any case,
        by up to a tenth more, so that all who were refused together do not come back together.
    """
    own: float = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(attempt, 30)) * (0.5 + draw() / 2)
    return own if asked is None else max(own, asked * (1 + draw() / 10))


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks to wait, 0 or more; None where it says nothing that can be read.

    Args:
        value: a number of seconds, or a date as HTTP writes it (RFC 9110, 10.2.3).
        now: in seconds since 1970.
    """
    text = (value or "").strip()
    if not text:
        return None
    try:
        seconds = float(text) if text.isascii() else math.nan
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
        except (ValueError, TypeError, OverflowError, IndexError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
