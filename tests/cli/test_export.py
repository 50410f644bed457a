"""`kubealign export`: a model of a run as a folder, without a run file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.pipeline import execute
from tests import small

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a run `small` whose `sft` is an adapter."""
    folder = tmp_path_factory.mktemp("store")
    execute(small.run(folder, small.train("sft")))
    return folder / "store"


def test_a_stages_model_becomes_a_folder_and_its_card_names_what_it_came_from(
    call: Call, store: Path, tmp_path: Path
) -> None:
    said = call("export", "small:sft", "--to", str(tmp_path / "out"), "--form", "safetensors,gguf", "--gguf", "f16",
                "--store", str(store), "--push", "me/mine", "--dry-run", "--set", "compute.device=cpu")
    assert said.code == 0, said.err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "mine-F16.gguf"} <= names
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "import-data-" in card, "the history goes on beyond the artifact that was named"
    artifact = next((store / "artifacts").glob("export-*"))
    assert (tmp_path / "out" / "model.safetensors").samefile(artifact / "model" / "model.safetensors")
    assert not (tmp_path / "out" / "README.md").samefile(artifact / "model" / "README.md")


@pytest.mark.parametrize(("arguments", "said"), [
    (["small:sft", "--to", "FULL"], "not empty"), (["small:none", "--to", "NEW"], "small:none"),
    (["small:sft", "--to", "NEW", "--form", "awq"], "llm-compressor"),
    (["small:sft", "--to", "NEW", "--dry-run"], "--push"),
    (["small:sft", "--to", "NEW", "--push", "mine"], "OWNER/NAME"),
])
def test_what_cannot_be_exported_is_one_error_and_nothing_is_written(
    call: Call, store: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "mine").touch()
    done = call("export", *(str(tmp_path / text) if text in ("FULL", "NEW") else text for text in arguments),
                "--store", str(store))
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "NEW").exists()
