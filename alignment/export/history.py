"""What a model came from, as manifests say it: stages from the first import on, the data sets, the base, the numbers.

Reads manifests and results.json of the store. Paths of the machine that made them are left out but for files' names,
since a card is published.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from alignment.artifacts import Artifact, Manifest, Store
from alignment.config import KINDS
from alignment.errors import ArtifactError

_DATA = frozenset(kind.tag for kind in KINDS if kind.brings_data)


@dataclass(frozen=True)
class DataSet:
    """Rows that something was learned or generated from.

    Attributes:
        name: of the stage that imported them, in this run; files: their names, or hub names; digests: of the files.
    """

    name: str
    files: tuple[str, ...]
    rows: Mapping[str, int]
    digests: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """A stage of the history: its name, kind and method, its keys as obeyed, its artifact, its metrics."""

    name: str
    what: str
    key: str
    config: Mapping[str, Any]
    manifest: Manifest


@dataclass
class History:
    """Stages in the order in which they were made; every one that has a part in the model."""

    steps: list[Step] = field(default_factory=list)
    data: list[DataSet] = field(default_factory=list)
    base: Step | None = None

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(str(step.config["method"]) for step in self.steps if step.manifest.kind == "train"))


def history_of(artifact: Artifact, names: Mapping[str, str]) -> History:
    """Everything before an artifact, and itself.

    Args:
        names: artifact key -> what this run calls its stage; others go by the names of the run that made them.
    """
    found: dict[str, Manifest] = {}

    def visit(one: Artifact) -> None:
        if one.key in found:
            return
        for below in _below(one):
            visit(below)
        found[one.key] = one.manifest

    visit(artifact)
    told = History()
    for key, manifest in found.items():
        config = manifest.config
        name = names.get(key, manifest.stage)
        step = Step(name, key.rpartition("-")[0], key, config, manifest)
        told.steps.append(step)
        if step.what in _DATA:
            told.data.append(DataSet(name, _files(config), manifest.rows.written, _digests(manifest)))
        if key.startswith("import-model-") and not config["model"].get("base"):
            told.base = told.base or step
    return told


def _below(artifact: Artifact) -> Iterator[Artifact]:
    """What an artifact was made from, as far as it is still there; of one that was brought in, the one it was."""
    keys = [(artifact.store, key) for key in artifact.manifest.inputs.values()]
    origin = artifact.manifest.facts.get("artifact") if artifact.manifest.kind == "import" else None
    if isinstance(origin, dict):
        keys.append((Store(origin["store"]), origin["key"]))
    for place, key in keys:
        with suppress(ArtifactError):  # the other store may be gone: the history then begins here
            if (found := place.find(key)) is not None:
                yield found


def results_of(artifact: Artifact) -> dict[str, Any] | None:
    """results.json of an evaluation."""
    file = artifact.path() / "results.json"
    found: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    return found


def base_named(step: Step | None) -> str:
    """The base in words: a hub name with its commit, a file's name, or random weights."""
    if step is None:
        return "an imported model"
    model = step.config["model"]
    if model["source"] == "hub":
        return f"{model['repo']} at {step.manifest.facts.get('revision')}"
    if model["source"] == "tiny":
        return "random weights, made for a test"
    return f"{_last(model.get('file') or model.get('path') or '')}" + (
        f" of the package {model['package']}" if model.get("package") else "")


def _files(config: Mapping[str, Any]) -> tuple[str, ...]:
    sources = config.get("data") or config.get("documents") or ()
    return tuple(_last(source["path"]) if source.get("path") else str(source.get("hub")) for source in sources)


def _digests(manifest: Manifest) -> tuple[str, ...]:
    return tuple(str(digest)[:16] for digest in manifest.parts.get("sources") or ())


def _last(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]
