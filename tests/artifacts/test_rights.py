"""A finished artifact has the rights of any new file here, whatever its makers' were: others read a shared volume."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from alignment.artifacts import Store
from tests.artifacts.built import fill, manifest

KEY = "sft-000000000000"


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _modes(folder: Path) -> tuple[set[int], set[int]]:
    """Of the files, and of the folders."""
    found = [folder, *folder.rglob("*")]
    return ({path.stat().st_mode & 0o777 for path in found if path.is_file()},
            {path.stat().st_mode & 0o777 for path in found if path.is_dir()})


@pytest.mark.parametrize(("mask", "file", "folder"), [
    (0o022, 0o644, 0o755), (0o002, 0o664, 0o775), (0o077, 0o600, 0o700), (0o027, 0o640, 0o750), (0o000, 0o666, 0o777),
])
def test_every_file_has_the_usual_rights(mask: int, file: int, folder: int, tmp_path: Path) -> None:
    with _umask(mask):
        store = Store(str(tmp_path / "store"))
        with store.lease(KEY) as lease:
            made = fill(store.workdir(KEY) / "out")
            for index, path in enumerate([each for each in made.rglob("*") if each.is_file()]):
                path.chmod((0o600, 0o444, 0o755)[index % 3])
            (made / "private").mkdir(mode=0o700)
            (made / "private" / "adapter_model.safetensors").write_bytes(b"x")
            (made / "private" / "adapter_model.safetensors").chmod(0o600)
            artifact = store.publish(manifest(KEY), made, lease)
    assert _modes(artifact.path()) == ({file}, {folder})


def test_a_copy_of_a_remote_artifact_too(tmp_path: Path) -> None:
    with _umask(0o022):
        store = Store("memory://rights/prefix", cache=tmp_path / "cache")
        with store.lease(KEY) as lease:
            artifact = store.publish(manifest(KEY), fill(store.workdir(KEY) / "out"), lease)
        assert _modes(artifact.path()) == ({0o644}, {0o755})
