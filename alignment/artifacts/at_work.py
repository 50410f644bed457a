"""What is told of unfinished work: whether somebody is at it, and how far. Nothing is decided by it.

    STORE/work/KIND-DIGEST/progress.json   told by whoever makes the stage, wherever that is
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

from alignment.artifacts.lease import Holder
from alignment.artifacts.work import Workspace
from alignment.errors import ArtifactError
from alignment.progress import State, duration

EVERY_HERE, EVERY_AWAY = 1.0, 15.0
"""Seconds between two states that are told to a folder, and to a remote store."""
SILENT = 120.0
"""Seconds after which a holder of another machine that gives no sign of life counts as gone; it gives one every 10."""


@dataclass(frozen=True)
class Work:
    """Unfinished work."""

    state: Literal["running", "stopped"]
    """stopped: it was begun, and nobody is at it."""
    progress: State | None
    """As last told; None: nothing is counted yet."""

    def __str__(self) -> str:
        if self.progress is None:
            return self.state
        if self.state == "stopped":
            done, total = self.progress.done, self.progress.total
            return f"stopped at {done:,.0f}" + (f" of {total:,.0f}" if total else "") + f" {self.progress.unit}"
        old = time.time() - self.progress.told
        return f"{self.progress.label}: {self.progress}" + (f" ({duration(old)} ago)" if old > SILENT else "")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Work:
        return cls(tree["state"], State(**tree["progress"]) if tree["progress"] else None)


def work_of(store: Workspace, key: str, holder: Holder | None) -> Work | None:
    """What is known of an unfinished artifact's work; None where it was not begun.

    Args:
        holder: of its lease.
    """
    path = f"work/{key}/progress.json"
    try:
        with store.guard(path, "read"):
            state = State(**json.loads(store.fs.cat_file(f"{store.root}/{path}")))
    except (FileNotFoundError, ValueError, TypeError):
        state = None
    if holder is None or holder.gone or holder.silent > SILENT:
        return Work("stopped", state) if state is not None else None
    # What an earlier attempt told is no news of this one.
    return Work("running", state if state is not None and state.told >= holder.since else None)


def teller(store: Workspace, key: str) -> Callable[[State], None]:
    """Tells the store how far the work is, now and then, beside the work itself; a store that does not answer is no
    reason to stop."""
    every, last = EVERY_HERE if store.is_local else EVERY_AWAY, -1e9
    busy = threading.Lock()

    def write(text: str) -> None:
        path = f"{store.root}/work/{key}/progress.json"
        with busy, suppress(ArtifactError, OSError):
            if store.is_local:  # renamed into place: a reader never sees half of it
                temporary = f"{path}.{os.getpid()}"
                with open(temporary, "w", encoding="utf-8") as file:
                    file.write(text)
                os.replace(temporary, path)
            else:
                with store.guard(f"work/{key}/progress.json", "written"):
                    store.fs.pipe_file(path, text.encode())

    def tell(state: State) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < every or busy.locked():
            return
        last, text = now, json.dumps(asdict(state))
        if store.is_local:
            write(text)
        else:
            threading.Thread(target=write, args=(text,), name="progress", daemon=True).start()

    return tell
