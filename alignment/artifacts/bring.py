"""Finished files under another name, and artifacts of another store in this one: links where that goes, else copies.

Neither is ever changed, so a link is as good as a copy. Knows nothing of stages, rows or models.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from alignment.artifacts.store import Artifact, Store


def taken_over(source: Path, target: Path) -> None:
    """The files below `source` below `target` too; a single file under that name."""
    for file in [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file()):
        other = target if file == source else target / file.relative_to(source)
        other.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, other)
        except OSError:
            shutil.copyfile(file, other)


def brought(artifact: Artifact, store: Store) -> Artifact:
    """The artifact in `store`, under the same key, with the same manifest; of several processes one brings it.

    Raises:
        ArtifactError: its files are gone or damaged, or one of the stores cannot be read or written.
    """
    if (found := store.find(artifact.key)) is not None:
        return found
    with store.lease(artifact.key, by=f"brought from {artifact.url}") as lease:
        if (found := store.find(artifact.key)) is not None:
            return found
        folder = store.workdir(artifact.key) / "brought"
        shutil.rmtree(folder, ignore_errors=True)
        artifact.verify(deep=artifact.store.is_local)  # a copy that is fetched is compared on its way
        whole = artifact.path()
        for name in artifact.manifest.files:
            taken_over(whole / name, folder / name)
        made = store.publish(artifact.manifest, folder, lease)
        store.clear_work(artifact.key)
    return made
