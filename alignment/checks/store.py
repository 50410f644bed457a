"""Whether an artifact store can be used at all, as far as that shows without asking it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from alignment.artifacts import Store
from alignment.errors import ArtifactError, KubeAlignError


def store(url: str) -> Iterator[KubeAlignError]:
    """What keeps an artifact store from being used; asks no network."""
    try:
        found = Store(url)
    except (ImportError, ValueError) as error:
        yield ArtifactError(f"the store's URL cannot be opened: {error}", found=url, expected="a folder or fsspec URL")
        return
    if not found.is_local:
        return
    path = Path(found.root)
    while not path.exists():
        path = path.parent
    if not path.is_dir():
        yield ArtifactError("the store cannot be a folder: a file is in the way", found=url,
                            expected=f"a folder instead of the file {path}")
    elif not os.access(path, os.W_OK | os.X_OK):
        yield ArtifactError("the store cannot be written", found=url,
                            expected=f"a folder that this user may write: {path}")
