"""Every stage's key, known before anything runs: what a stage is made from decides where it lies.

A key covers the stage's own config with its dtype settled, the run's seed where the stage draws, the content of source
files and the digests of its inputs; so a changed key re-runs that stage and those after it, and no other. It does not
cover where else a run is computed (`compute`), what the run and its stages are called, or where logs go. A kind's or
method's `revision` counts from 2 on: raised, it makes anew what a faulty version made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from alignment import templates
from alignment.artifacts import FORMAT, digest_of, key_of
from alignment.config import (
    AnyStage,
    ArtifactModel,
    ArtifactRef,
    DocumentFile,
    FolderModel,
    GgufModel,
    HubModel,
    Run,
    RunRows,
    ShippedTemplate,
    Source,
    TaskFile,
    TinyModel,
)
from alignment.config.arithmetic import settled_here
from alignment.config.prompts import PromptFile, read_prompt
from alignment.config.stages.fields import Place
from alignment.data.artifact_source import key_meant
from alignment.data.fingerprint import document_digest, file_digest, folder_digest, gguf_path, local_digest
from alignment.planner.auto import resolved


@dataclass(frozen=True)
class Key:
    """Identity of a stage's artifact: `key` is its folder's name, `digest` the sha256 of `parts`."""

    key: str
    digest: str
    parts: dict[str, Any]


def keys(run: Run, known: Mapping[str, str] = MappingProxyType({})) -> dict[str, Key]:
    """Stage name -> key, in order. Reads source files (their content counts), nothing else. A dtype or strategy that
    is still open is settled for this machine; a run for a cluster was settled by its profile.

    Args:
        known: digests of stages whose sources need not be read, and whose `parts` nobody asks for.

    Raises:
        DataError: a source file is missing or cannot be read.
    """
    made: dict[str, Key] = {}
    for stage in settled_here(resolved(run)[0]).stages:
        if stage.name in known:
            made[stage.name] = Key(key_of(stage.tag, known[stage.name]), known[stage.name], {})
            continue
        digests = {name: made[name].digest for name in stage.inputs()}
        config = stage.learned(run.scaled)
        parts = {"format": FORMAT, "config": config if stage.says_names else _without_names(stage, config, digests)}
        if stage.says_names:
            parts["inputs"] = digests
        if stage.draws:
            parts["seed"] = run.seed
        if (sources := content_of(stage, run.store)) is not None:
            parts["sources"] = sources
        if revisions := stage.revisions() | stage.mended():
            parts["revisions"] = revisions
        digest = digest_of(parts)
        made[stage.name] = Key(key_of(stage.tag, digest), digest, parts)
    return made


def _without_names(stage: AnyStage, config: dict[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    """The config with the digests of the stages that it reads in place of their names."""
    for model in stage.model_refs():
        _put(config, model.place, digests[model.stage])
    for rows in stage.row_refs():
        _put(config, rows.place, f"{digests[rows.stage]}/{rows.split}")
    return config


def _put(config: Any, place: Place, value: str) -> None:
    *above, last = place
    for key in above:
        config = config[key]
    config[last] = value


def content_of(stage: AnyStage, store: str) -> Any:
    """Digests of what a stage reads from outside: a list of files in order, or one object for all that makes a model;
    None for a stage that reads artifacts alone.

    Args:
        store: of the run, where another run's artifact is looked for that says none.

    Raises:
        DataError, ModelError: a source is missing or cannot be read.
        ArtifactError: there is no such run, or no such stage of it.
    """
    found = [CONTENT[type(item.source)](stage.name, _within(item.source, store)) for item in stage.sources()]
    if found and isinstance(found[0], dict):
        return {key: value for part in found for key, value in part.items()}
    return found or None


def _within(source: object, store: str) -> object:
    return source.within(store) if isinstance(source, ArtifactRef) else source


def _task_file(stage: str, file: TaskFile) -> dict[str, str]:
    """By its name; what the tasks are called, and where their files lie, is apart."""
    if file.error is not None:
        raise file.error
    return {file.name: file_digest(file.path)}


def _artifact(stage: str, ref: ArtifactRef) -> dict[str, str]:
    """By its key, of which the digest is part: a key, RUN:STAGE and a path of one artifact are the same."""
    return {"artifact": key_meant(f"stage {stage}", ref)}


CONTENT: dict[type, Callable[[str, Any], Any]] = {
    Source: lambda stage, source: source.place if source.path is None else file_digest(source.path),
    DocumentFile: lambda stage, file: document_digest(stage, file),
    HubModel: lambda stage, model: {"source": "hub", "repo": model.repo, "revision": model.revision},
    FolderModel: lambda stage, model: {"source": "folder", "files": folder_digest(stage, model)},
    GgufModel: lambda stage, model: {"source": "gguf", "file": local_digest(gguf_path(stage, model))},
    TinyModel: lambda stage, model: model.model_dump(mode="json"),
    ArtifactModel: _artifact,
    RunRows: _artifact,
    TaskFile: _task_file,
    PromptFile: lambda stage, prompt: {f"prompt {prompt.step}": hashlib.sha256(
        read_prompt(prompt, f"stage {stage}, prompts.{prompt.step}").encode()).hexdigest()},
    ShippedTemplate: lambda stage, template: {
        "template": hashlib.sha256(templates.source(template.name).encode()).hexdigest()},
}
"""What a stage may read from outside -> what stands for its content in the digest, from (stage's name, source)."""
