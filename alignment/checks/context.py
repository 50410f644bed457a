"""Stages that would give a model more tokens than its context length, where that is known before it is imported."""

from __future__ import annotations

from alignment.checks.seen import Sight, Wrong
from alignment.config import AnyStage, Run
from alignment.errors import KubeAlignError
from alignment.planner.context_length import fitted, of_stage, shortened, too_long


def beyond_context(run: Run, stage: AnyStage, sight: Sight) -> Wrong:
    """See `too_long`. A model that cannot be read at all is another check's to say."""
    def limit(name: str) -> int | None:
        try:
            return of_stage(run, name)
        except KubeAlignError:
            return None

    obeyed = fitted(stage, limit)
    if (said := shortened(stage, obeyed)) is not None:
        sight.note(stage.name, said)
    yield from too_long(obeyed, limit)
