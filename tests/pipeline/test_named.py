"""How a model is named: every form finds the same artifact, and what is not there is said with what is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from alignment.artifacts import Artifact, Store
from alignment.cli.without_file import importing
from alignment.config import EndpointModel
from alignment.errors import ConfigError, ModelError
from alignment.pipeline import execute
from alignment.pipeline.named import models_in, named
from tests import small


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    """(folder with run.yaml and its store, the tiny model that its stage `base` imported)."""
    folder = tmp_path_factory.mktemp("named")
    run = small.run(folder, small.train("sft"), {"name": "away", "kind": "import", "model": {
        "source": "endpoint", "base_url": "http://127.0.0.1:9/v1", "model": "m", "key_env": "SOME_KEY"}})
    (folder / "run.yaml").write_text(yaml.safe_dump(run.model_dump(mode="json")), encoding="utf-8")
    found = execute(run, only="base").artifacts["base"]
    assert found is not None
    execute(run, only="data")
    execute(run, only="away")
    return folder, found


def test_every_form_names_the_same_artifact(made: tuple[Path, Artifact]) -> None:
    folder, base = made
    store = str(folder / "store")
    forms = [base.key, f"{folder}/run.yaml:base", "small:base", str(base.path()), str(base.path() / "model"),
             f"file://{base.path()}"]
    for text in forms:
        found = named(text, store)
        assert isinstance(found, Artifact), text
        assert (found.key, Path(found.store.root)) == (base.key, Path(store)), text


@pytest.mark.parametrize("beside", ["last", "nf4", "fp8", "adapter", "checkpoint-3"])
def test_what_lies_beside_an_artifacts_model_is_not_that_model(made: tuple[Path, Artifact], beside: str) -> None:
    """Other weights of a stage, which once were taken for its `model`."""
    folder, base = made
    other = base.path() / beside
    other.mkdir()
    try:
        (other / "config.json").write_text("{}")
        assert named(str(other), str(folder / "store")) == other
    finally:
        (other / "config.json").unlink()
        other.rmdir()


def test_a_run_file_is_looked_up_in_its_own_store(made: tuple[Path, Artifact]) -> None:
    folder, base = made
    found = named(f"{folder}/run.yaml:base")
    assert isinstance(found, Artifact)
    assert found.key == base.key


def test_an_endpoint_is_named_with_its_model_and_the_variable_of_its_key(made: tuple[Path, Artifact]) -> None:
    folder, _ = made
    found = named("https://host/v1#org/model", key_env="SOME_KEY")
    assert isinstance(found, EndpointModel)
    assert (found.base_url, found.model, found.key_env) == ("https://host/v1", "org/model", "SOME_KEY")
    of_run = named(f"{folder}/run.yaml:away")
    assert isinstance(of_run, EndpointModel)
    assert of_run.key_env == "SOME_KEY"
    key = next(key for key in Store(str(folder / "store")).listed() if key.startswith("import-endpoint"))
    assert isinstance(named(key, str(folder / "store")), EndpointModel)


@pytest.mark.parametrize(("text", "problem", "said"), [
    ("sft-000000000000", "no model is named so", "import-model-"),
    ("small:sft", "the stage is not finished", "kubealign run small"),
    ("small:data", "the stage makes rows", "base"),
    ("small:nosuch", "the run has no stage of this name", "base"),
    ("nosuch:base", "no model is named so", "runs there: small"),
    ("https://host/v1", "an endpoint is named with the model", "#MODEL"),
    ("https://me:secret@host/v1#m", "holds a user", "address alone"),
    ("s3://bucket/model", "no artifact has this URL", "STORE/artifacts/KEY"),
])
def test_what_is_not_there_is_said_with_what_there_is(
    made: tuple[Path, Artifact], text: str, problem: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        named(text, str(made[0] / "store"))
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_rows_are_no_model(made: tuple[Path, Artifact]) -> None:
    store = Store(str(made[0] / "store"))
    key = next(key for key in store.listed() if key.startswith("import-data"))
    with pytest.raises(ConfigError, match="not such a model") as caught:
        named(key, store.url)
    assert "rows" in str(caught.value)
    assert [one.key for one in models_in(store)] == [made[1].key]


def test_a_folder_that_another_program_wrote_is_imported_once_in_its_own_dtype(
    made: tuple[Path, Artifact], tmp_path: Path
) -> None:
    other = tmp_path / "theirs"
    other.mkdir()
    for file in (made[1].path() / "model").iterdir():
        if file.name != "kubealign.json":
            (other / file.name).write_bytes(file.read_bytes())
    assert named(str(other)) == other
    run, stage = importing(other, str(tmp_path / "store"))
    assert run.stage(stage).model_dump()["dtype"] == "float32"
    first = execute(run).artifacts[stage]
    assert first is not None
    again = named(first.key, str(tmp_path / "store"))
    assert isinstance(again, Artifact)
    assert again.manifest == first.manifest
    assert (first.path() / "model" / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_an_adapter_is_imported_with_the_base_that_it_names(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": "org/base", "r": 8}), encoding="utf-8")
    run, stage = importing(folder, str(tmp_path / "store"))
    assert run.stage(stage).base == "base"
    assert run.stage("base").model_dump()["model"]["repo"] == "org/base"
    config.write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="does not say what it was trained on"):
        importing(folder, str(tmp_path / "store"))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no model"):
        named(str(tmp_path))


def test_what_a_run_noted_is_found_without_its_sources(tmp_path: Path) -> None:
    run = small.run(tmp_path)
    base = execute(run, only="base").artifacts["base"]
    data = execute(run, only="data").artifacts["data"]
    assert base is not None
    assert data is not None
    Path(run.stage("data").sources()[0].path or "").unlink()
    found = named("small:base", run.store)
    assert isinstance(found, Artifact)
    assert found.key == base.key
