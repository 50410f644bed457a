"""Fixtures that several rooms' tests share. Heavy libraries are imported inside, where a test asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import imported


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep remembered digests and copies of artifacts out of the user's cache."""
    patch = pytest.MonkeyPatch()
    patch.setenv("KUBEALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folder of a tiny random Llama with a ChatML tokenizer, made by the import stage; don't write into it."""
    folder = tmp_path_factory.mktemp("tiny")
    imported(folder, {"source": "tiny", "hidden_size": 32, "layers": 2, "heads": 4, "vocab_size": 384})
    return folder / "out" / "model"
