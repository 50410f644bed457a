"""Every stage's key, known before anything runs: what a stage is made from decides where it lies.

A key covers the stage's own config, the run's seed, the content of source files and the keys of its inputs; so a
changed key re-runs that stage and those after it, and no other. It does not cover where a run is computed
(`compute`), what it is called, or where logs go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alignment.artifacts import FORMAT, digest_of, key_of
from alignment.config import AnyStage, ImportData, ImportModel, Run, inputs_of
from alignment.data.fingerprint import files_digest, source_digest

_NOT_LEARNED = {"name", "log_to"}
"""Keys of a stage that change nothing in what it makes."""


@dataclass(frozen=True)
class Key:
    """Identity of a stage's artifact: `key` is its folder's name, `digest` the whole of it."""

    key: str
    digest: str
    config: dict[str, Any]


def keys(run: Run) -> dict[str, Key]:
    """Stage name -> key, in order. Reads source files (their content counts), nothing else.

    Raises:
        DataError: a source file is missing or cannot be read.
    """
    made: dict[str, Key] = {}
    for stage in run.stages:
        # Without the keys that are null: a later version's new, unused key must not make everything anew.
        config = stage.model_dump(mode="json", exclude=_NOT_LEARNED, exclude_none=True)
        if config.get("take") is not None:
            config["take"] = run.scaled(config["take"])
        parts = {
            "format": FORMAT,
            "config": config,
            "seed": run.seed,
            "inputs": {name: made[name].digest for name in inputs_of(stage)},
            "sources": _sources(run, stage, config),
        }
        digest = digest_of(parts)
        made[stage.name] = Key(key_of(stage.name, digest), digest, config)
    return made


def _sources(run: Run, stage: AnyStage, config: dict[str, Any]) -> Any:
    """Content digests of what a stage reads from outside; its paths are taken out of the config."""
    if isinstance(stage, ImportModel):
        config["model"] = {"source": stage.model.source}
        return source_digest(stage)
    if isinstance(stage, ImportData):
        for source, entry in zip(stage.data, config["data"], strict=True):
            entry["path"] = source.path.rsplit("/", 1)[-1]  # names rows; the folder does not matter
            entry["take"] = run.scaled(source.take)
        return files_digest([source.path for source in stage.data])
    return None
