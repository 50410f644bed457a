"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere (CI, pods).

Nothing is logged to files here: a stage's events.jsonl is the record, and its context tells the store how far it is.
`waiting` is for what has no units: it says every 15 seconds what is waited for.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
console = Console(stderr=True, highlight=False, soft_wrap=True)
PLAIN_EVERY = 15.0
"""Seconds between plain lines where there is no terminal."""


@dataclass(frozen=True)
class State:
    """How far a piece of work is, as it is told to others."""

    label: str
    """What is done."""
    unit: str
    done: float
    total: float | None
    """None: not known."""
    began_at: float
    """Units that an earlier attempt had done."""
    rate: float
    """Units a second in this attempt; 0 before the first."""
    note: str
    told: float
    """When, in seconds since 1970."""

    def __str__(self) -> str:
        goal = f" of {self.total:,.0f}" if self.total else ""
        before = f" (went on from {self.began_at:,.0f})" if self.began_at else ""
        parts = [f"{self.done:,.0f}{goal} {self.unit}{before}"]
        if self.rate:
            parts.append(f"{self.rate:.3g} {self.unit}/s")
        if self.rate and self.total:
            parts.append(f"{duration(max(self.total - self.done, 0) / self.rate)} left")
        return ", ".join([*parts, *([self.note] if self.note else [])])


def duration(seconds: float) -> str:
    """Seconds -> `8 s`, `5 min 12 s`, `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


Tell = Callable[[State], None]
"""Gets states as they come; decides itself which it passes on."""


class Tracker:
    """Counts units of one piece of work. `advance` may be called often; output is throttled."""

    def __init__(self, label: str, total: float | None, unit: str, bar: Progress | None,
                 tell: Tell | None = None) -> None:
        self.label, self.total, self.unit, self.bar, self.tell = label, total, unit, bar, tell
        self.done, self.note, self.began_at = 0.0, "", 0.0
        self.began = self.last = time.monotonic()
        self.task = bar.add_task(label, total=total, note="") if bar else None
        self._told()

    def begin_at(self, amount: float) -> None:
        """Work that was done before counts as done, and not for the rate."""
        self.done = self.began_at = amount
        self.began = time.monotonic()
        if self.bar is not None and self.task is not None:
            self.bar.reset(self.task, completed=int(amount), total=self.total)
        self._told()

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.done += amount
        self.note = note or self.note
        if self.bar is not None and self.task is not None:
            text = f"{self.state().rate:.1f} {self.unit}/s {self.note}".rstrip()
            self.bar.update(self.task, advance=amount, note=text)
        elif time.monotonic() - self.last >= PLAIN_EVERY:
            self.last = time.monotonic()
            print(f"    {self.label}: {self.state()}", file=sys.stderr, flush=True)
        self._told()

    def counted(self, items: Iterable[T], note: Callable[[], str] = str) -> Iterator[T]:
        """The items, counted as they are gone through: quick ones, a thousand at once.

        Args:
            note: what is said beside.
        """
        number = 0
        for number, item in enumerate(items, start=1):
            yield item
            if not number % 1000:
                self.advance(1000, note())
        self.advance(number % 1000, note())

    def state(self) -> State:
        spent = max(time.monotonic() - self.began, 1e-9)
        return State(self.label, self.unit, self.done, self.total, self.began_at,
                     (self.done - self.began_at) / spent, self.note, round(time.time(), 3))

    def _told(self) -> None:
        if self.tell is not None:
            self.tell(self.state())


@contextmanager
def track(label: str, total: float | None, unit: str = "rows", tell: Tell | None = None) -> Iterator[Tracker]:
    """Show progress while the block runs.

    Args:
        label: what is done, short.
        total: units in all; None when unknown.
        unit: name of the unit, for the rate.
        tell: gets every state.
    """
    if console.is_terminal:
        columns = (
            TextColumn("    {task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(), TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            yield Tracker(label, total, unit, bar, tell)
    else:
        yield Tracker(label, total, unit, None, tell)


@contextmanager
def waiting(what: Callable[[], str]) -> Iterator[None]:
    """Say what is waited for, and for how long so far, every PLAIN_EVERY seconds until the block ends.

    Args:
        what: called for each line, in a thread of its own. A line that it cannot make is left out.
    """
    over, began = threading.Event(), time.monotonic()

    def speak() -> None:
        while not over.wait(PLAIN_EVERY):
            with suppress(Exception):  # of whoever is asked, who may be going away; the block itself will tell
                console.print(f"  {what()} ({time.monotonic() - began:.0f} s so far)", markup=False)

    thread = threading.Thread(target=speak, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5)
