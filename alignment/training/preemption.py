"""A training in one process that SIGTERM is about to end saves first, and says after which step.

Ends nothing: interrupt.py does, or the job's own handler, once it is told. Not for workers, whose ranks would have to
save after the same step.
"""

from __future__ import annotations

import threading
from typing import Any

from transformers import TrainerCallback

from alignment import interrupt
from alignment.training.checkpoints import Checkpoints


class SaveBeforeEnd(TrainerCallback):  # type: ignore[misc]
    """From its first step to its last, a training is saved where SIGTERM comes."""

    checkpoints: Checkpoints
    """Set by `fit`."""

    def __init__(self) -> None:
        self.asked, self.told = threading.Event(), threading.Event()
        self.saved: int | None = None
        self.said: str | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        interrupt.saving(self._save)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.saved is None and self.asked.is_set():
            # Logged too: averages of a resumed run begin after its checkpoint.
            control.should_save = control.should_log = True
            self.saved = state.global_step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.saved is not None:
            self._tell(self.saved)
            threading.Event().wait(2 * interrupt.PATIENCE)  # nothing more is begun: the end comes now

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        interrupt.saving(None)
        self.told.set()  # it is at its end: nothing to wait for

    def _save(self, seconds: float) -> str | None:
        self.asked.set()
        self.told.wait(seconds)
        return self.said

    def _tell(self, step: int) -> None:
        self.checkpoints.finish()
        self.said = (f"step {step} is saved, run it again to go on from there" if self.checkpoints.kept(step) else
                     f"step {step} is saved on this machine alone, the store did not take it")
        self.told.set()
