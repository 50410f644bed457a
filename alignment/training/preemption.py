"""A training that is about to be ended saves first: all ranks after the same step, and whoever asked is told.

A process is asked by SIGTERM (interrupt.py), workers by their driver or by the hook of a pod (distributed/asked.py).
Ends nothing: whoever asked does.
"""

from __future__ import annotations

import threading
from typing import Any

from transformers import TrainerCallback

from alignment import interrupt
from alignment.training import ranks
from alignment.training.checkpoints import Checkpoints, barrier


class SaveBeforeEnd(TrainerCallback):  # type: ignore[misc]
    """Asks after each step whether to save. On every rank."""

    checkpoints: Checkpoints
    """Set by `fit`."""

    def __init__(self) -> None:
        self.saved: int | None = None
        self.times = 0

    def asked(self) -> bool:
        """Whether this rank was asked to have all save; called after each step."""
        raise NotImplementedError

    def answer(self, said: str) -> None:
        """Called on every rank, with what was saved, once all have saved and pushed."""
        raise NotImplementedError

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.saved is None:
            at = ranks.soon(f"save-{self.times}", state.global_step, self.asked())
            if at is not None and state.global_step >= at:
                # Logged too: averages of a resumed run begin after its checkpoint.
                control.should_save = control.should_log = True
                self.saved = state.global_step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell()

    def _tell(self) -> None:
        if self.saved is None:
            return
        step, self.saved, self.times = self.saved, None, self.times + 1
        self.checkpoints.finish()
        barrier()  # every disk has pushed its part
        self.answer(f"step {step} is saved, run it again to go on from there" if self.checkpoints.kept(step) else
                    f"step {step} is saved on this machine alone, the store did not take it")


class InThisProcess(SaveBeforeEnd):
    """A training without workers, which the process's own SIGTERM asks to save."""

    def __init__(self) -> None:
        super().__init__()
        self._ask, self._told = threading.Event(), threading.Event()
        self.said: str | None = None

    def asked(self) -> bool:
        return self._ask.is_set()

    def answer(self, said: str) -> None:
        self.said = said
        self._told.set()
        threading.Event().wait(2 * interrupt.PATIENCE)  # nothing more is begun: the end comes now

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        interrupt.saving(self._save)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        interrupt.saving(None)
        self._told.set()  # it is at its end: nothing to wait for

    def _save(self, seconds: float) -> str | None:
        self._ask.set()
        self._told.wait(seconds)
        return self.said
