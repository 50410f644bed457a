"""Content decides what a source is: not its size, nor a time stamp that anybody can set."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest

from alignment.data import fingerprint
from alignment.data.fingerprint import local_digest


def sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


@pytest.fixture(params=["small", "large"])
def file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose digest was asked for, and remembered where it counts as large."""
    monkeypatch.setenv("KUBEALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "_SETTLED", 0.0)
    if request.param == "large":
        monkeypatch.setattr(fingerprint, "SMALL", 2)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"one")
    os.utime(path, ns=(10**18, 10**18))
    assert local_digest(path) == sha256(b"one")
    assert (tmp_path / "cache" / "digests.json").exists() is (request.param == "large")
    return path


def test_another_content_of_the_same_size_and_time_is_another_file(file: Path) -> None:
    file.write_bytes(b"two")
    os.utime(file, ns=(10**18, 10**18))
    assert local_digest(file) == sha256(b"two")


def test_so_it_is_when_another_file_takes_its_place(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(b"two")
    shutil.copystat(file, other)
    shutil.copy2(other, file.with_name("copy"))
    os.replace(other, file)
    assert local_digest(file) == sha256(b"two")
    os.replace(file.with_name("copy"), file)
    assert local_digest(file) == sha256(b"two")


def test_a_large_file_is_read_once_as_long_as_nobody_touches_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    whole = fingerprint.sha256_of
    monkeypatch.setattr(fingerprint, "sha256_of", lambda path: read.append(path) or whole(path))
    assert [local_digest(file) for _ in range(3)] == [sha256(b"one")] * 3
    assert len(read) == (0 if fingerprint.SMALL < 3 else 3)


def test_a_file_that_changes_while_it_is_read_or_did_so_just_now_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBEALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "SMALL", 0)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"one")
    local_digest(path)
    monkeypatch.setattr(fingerprint, "_SETTLED", 0.0)

    def edited(path: Path) -> str:
        found = sha256(path.read_bytes())
        time.sleep(0.02)
        path.write_bytes(b"two")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "sha256_of", edited)
        local_digest(path)
    assert not (tmp_path / "cache" / "digests.json").exists()
    assert local_digest(path) == sha256(b"two")
