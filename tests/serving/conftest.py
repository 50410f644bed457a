"""The finished run of built.py, once for all tests of the room."""

from __future__ import annotations

import pytest

from alignment.artifacts import Artifact
from alignment.config import Run
from tests.serving.built import made


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Artifact]]:
    """A run and its artifacts by stage; don't write into them."""
    return made(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def models(finished: tuple[Run, dict[str, Artifact]]) -> dict[str, Artifact]:
    """base, sft and rm."""
    return {name: finished[1][name] for name in ("base", "sft", "rm")}
