"""Workers that are asked to save: all by their driver, those of a pod by its preStop hook.

The hook leaves a file and waits until it is gone, then the pod goes; the others' training breaks off, and the driver's
next attempt goes on from there. Until then training goes on. asks.py is the driver's half.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignment.distributed import asks
from alignment.interrupt import SAVE_FILE
from alignment.progress import console
from alignment.training.preemption import SaveBeforeEnd

_EVERY = 0.5
"""Seconds between two looks of the first rank at what the driver wants."""


class AskedWorkers(SaveBeforeEnd):
    """Asked by the driver through the first rank, by a pod's hook through every rank in it.

    Args:
        key: of the stage.
        first: whether this is rank 0.
    """

    def __init__(self, key: str, first: bool) -> None:
        super().__init__()
        self.key, self.first, self.looked, self.seen = key, first, 0.0, False
        self.file = Path(os.environ[SAVE_FILE]) if os.environ.get(SAVE_FILE) else None
        self.leave()  # what a rank that was killed has left; all ranks meet before a hook finds `training`

    def leave(self) -> None:
        """There is nothing to save any more, so no hook waits."""
        if self.file is not None:
            for file in (self._training(self.file), self.file):
                with suppress(OSError):
                    file.unlink(missing_ok=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.file is not None:  # any rank of the pod, for the hook: there is something to wait for
            self._training(self.file).write_text(str(os.getpid()), encoding="ascii")
        if self.first:
            asks.put(self.key, asks.TRAINING, "yes")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_end(args, state, control, **kwargs)
        self.leave()
        if self.first:
            asks.forget(self.key, asks.TRAINING)

    def asked(self) -> bool:
        if self.first and not self.seen and time.monotonic() - self.looked > _EVERY:
            self.looked = time.monotonic()
            self.seen = asks.get(self.key, asks.SAVE) is not None
        return self.seen or (self.file is not None and self.file.exists())

    def answer(self, said: str) -> None:
        if self.first:
            console.print(f"  {said}", markup=False)  # also where a pod's hook has asked
            asks.forget(self.key, asks.SAVE)
            asks.put(self.key, asks.SAVED, said)
        if self.file is not None:
            self.file.unlink(missing_ok=True)
        self.seen = False

    @staticmethod
    def _training(file: Path) -> Path:
        return file.with_name(file.name + ".pid")
