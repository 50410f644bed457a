"""Headers of model files, and the hub's cache, against the libraries that write them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from alignment.config import HubModel
from alignment.data.model_files import gguf_fields, hub_snapshot, tensor_shapes, unclear

MODEL = HubModel(source="hub", repo="org/model")


def test_shapes_are_those_that_safetensors_wrote(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(()), "c": torch.zeros(0, 4, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    assert tensor_shapes(tmp_path / "m.safetensors") == {name: list(one.shape) for name, one in tensors.items()}


@pytest.mark.parametrize("method", ["compressed-tensors", "awq", "gptq", "fp8", "bitsandbytes", "mxfp4", None])
@pytest.mark.parametrize("within", [None, "text_config"])
def test_quantised_weights_are_no_model_that_is_read(tmp_path: Path, method: str | None, within: str | None) -> None:
    said = {"quantization_config": {"bits": 8, **({} if method is None else {"quant_method": method})}}
    (tmp_path / "config.json").write_text(json.dumps(said if within is None else {within: said}), encoding="utf-8")
    found = unclear(tmp_path, adapter=False)
    assert found is not None
    assert (method or "does not name") in found.problem
    (tmp_path / "config.json").write_text('{"quantization_config": null}', encoding="utf-8")
    assert unclear(tmp_path, adapter=False) is None


def test_no_gguf_is_said(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGML" + bytes(40))
    with pytest.raises(ValueError, match="not a GGUF header"):
        next(gguf_fields(tmp_path / "m.gguf"))


@pytest.mark.parametrize("given", [
    {}, {"XDG_CACHE_HOME": "/x"}, {"HF_HOME": "/h"}, {"HF_HOME": "~/h", "XDG_CACHE_HOME": "/x"}, {"HF_HOME": "$HOME/h"},
    {"HF_HUB_CACHE": "/c", "HF_HOME": "/h"}, {"HUGGINGFACE_HUB_CACHE": "/old"},
    {"HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "~/c"},
])
def test_the_cache_is_where_the_hubs_library_looks(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    spec = importlib.util.spec_from_file_location("constants_anew", constants.__file__)  # read from the environment
    assert spec is not None
    assert spec.loader is not None
    anew = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(anew)
    assert hub_snapshot(MODEL).parents[2] == Path(anew.HF_HUB_CACHE)


def test_a_revision_is_a_name_or_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder, commit = tmp_path / "models--org--model", "a" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit, encoding="ascii")
    assert hub_snapshot(MODEL) == folder / "snapshots" / commit
    assert hub_snapshot(MODEL.model_copy(update={"revision": commit})) == folder / "snapshots" / commit
    assert hub_snapshot(MODEL.model_copy(update={"revision": "v2"})) == folder / "snapshots" / "v2"
