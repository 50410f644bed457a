"""A disk that is full: one clear error wherever it happens, and the work goes on when there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignment.errors import StageError
from alignment.pipeline import execute
from tests import small


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)], capture_output=True,
                          text=True)
    if done.returncode != 0:
        pytest.skip(f"this user may not mount a file system: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def test_a_full_disk(disk: Path, tmp_path: Path) -> None:
    run = small.run(tmp_path, small.train("sft"), store=str(disk / "store"))
    with pytest.raises(StageError, match="no space is left") as refused:  # safetensors while the model is written
        execute(run)
    assert (refused.value.where, "run again" in (refused.value.hint or "")) == ("stage base", True)
    resize(disk, "420k")
    with pytest.raises(StageError, match="no space is left") as refused:  # torch while a checkpoint is written
        execute(run)
    assert refused.value.where == "stage sft"
    resize(disk, "100m")
    made = execute(run).artifacts
    assert all(made.values())
