"""What a MODEL or FILE of a command line is, told from its name and files alone; what cannot be told is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from alignment.cli.named import Named, columns_of, stage_name, stored_as
from alignment.errors import ConfigError

KEY = "sft-86ea8fe7c8a6"


def tensors(file: Path, *types: str) -> None:
    """A safetensors file of one number for each type."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for index, name in enumerate(types):
        header[f"t{index}"] = {"dtype": name, "shape": [1], "data_offsets": [8 * index, 8 * index + 4]}
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 8 * len(types))


def whole(folder: Path, *types: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    tensors(folder / "model.safetensors", *types)
    return folder


def adapter(folder: Path, base: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    tensors(folder / "adapter_model.safetensors", "F32")
    return folder


def stages(named: Named) -> dict[str, dict[str, Any]]:
    return {stage["name"]: stage for stage in named.written()}


@pytest.mark.parametrize(("text", "name", "model"), [
    (KEY, KEY, {"source": "artifact", "artifact": KEY}),
    ("qa:dpo-2", "qa-dpo-2", {"source": "artifact", "artifact": "qa:dpo-2"}),
    (f"s3://b/p/artifacts/{KEY}", KEY, {"source": "artifact", "artifact": f"s3://b/p/artifacts/{KEY}"}),
    (f"elsewhere/artifacts/{KEY}/model", KEY, {"source": "artifact", "artifact": f"elsewhere/artifacts/{KEY}"}),
    (f"runs/artifacts/{KEY}", KEY, {"source": "artifact", "artifact": KEY}),
    ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2-5-0-5b-instruct", {"source": "hub", "repo": "Qwen/Qwen2.5-0.5B-Instruct"}),
])
def test_names_are_told_by_their_form(text: str, name: str, model: dict[str, Any]) -> None:
    named = Named("runs")
    assert named.model(text) == name
    assert stages(named)[name]["model"] == model
    assert named.model(text) == name, "one name is one stage"
    assert len(named.stages) == 1


@pytest.mark.parametrize(("types", "dtype"), [
    (("F32",), "float32"), (("BF16", "BF16"), "bfloat16"), (("F16",), "float16"), (("BF16", "F32"), "float32"),
    (("BF16", "I64"), "bfloat16"), (("I64",), None),
])
def test_a_folder_is_imported_as_it_is_stored(types: tuple[str, ...], dtype: str | None, tmp_path: Path) -> None:
    folder = whole(tmp_path / "Their Model", *types)
    assert stored_as(folder) == dtype
    named = Named("runs", template="chatml")
    assert named.model(str(folder)) == "their-model"
    assert stages(named)["their-model"] == {
        "name": "their-model", "kind": "import", "model": {"source": "folder", "path": str(folder)},
        "template": "chatml", **({} if dtype is None else {"dtype": dtype})}


def test_an_adapter_brings_the_base_that_it_names_once_for_two(tmp_path: Path) -> None:
    base = whole(tmp_path / "base", "BF16")
    one, two = adapter(tmp_path / "out" / "checkpoint-20", str(base)), adapter(tmp_path / "two", str(base))
    named = Named("runs")
    assert [named.model(str(folder)) for folder in (one, two)] == ["out-checkpoint-20", "two"]
    assert [stage["name"] for stage in named.written()] == ["base", "out-checkpoint-20", "two"]
    assert stages(named)["two"]["model"] == {"source": "folder", "path": str(two), "base": "base"}
    hub = Named("runs")
    hub.model(str(adapter(tmp_path / "three", "Qwen/Qwen2.5-0.5B")))
    assert stages(hub)["qwen2-5-0-5b"]["model"]["source"] == "hub"


def test_a_base_that_is_elsewhere_now_is_said_by_the_command_line(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", "/gone/base")
    with pytest.raises(ConfigError, match="the adapter's base is not there") as error:
        Named("runs").model(str(folder))
    assert "/gone/base" in str(error.value.found)
    assert "--base" in str(error.value.hint)
    with pytest.raises(ConfigError, match="does not say what it was trained on"):
        Named("runs").model(str(adapter(tmp_path / "b", None)))
    named = Named("runs", base=KEY)
    name = named.model(str(folder))
    assert stages(named)[name]["model"]["base"] == KEY


@pytest.mark.parametrize("text", ["nothing", "a b", "./gone", "~/gone", "sft-12", ""])
def test_what_nothing_is_called_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="nothing is called so"):
        Named("runs").model(text)


def test_an_artifact_takes_no_other_template_and_a_reward_model_no_adapter_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keeps its chat template"):
        Named("runs", template="chatml").model(KEY)
    with pytest.raises(ConfigError, match="as a reward model is not read from a folder"):
        Named("runs").model(str(adapter(tmp_path / "a", "x/y")), "reward")


def test_an_endpoint_is_asked_and_nothing_else() -> None:
    named = Named("runs")
    name = named.model("http://127.0.0.1:9/v1#Big Model")
    assert name == "big-model"
    assert stages(named)[name]["model"] == {"source": "endpoint", "base_url": "http://127.0.0.1:9/v1",
                                            "model": "Big Model", "key_env": None}
    with pytest.raises(ConfigError, match="only answers"):
        named.model("http://127.0.0.1:9/v1#Judge", "reward")


def test_two_of_one_name_are_told_apart(tmp_path: Path) -> None:
    named = Named("runs")
    folders = [whole(tmp_path / name / "same", "F32") for name in ("a", "b")]
    assert [named.model(str(folder)) for folder in folders] == ["same", "same-2"]
    assert named.model(str(whole(tmp_path / "reference", "F32"))) == "reference-2"
    assert (stage_name("7B Chat!"), stage_name("x" * 60)) == ("m-7b-chat", "x" * 36)


def test_columns_are_pairs() -> None:
    assert columns_of("prompt=Question, completion = Best Answer") == {"prompt": "Question",
                                                                        "completion": "Best Answer"}
    for text in ("prompt", "=a", "prompt="):
        with pytest.raises(ConfigError, match="not pairs"):
            columns_of(text)
