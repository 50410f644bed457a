"""An API server in small, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from alignment.cluster.client.client import Client
from tests.cluster.api_server import Api, serving


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with serving(tmp_path) as (made, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield made


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def client(api: Api, said: list[str]) -> Client:
    return Client(say=said.append)
