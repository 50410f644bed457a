"""What went into an artifact, by manifests alone: the row sets that were read to make it, however far up.

For artifacts of other runs, whose run files need not be there. Reads no rows, and no models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath

from pydantic import TypeAdapter, ValidationError

from alignment.artifacts import Artifact, Manifest
from alignment.config import AnyStage
from alignment.errors import ArtifactError

SEEN = "seen"
"""Folder of an artifact that was brought in: KEY/SPLIT.jsonl, rows that were read to make it where it was made."""


def brought_rows(artifact: Artifact) -> Iterator[tuple[str, str]]:
    """(KEY/SPLIT, its file within the artifact) of the rows that came with an artifact of another run."""
    for name in artifact.manifest.files:
        parts = PurePosixPath(name).parts
        if parts[0] == SEEN and len(parts) == 3:
            yield f"{parts[1]}/{parts[2].removesuffix('.jsonl')}", name


def rows_learned(artifact: Artifact) -> dict[str, Path]:
    """Files of all rows that were read to make an artifact, by KEY/SPLIT; those of an object store are fetched.

    A stage of a version that this one does not know is taken to have read all rows that it was given.

    Raises:
        ArtifactError: something that it was made from is gone, so that this cannot be known.
    """
    found: dict[str, Path] = {}
    waiting, visited = [artifact], {artifact.key}
    while waiting:
        one = waiting.pop()
        found |= {ref: one.path() / name for ref, name in brought_rows(one)}
        stage = stage_of(one.manifest)
        quoted = set() if stage is None else {name for _, name in stage.quotes()}
        inputs = {name: _input(one, name, key) for name, key in one.manifest.inputs.items() if name not in quoted}
        for source, split in _read(stage, inputs):
            file = f"rows/{split}.jsonl"
            if file in source.manifest.files:  # a split that got no rows has no file
                found[f"{source.key}/{split}"] = source.path() / file
        waiting += [other for other in inputs.values() if other.key not in visited]
        visited |= {other.key for other in inputs.values()}
    return found


def stage_of(manifest: Manifest) -> AnyStage | None:
    """The stage of a manifest's config; None where this version does not know it."""
    try:
        return _stages().validate_json(json.dumps(manifest.config))
    except ValidationError:
        return None


def _read(stage: AnyStage | None, inputs: Mapping[str, Artifact]) -> Iterator[tuple[Artifact, str]]:
    if stage is None:
        yield from ((one, Path(name).stem) for one in inputs.values() for name in one.manifest.files
                    if name.startswith("rows/"))
        return
    apart = {rows.place for rows in stage.kept_apart()}
    yield from ((inputs[rows.stage], rows.split) for rows in stage.row_refs()
                if rows.place not in apart and rows.stage in inputs)


@cache
def _stages() -> TypeAdapter[AnyStage]:
    return TypeAdapter(AnyStage)


def _input(artifact: Artifact, name: str, key: str) -> Artifact:
    found = artifact.store.find(key)
    if found is None:
        raise ArtifactError(
            f"what it was made from is gone ({name}), so nobody knows which rows it has learned from",
            where=artifact.url, found=key, expected=f"an artifact at {artifact.store.url_of(f'artifacts/{key}')}",
            hint="run its run again; or import its model folder with source: folder, as a model of which nothing is "
                 "known")
    return found
