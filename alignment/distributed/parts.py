"""Finished parts of batched work: one file each in the stage's work folder, bundles of them on a remote store.

A part is there whole or not at all, and one that cannot be read counts as not there. To a remote store parts go in
bundles, at most one every PUSH seconds: two objects a bundle, however small and many the parts. Does not know what a
part holds or who makes it.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar

from alignment.artifacts import digest_of
from alignment.context import StageContext
from alignment.errors import StageError

PUSH = 30.0
"""Seconds between two pushes to a remote store, at least: what a lost machine loses at most, beside its last batch."""
_BUNDLE = "parts.jsonl"
"""The one file of a pushed folder: [name, part] per line."""


class Part(Protocol):
    """What became of one batch, as text and back."""

    def to_json(self) -> str:
        """One JSON value; NaN and infinities may be written as Python's json does."""

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of to_json. Raises ValueError, TypeError or KeyError on anything else: then it is made again."""


P = TypeVar("P", bound=Part)


class Parts(Generic[P]):
    """All parts of a plan, in its order, read from their files each time they are gone through.

    Attributes:
        reused: items whose parts an earlier attempt had made.
    """

    def __init__(self, names: Iterable[str], read: Callable[[str], P | None], reused: int) -> None:
        self.names, self.read, self.reused = list(names), read, reused

    def __iter__(self) -> Iterator[P]:
        for name in self.names:
            part = self.read(name)
            if part is None:
                raise StageError("a finished part can no longer be read", where=f"part {name}",
                                 hint="is the disk full or damaged? run again to make it anew")
            yield part


class Kept(Generic[P]):
    """Finished parts: NAME.json in a folder of the stage's work, and bundles of them on a remote store."""

    def __init__(self, context: StageContext, folder: str, part: type[P]) -> None:
        self.context, self.folder, self.part = context, folder, part
        self.path = context.work / folder
        self.path.mkdir(parents=True, exist_ok=True)
        self.unsent: list[str] = []
        self.pushed = time.monotonic()

    def find(self, names: Collection[str]) -> set[str]:
        """Those of the names whose part is here and whole, after what was pushed has been fetched."""
        sent = set(self._pull())
        found = {name for name in names if self.read(name) is not None}
        self.unsent = [name for name in names if name in found - sent]
        return found

    def read(self, name: str) -> P | None:
        """A finished part; None where there is none, a disk lost what it held, or another version wrote it."""
        try:
            return self.part.from_json(self._file(name).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def add(self, name: str, text: str) -> None:
        """Keep a part, and push when it is time."""
        self._write(name, text)
        self.unsent.append(name)
        if time.monotonic() >= self.pushed + PUSH:
            self.push()

    def push(self) -> None:
        """Send what is here and not on the remote store, as one bundle. Does nothing on a local one."""
        store = self.context.store
        if not store.is_local and self.unsent:
            with tempfile.TemporaryDirectory() as temporary:
                lines = (json.dumps([name, self._file(name).read_text(encoding="utf-8")], ensure_ascii=False)
                         for name in self.unsent)
                Path(temporary, _BUNDLE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
                bundle = f"{self.folder}/{digest_of(self.unsent)[:16]}"
                store.push_work(self.context.key, bundle, source=Path(temporary))
        self.unsent, self.pushed = [], time.monotonic()

    def _pull(self) -> Iterator[str]:
        """Unpack the store's bundles; yields the names of their parts."""
        for bundle in self.context.store.pull_work(self.context.key, f"{self.folder}/"):
            file = self.context.work / bundle / _BUNDLE
            if not file.exists():  # an earlier version pushed every part by itself
                continue
            with file.open(encoding="utf-8") as lines:
                for line in lines:
                    name, text = json.loads(line)
                    if self.read(name) is None:
                        self._write(name, text)
                    yield name

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.json"

    def _write(self, name: str, text: str) -> None:
        """Write a part so that it is there whole or not at all."""
        temporary = self.path / f".{name}.new"
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._file(name))
