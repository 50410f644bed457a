"""Keys of an export stage, and what `check` says of one before it is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.checks.seen import READ_LIMIT, Sight
from alignment.checks.stages import wrong, wrong_here
from alignment.config import Export, Run, parse_run
from alignment.errors import ConfigError, ConfigErrors
from alignment.pipeline.keys import keys
from tests import small

EVALUATE = {"name": "eval", "kind": "evaluate", "models": ["base", "sft"], "rows": "data/test"}


def run(folder: Path, *, after: tuple[dict[str, Any], ...] = (), strategy: Any = None, **more: Any) -> Run:
    train = small.train("sft", **({} if strategy is None else {"strategy": strategy}))
    return small.run(folder, train, EVALUATE, {"name": "export", "kind": "export", "model": "sft", **more}, *after)


def found(made: Run) -> dict[tuple[Any, ...], str]:
    """Place -> problem, of what `check` finds of the export."""
    sight = Sight(READ_LIMIT)
    return {place: error.problem for place, error in wrong(made, made.stage("export"), sight)}


@pytest.mark.parametrize(("more", "said"), [
    ({"form": ["awq"]}, "llm-compressor"), ({"form": ["gptq"]}, "llm-compressor"), ({"form": ["onnx"]}, "safetensors"),
    ({"form": ["gguf", "gguf"]}, "names one twice"), ({"gguf": ["f16"]}, "files that are not asked for"),
    ({"form": ["adapter"], "weights": "float16"}, "nothing is merged"), ({"take": 3}, "rows that are not named"),
    ({"evaluations": ["sft"]}, "needs a stage that evaluates"), ({"evaluations": ["none"]}, "does not come before"),
    ({"push_to_hub": {"repo": "no-owner"}}, "OWNER/NAME"), ({"model": "data"}, "makes a language model"),
    ({"push_to_hub": {"repo": "a/b", "revision": "refs/pr/1"}}, "a branch"),
])
def test_what_cannot_be_meant_is_refused_with_its_reason(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, ConfigErrors)) as caught:
        run(tmp_path, **more)
    assert said in str(caught.value)


def test_what_is_dumped_whole_is_read_back(tmp_path: Path) -> None:
    made = run(tmp_path, form=["gguf"], push_to_hub={"repo": "a/b"})
    again = parse_run(yaml.safe_dump(made.model_dump(mode="json")))
    assert again == made
    assert keys(again)["export"] == keys(made)["export"]


def test_another_seed_or_a_later_key_makes_no_other_export_of_the_same_model(tmp_path: Path) -> None:
    stage = run(tmp_path).stage("export")
    assert not stage.draws
    assert stage.learned(lambda take: take) == {"kind": "export", "model": "sft", "form": ["safetensors"]}


def test_a_split_that_is_compared_or_quoted_is_still_held_out(tmp_path: Path) -> None:
    later = {"name": "again", "kind": "evaluate", "models": ["export"], "rows": "data/test"}
    made = run(tmp_path, rows="data/test", evaluations=["eval"], after=(later,))
    assert made.stage("export").inputs() == ("sft", "data", "eval")


@pytest.mark.parametrize(("form", "adapter"), [(["safetensors"], None), (["adapter"], 4)])
def test_later_stages_know_whether_they_get_an_adapter(tmp_path: Path, form: list[str], adapter: int | None) -> None:
    from alignment.config.run import adapter_of

    made = run(tmp_path, form=form)
    kept = adapter_of({stage.name: stage for stage in made.stages}, "export")
    assert (None if kept is None else kept.r) == adapter


def test_bounds_go_by_what_weights_are_stored_as_unless_they_are_given() -> None:
    stage = Export(name="e", model="sft", form=("safetensors",))
    assert stage.bounds("float32") == (1e-4, 0.999)
    assert stage.bounds("nf4") == (0.5, 0.6)
    assert stage.bounds("float16", "bfloat16") == (1e-2, 0.95), "computed coarser than it is stored"
    assert Export(name="e", model="sft", max_kl=0.2, min_top1=0.5).bounds("float32") == (0.2, 0.5)


def test_check_says_what_the_model_has_not(tmp_path: Path) -> None:
    assert found(run(tmp_path)) == {}
    assert "no adapter" in found(run(tmp_path, form=["adapter"], strategy={"kind": "full"}))[("form",)]
    assert "no four bits" in found(run(tmp_path, merge_into="dequantised"))[("merge_into",)]
    assert "no part in the model" in found(run(tmp_path, datasets={"eval": {"licence": "mit"}}))[("datasets",)]
    assert found(run(tmp_path, merge_into="dequantised", strategy={"kind": "qlora", "r": 4, "alpha": 8})) == {}


def test_check_says_here_that_there_is_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_TOKEN", raising=False)
    push = {"repo": "a/b", "token_env": "MY_TOKEN"}
    (place, error), = wrong_here(run(tmp_path, push_to_hub=push).stage("export"))
    assert place == ("push_to_hub", "token_env")
    assert "MY_TOKEN" in str(error)
    assert not list(wrong_here(run(tmp_path, push_to_hub={**push, "dry_run": True}).stage("export")))
    monkeypatch.setenv("MY_TOKEN", "hf_x")
    assert not list(wrong_here(run(tmp_path, push_to_hub=push).stage("export")))


def test_a_family_that_no_gguf_file_is_made_for_is_known_before(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gemma2"}', encoding="utf-8")
    made = run(tmp_path, form=["gguf"]).model_dump(mode="json")
    made["stages"][0] |= {"model": {"source": "folder", "path": str(folder)}}
    assert "GGUF" in found(Run.model_validate(made, strict=False))[("form",)]
