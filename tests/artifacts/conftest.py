"""Stores to test against."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from alignment.artifacts import Store


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store on a local folder, and one on an object store that lives in this process."""
    if request.param == "folder":
        yield Store(str(tmp_path / "store"))
        return
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield Store("memory://bucket/prefix", cache=tmp_path / "cache")
    fs.store.clear()
