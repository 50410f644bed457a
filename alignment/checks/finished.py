"""What later stages will read of a stage that is finished."""

from __future__ import annotations

from alignment.artifacts import Artifact
from alignment.checks.layers import remember_made
from alignment.checks.seen import Sight
from alignment.checks.tokens import remember_made_vocabulary
from alignment.checks.told import remember_made_text
from alignment.config import AnyStage
from alignment.records import read_records


def made(stage: AnyStage, artifact: Artifact, sight: Sight) -> None:
    """Instead of `wrong`, for a stage that is finished: what later ones will read of it, where that is cheap."""
    if not artifact.store.is_local:
        return
    for split in stage.splits():
        file = artifact.path() / "rows" / f"{split}.jsonl"
        if not file.exists() or file.stat().st_size <= sight.limit:  # a split that got no rows has no file
            sight.rows[f"{stage.name}/{split}"] = read_records(file) if file.exists() else []
    if stage.makes == "policy":
        remember_made(sight, stage, artifact)
        remember_made_text(sight, stage, artifact)
        remember_made_vocabulary(sight, stage, artifact)
