"""Stores to test against."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from alignment.artifacts import Store
from tests.s3 import s3, s3_server

__all__ = ["s3", "s3_server", "store"]


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store on a local folder, on an object store that lives in this process, and on an S3 server."""
    if request.param == "folder":
        yield Store(str(tmp_path / "store"))
        return
    if request.param == "s3":
        yield Store(request.getfixturevalue("s3").url(), cache=tmp_path / "cache")
        return
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield Store("memory://bucket/prefix", cache=tmp_path / "cache")
    fs.store.clear()
