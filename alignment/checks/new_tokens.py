"""Whether tokens that an import adds are ever learned, as far as the run file tells."""

from __future__ import annotations

from alignment.checks.seen import Wrong
from alignment.config import Run, TrainBase
from alignment.errors import ConfigError


def learned(run: Run, stage: TrainBase) -> Wrong:
    """The first training of a model with new tokens that leaves their embeddings, which are all equal, as they are."""
    start = run.stage(stage.model)
    if start.untaught and stage.adapter is not None and not stage.adapter.modules_to_save:
        yield ("strategy", "modules_to_save"), ConfigError(
            f"{start.name} adds tokens, and this stage leaves the embeddings as they are: the model could not tell "
            "the new tokens apart", found=stage.adapter.kind,
            expected="modules_to_save: [embed_tokens, lm_head], or strategy full")
