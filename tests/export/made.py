"""Exports for tests: a tiny run to an adapter, and an export stage over it, through the real pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignment.artifacts import Artifact
from alignment.config import Run
from alignment.pipeline import execute
from tests import small

WIDE = {**small.BASE, "model": {**small.BASE["model"], "hidden_size": 64}}
"""A base whose layers are no narrower than a block of NF4."""


def export(**more: Any) -> dict[str, Any]:
    """An export stage of model sft."""
    return {"name": "export", "kind": "export", "model": "sft", "rows": "data/test", "take": 3, **more}


def run(folder: Path, *stages: dict[str, Any], base: dict[str, Any] = small.BASE, **sft: Any) -> Run:
    """A run with a trained adapter, and these stages after it."""
    made = small.run(folder, small.train("sft", **sft), *stages).model_dump(mode="json")
    if base is not small.BASE:
        made["stages"][0] = base
    return Run.model_validate(made, strict=False)


def exported(made: Run) -> Artifact:
    """The artifact of the run's export."""
    artifact = execute(made).artifacts["export"]
    assert artifact is not None
    return artifact
