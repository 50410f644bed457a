"""Fixture for tests that walk a store."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.evaluation.built import Built, build_run


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Built]:
    """build(stages, **run values) -> Built on an empty store."""
    return partial(build_run, tmp_path)
