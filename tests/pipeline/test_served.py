"""What a replica is told of a run: names and keys of finished artifacts; or which of them are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment import pipeline
from alignment.config.serve import Limits
from alignment.errors import ArtifactError, ConfigError
from alignment.pipeline.served import serving
from tests.small import run, train


def test_models_that_are_not_finished_are_named_at_once(tmp_path: Path) -> None:
    one = run(tmp_path, train("sft"), train("rm", "reward", "base"))
    pipeline.execute(one, only="base")
    with pytest.raises(ArtifactError) as error:
        serving(one)
    said = str(error.value)
    assert "models that are to be served are not finished" in said
    assert "sft (sft-" in said
    assert "rm (reward-" in said
    assert "base (" not in said


def test_a_replica_is_told_keys_by_the_names_of_the_run(tmp_path: Path) -> None:
    one = run(tmp_path, serve={"models": {"best": "base"}, "limits": {"in_flight": 7}, "replicas": 2})
    made = pipeline.execute(one, only="base").artifacts["base"]
    assert made is not None
    told = serving(one)
    assert told.models == {"best": made.key}
    assert told.store == made.store.url
    assert told.serve.models is None
    assert (told.serve.replicas, told.serve.limits) == (2, Limits(in_flight=7))


def test_a_run_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="makes no model that could be served"):
        serving(run(tmp_path))
