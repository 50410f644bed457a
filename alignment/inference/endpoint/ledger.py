"""What was paid at an endpoint, kept answer by answer in the stage's work, so that nothing is asked twice.

    WORK/paid-MODEL/NAME.jsonl     one line per answer, written and flushed when it comes; one file per process
    a remote store                 the same files, pushed every PUSH seconds and at the end

Beside the parts of distributed (whole batches), because a batch that is cut short was paid for in part. A line that a
kill cut is left out. Knows no endpoint and no prices.
"""

from __future__ import annotations

import json
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from alignment.artifacts import digest_of
from alignment.context import StageContext
from alignment.inference.requests import Completion, Draw, Failure, Request, Usage

PUSH = 30.0
"""Seconds between two pushes to a remote store, at least: what a lost machine has to pay again, at most."""
_FILE = "paid.jsonl"


def key_of(request: Request, draw: Draw) -> str:
    """What tells an answer from all others of the stage: row, prompt and parameters."""
    return digest_of([request.id, request.prompt, asdict(draw)])[:24]


class Ledger:
    """Answers that were paid, by key.

    Attributes:
        spent: cost of all that is in it, and at most of attempts whose reply never came.
    """

    def __init__(self, context: StageContext, model: str) -> None:
        self.context, self.folder = context, f"paid-{model}"
        self.path = context.work / self.folder
        self.path.mkdir(parents=True, exist_ok=True)
        self._own = self.path / f"{uuid.uuid4().hex}.jsonl"
        self._unsent: list[str] = []
        self._pushed = time.monotonic()
        self._paid: dict[str, Completion] = {}
        self._known: set[str] = set()
        self.spent = 0.0
        for line in self._lines():
            self._take(line)

    def __len__(self) -> int:
        return len(self._paid)

    def find(self, key: str) -> Completion | None:
        """The answer, where it was paid before."""
        return self._paid.get(key)

    def add(self, key: str, completion: Completion) -> None:
        """Keep an answer, or a refusal that would come again."""
        self._keep({"key": key, "text": completion.text, "finished": completion.finished,
                    "usage": completion.usage, "failure": completion.failure,
                    **({"calls": completion.calls} if completion.calls else {})})

    def waste(self, cost: float) -> None:
        """Keep what may have been paid for nothing."""
        if cost:
            self._keep({"key": uuid.uuid4().hex, "waste": cost})

    def push(self) -> None:
        """Send what a remote store has not yet. Does nothing on a local one."""
        store = self.context.store
        if not store.is_local and self._unsent:
            with tempfile.TemporaryDirectory() as temporary:
                Path(temporary, _FILE).write_text("".join(self._unsent), encoding="utf-8")
                store.push_work(self.context.key, f"{self.folder}/{digest_of(self._unsent)[:16]}",
                                source=Path(temporary))
        self._unsent, self._pushed = [], time.monotonic()

    def _keep(self, entry: dict[str, object]) -> None:
        line = json.dumps(entry, ensure_ascii=False) + "\n"
        with self._own.open("a", encoding="utf-8", newline="\n") as file:
            file.write(line)
        self._take(line)
        self._unsent.append(line)
        if time.monotonic() >= self._pushed + PUSH:
            self.push()

    def _take(self, line: str) -> None:
        with suppress(ValueError, TypeError, KeyError):
            raw = json.loads(line)
            if raw["key"] in self._known:
                return
            if "waste" in raw:
                self.spent += raw["waste"]
            else:
                usage = Usage(*raw["usage"])
                failure = None if raw["failure"] is None else Failure(*raw["failure"])
                calls = tuple((name, arguments) for name, arguments in raw.get("calls", ()))
                self._paid[raw["key"]] = Completion(raw["text"], [], raw["finished"], usage=usage, failure=failure,
                                                    calls=calls)
                self.spent += usage.cost or 0.0
            self._known.add(raw["key"])

    def _lines(self) -> Iterator[str]:
        """Of every process and attempt before, here and on a remote store."""
        for name in self.context.store.pull_work(self.context.key, f"{self.folder}/"):
            yield from _lines_of(self.context.work / name / _FILE)
        for file in sorted(self.path.glob("*.jsonl")):
            yield from _lines_of(file)


def _lines_of(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
