"""Stages that would give a model more tokens than its context length, where that is known before it is imported."""

from __future__ import annotations

from collections.abc import Iterator

from alignment.config import AnyStage, Run
from alignment.config.stages.fields import Place
from alignment.errors import ConfigError, KubeAlignError
from alignment.planner.context_length import of_stage, too_long


def beyond_context(run: Run, stage: AnyStage) -> Iterator[tuple[Place, ConfigError]]:
    """See `too_long`. A model that cannot be read at all is another check's to say."""
    def limit(name: str) -> int | None:
        try:
            return of_stage(run, name)
        except KubeAlignError:
            return None

    yield from too_long(stage, limit)
