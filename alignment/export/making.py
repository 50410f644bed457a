"""What an export stage has made so far, and how a form is held to the trained model, one model in memory at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from alignment.artifacts import Artifact
from alignment.config import Export
from alignment.context import StageContext
from alignment.export.compare import Compared, Trained, compared


@dataclass
class Making:
    """What a stage has made so far.

    Attributes:
        stored: what the weights in model/ are stored as; None for an adapter.
        found: form -> its distance from the trained model, and the bounds it was held to.
        files: path in a repository -> file.
    """

    context: StageContext
    stage: Export
    artifact: Artifact
    tokenizer: Any
    device: str
    dtype: torch.dtype
    trained: Trained
    stored: str | None = None
    found: dict[str, tuple[Compared, tuple[float, float]]] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def model(self) -> Path:
        return self.context.out / "model"

    def hold(self, form: str, rounded: tuple[str, ...], load: Callable[[], Any]) -> None:
        """Compare a form, loaded for as long as that takes, and hold it to its bounds.

        Args:
            rounded: what its weights were stored as on their way.
        """
        bounds = self.stage.bounds(*rounded, named(self.dtype))
        model = load()
        compare = compared(model.to(self.device).eval(), self.trained, self.tokenizer, form)
        del model
        free()
        self.context.event("compared", form=form, kl=compare.kl, top1=compare.top1, greedy=compare.greedy,
                           positions=compare.positions, max_kl=bounds[0], min_top1=bounds[1])
        self.found[form] = (compare.held_to(bounds, form, self.stage), bounds)

    def deliver(self, folder: Path, within: str) -> None:
        """Put a folder's files into the repository, below `within`."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.files[f"{within}{file.relative_to(folder).as_posix()}"] = file


def named(dtype: torch.dtype) -> str:
    """As configs call it: float32."""
    return str(dtype).removeprefix("torch.")


def free() -> None:
    """A model that nobody holds goes now: two of them in memory at once are too many, and they hold themselves in
    circles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
