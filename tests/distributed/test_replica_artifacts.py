"""A replica whose artifact is not there says which model that is, its key, and the store; also through Ray's words."""

from __future__ import annotations

import asyncio
import socket
import sys
import traceback
from pathlib import Path

import pytest

from alignment.artifacts import Store, StoreUnreachable
from alignment.config import Compute
from alignment.config.serve import Serve, Serving
from alignment.distributed.deploy import not_served
from alignment.distributed.serve import Models, _found
from alignment.errors import ArtifactError, ModelError
from alignment.serving.hosts import NO_KEY
from tests.artifacts.built import publish

THERE, GONE, LOST = "sft-0123456789ab", "dpo-0123456789ab", "reward-0123456789ab"


def serving(store: str, **models: str) -> Serving:
    return Serving(store=store, models=models, compute=Compute(), serve=Serve())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path / "store"))
    with made.lease(THERE) as lease:
        publish(made, THERE, lease)
    return made


def test_models_without_an_artifact_are_named_with_key_and_store(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NO_KEY, "1")
    monkeypatch.setattr(sys, "tracebacklimit", 1000, raising=False)
    told = serving(store.url, best=THERE, newest=GONE, judge=LOST)
    with pytest.raises(ModelError) as error:
        asyncio.run(Models(told.model_dump(mode="json")).__serve_build_asgi_app__())
    said = str(error.value)
    assert said.splitlines()[0] == f"model newest ({GONE}): no finished artifact in the store {store.url}"
    assert f"also judge ({LOST})" in said
    assert "best" not in said
    through_ray = not_served("".join(traceback.format_exception(error.value)))
    assert type(through_ray) is ModelError
    assert f"model newest ({GONE}): no finished artifact in the store {store.url}" in str(through_ray)


def test_a_manifest_that_cannot_be_read_is_told_with_the_models_name(store: Store) -> None:
    (Path(store.root) / "artifacts" / THERE / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="the manifest is damaged") as error:
        _found(serving(store.url, best=THERE))
    assert f"model best ({THERE}), {store.url}/artifacts/{THERE}/manifest.json" in str(error.value)


def test_a_store_that_does_not_answer_stays_worth_another_attempt() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/store"
        with pytest.raises(StoreUnreachable) as error:
            _found(serving(url, best=THERE))
    assert error.value.transient
    assert f"model best ({THERE}), {url}" in str(error.value)
