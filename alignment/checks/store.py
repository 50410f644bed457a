"""Whether an artifact store can be used at all, as far as that shows without asking it; URLs that nothing can be at."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from alignment.artifacts import Store
from alignment.errors import ArtifactError, ConfigError, KubeAlignError

_NAMED = re.compile(r"(s3a?|gs|gcs|https?)://([^/\s]*)(.?)", re.DOTALL)
"""URL whose first part is a bucket or a host, and what stands behind that part."""


def nowhere(url: str) -> Iterator[ConfigError]:
    """A URL without the bucket or host that its kind needs, or with a blank in it."""
    named = _NAMED.match(url)
    if named is not None and (not named[2] or named[3].isspace()):
        yield ConfigError("the URL names no bucket or host that there can be", found=url,
                          expected=f"{named[1]}://NAME/..., without blanks in the name")


def store(url: str) -> Iterator[KubeAlignError]:
    """What keeps an artifact store from being used; asks no network."""
    if wrong := list(nowhere(url)):
        yield from wrong
        return
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
