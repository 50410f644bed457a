"""`check --same-as`: whether a run would make the same, and every difference if not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.artifacts import Artifact, Manifest
from alignment.config import Run, parse_run
from alignment.errors import ArtifactError, ConfigError
from alignment.pipeline import execute, keys
from alignment.pipeline.same_as import same_as
from tests import small


def stages(folder: Path, **more: Any) -> list[dict[str, Any]]:
    return [small.BASE, small.data(folder), small.train("sft", **more)]


def run_of(folder: Path, stages: list[dict[str, Any]], **top: Any) -> Run:
    return parse_run(yaml.safe_dump({"name": "n", "seed": 3, "store": str(folder / "store"), "stages": stages,
                                     "compute": {"device": "cpu"}, **top}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("same")


@pytest.fixture(scope="module")
def sft(folder: Path) -> Artifact:
    made = execute(run_of(folder, stages(folder))).artifacts["sft"]
    assert made is not None
    return made


def said(run: Run, sft: Artifact, **given: Any) -> dict[str, list[str]]:
    return {one.stage: one.made + one.computed for one in same_as(run, str(sft.path()), **given)}


def test_the_same_run_would_make_the_same_whatever_its_names(folder: Path, sft: Artifact) -> None:
    assert said(run_of(folder, stages(folder)), sft) == {"sft": []}
    renamed = stages(folder, model="my-base", rows=["my-data/train"])
    other = [{**stage, "name": f"my-{stage['name']}"} for stage in renamed]
    assert said(run_of(folder, other, name="other"), sft) == {"my-sft": []}
    assert said(run_of(folder, stages(folder)), sft, here=False) == {"sft": []}


@pytest.mark.parametrize(("more", "top", "expected"), [
    ({"learning_rate": 0.25}, {}, {"sft": ["config.learning_rate: 0.005 there, 0.25 here"]}),
    ({"dtype": "bfloat16"}, {}, {"sft": ["config.dtype: 'float32' there, 'bfloat16' here"]}),
    ({}, {"compute": {"device": "cpu", "dtype": "bfloat16"}},
     {"sft": ["config.dtype: 'float32' there, 'bfloat16' here"]}),
    ({"take": 4}, {}, {"sft": ["config.take: nothing there, 4 here"]}),
    ({"trl": {"warmup_steps": 2}}, {}, {"sft": ["config.trl.warmup_steps: nothing there, 2 here"]}),
    ({"log_to": ["tensorboard"]}, {}, {"sft": []}),
    ({}, {"compute": {"device": "cpu", "workers": 2}}, {"sft": ["workers: 0 there, 2 here"]}),
])
def test_every_difference_is_said_with_both_values(
    folder: Path, sft: Artifact, more: dict[str, Any], top: dict[str, Any], expected: dict[str, list[str]]
) -> None:
    found = said(run_of(folder, stages(folder, **more), **top), sft)
    assert {name: [line for line in lines if "processor" not in line] for name, lines in found.items()} == expected


def test_what_differs_upstream_is_found_there(folder: Path, sft: Artifact, tmp_path: Path) -> None:
    found = said(run_of(folder, stages(folder), seed=4), sft)
    assert found["base"] == found["data"] == ["seed: 3 there, 4 here"]
    assert [line.split(":")[0] for line in found["sft"]] == ["config.model", "config.rows[0]", "seed"]
    changed = [small.BASE, small.data(tmp_path, 39), small.train("sft")]
    found = said(run_of(folder, changed), sft)
    assert list(found) == ["sft", "data"]
    assert found["data"][0].startswith("sources[0]: ")
    alone = tmp_path / "manifest.json"
    alone.write_text(sft.manifest.model_dump_json(), encoding="utf-8")
    (one,) = same_as(run_of(folder, changed), str(alone))
    assert "its manifest is not beside it" in one.made[-1]


def test_an_input_of_two_stages_is_compared_once(tmp_path: Path) -> None:
    def run(**more: Any) -> Run:
        return run_of(tmp_path, [*stages(tmp_path, **more), small.train("next", model="sft"), {
            "name": "eval", "kind": "evaluate", "models": ["sft", "next"], "rows": "data/test"}])

    known = keys(run())
    for stage in run().stages:
        manifest = Manifest(
            key=known[stage.name].key, digest=known[stage.name].digest, stage=stage.name, kind=stage.kind, config={},
            parts=known[stage.name].parts, inputs={name: known[name].key for name in stage.inputs()}, files={},
            started="", finished="", seconds=0)
        (tmp_path / manifest.key).mkdir()
        (tmp_path / manifest.key / "manifest.json").write_text(manifest.model_dump_json(), encoding="utf-8")
    found = same_as(run(epochs=2), str(tmp_path / known["eval"].key))
    assert [one.stage for one in found] == ["eval", "sft", "next"]
    assert found[1].made == ["config.epochs: 1.0 there, 2.0 here"]


def test_other_libraries_and_processors_are_the_same_in_law(folder: Path, sft: Artifact, tmp_path: Path) -> None:
    tree = json.loads(sft.manifest.model_dump_json())
    tree["versions"] |= {"torch": "1.0"}
    tree["compute"] |= {"processor": "abacus"}
    del tree["versions"]["peft"]
    (tmp_path / "manifest.json").write_text(json.dumps(tree), encoding="utf-8")
    (one,) = same_as(run_of(folder, stages(folder)), str(tmp_path / "manifest.json"))
    assert one.made == []
    assert [line.split(":")[0] for line in one.computed] == ["processor", "torch", "peft"]
    (one,) = same_as(run_of(folder, stages(folder)), str(tmp_path), here=False)
    assert one.same, "of a cluster's pods neither is known"


def test_what_cannot_be_compared_is_refused(folder: Path, sft: Artifact, tmp_path: Path) -> None:
    run = run_of(folder, stages(folder))
    with pytest.raises(ArtifactError, match="no manifest can be read"):
        same_as(run, str(tmp_path / "nowhere"))
    (tmp_path / "manifest.json").write_text('{"key": 1}', encoding="utf-8")
    with pytest.raises(ArtifactError, match="no manifest can be read"):
        same_as(run, str(tmp_path))
    with pytest.raises(ConfigError, match="no stage"):
        same_as(run_of(folder, stages(folder)[:2]), str(sft.path()))
    two = [*stages(folder)[:2], small.train("one", epochs=2), small.train("two", epochs=3)]
    with pytest.raises(ConfigError, match="no stage"):
        same_as(run_of(folder, two), str(sft.path()))
