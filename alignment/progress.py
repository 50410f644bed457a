"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere (CI, pods).

`waiting` is for what has no units: it says every 15 seconds what is waited for. Nothing is measured or logged to files
here; a stage's events.jsonl is the record.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False, soft_wrap=True)
PLAIN_EVERY = 15.0
"""Seconds between plain lines where there is no terminal."""


class Tracker:
    """Counts units of one piece of work. `advance` may be called often; output is throttled."""

    def __init__(self, label: str, total: float | None, unit: str, bar: Progress | None) -> None:
        self.label, self.total, self.unit, self.bar = label, total, unit, bar
        self.done, self.note = 0.0, ""
        self.began = self.last = time.monotonic()
        self.task = bar.add_task(label, total=total, note="") if bar else None

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.done += amount
        self.note = note or self.note
        if self.bar is not None and self.task is not None:
            rate = self.done / max(time.monotonic() - self.began, 1e-9)
            text = f"{rate:.1f} {self.unit}/s {self.note}".rstrip()
            self.bar.update(self.task, advance=amount, note=text)
        elif time.monotonic() - self.last >= PLAIN_EVERY:
            self.last = time.monotonic()
            self._line()

    def _line(self) -> None:
        spent = time.monotonic() - self.began
        rate = self.done / max(spent, 1e-9)
        left = f", {max(self.total - self.done, 0) / rate:.0f} s left" if self.total and rate else ""
        goal = f"/{self.total:.0f}" if self.total else ""
        print(f"    {self.label}: {self.done:.0f}{goal} {self.unit}, {rate:.1f}/s{left} {self.note}".rstrip(),
              file=sys.stderr, flush=True)


@contextmanager
def track(label: str, total: float | None, unit: str = "rows") -> Iterator[Tracker]:
    """Show progress while the block runs.

    Args:
        label: what is done, short.
        total: units in all; None when unknown.
        unit: name of the unit, for the rate.
    """
    if console.is_terminal:
        columns = (
            TextColumn("    {task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(), TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            yield Tracker(label, total, unit, bar)
    else:
        yield Tracker(label, total, unit, None)


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
