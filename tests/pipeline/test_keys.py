"""Made once: what a stage is called changes nothing, and the seed counts where something is drawn, nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from alignment.artifacts import digest_of
from alignment.config import KINDS, Run, Stage, parse_run
from alignment.pipeline import execute, keys
from tests import small

FOLDER_MODEL: dict[str, Any] = {"name": "base", "kind": "import", "model": {"source": "folder", "path": ""}}
SAMPLE = {"name": "rs", "kind": "sample", "model": "sft", "prompts": ["data/dev"],
          "score": {"function": "brevity", "model": "rm"}}
EVALUATE = {"name": "eval", "kind": "evaluate", "models": ["base", "sft", "dpo"], "rows": "data/test",
            "score": {"model": "rm"}}


def whole(folder: Path, names: dict[str, str] | None = None, **top: Any) -> Run:
    """One stage of each method and kind, called as `names` says, over a model folder and rows that say their split."""
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text("{}", encoding="utf-8")
    data = {**small.data(folder), "split": {"by": "field", "names": ["train", "dev", "test"]}}
    stages = [{**FOLDER_MODEL, "model": {"source": "folder", "path": str(model)}}, data, small.train("sft"),
              small.train("rm", "reward", "sft", eval_rows="data/dev"), SAMPLE,
              small.train("dpo", "dpo", "sft", rows=["rs/pairs", "data/train"]), small.train("kto", "kto", "dpo"),
              EVALUATE]
    stages = [{key: value if key in ("kind", "method") else renamed(value, names or {}) for key, value in stage.items()}
              for stage in stages]
    tree = {"name": "whole", "seed": 3, "compute": {"dtype": "float32"}, "stages": stages, **top}
    return parse_run(yaml.safe_dump(tree, sort_keys=False))


def renamed(value: Any, names: dict[str, str]) -> Any:
    """The value with the names of stages replaced, alone or before a split."""
    if isinstance(value, dict):
        return {key: renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [renamed(item, names) for item in value]
    name, slash, split = value.partition("/") if isinstance(value, str) else (value, "", "")
    return f"{names[name]}{slash}{split}" if name in names else value


NAMES = ["base", "data", "sft", "rm", "rs", "dpo", "kto", "eval"]


@given(st.lists(st.from_regex(r"[a-z][a-z0-9-]{4,9}", fullmatch=True), min_size=8, max_size=8, unique=True))
def test_what_stages_are_called_changes_no_key_but_of_a_table_that_says_their_names(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    called = dict(zip(NAMES, names, strict=True))
    before, after = keys(whole(folder)), keys(whole(folder, called))
    assert {name for name in NAMES if before[name].key != after[called[name]].key} == {"eval"}
    assert {name: key.key.rpartition("-")[0] for name, key in before.items()} == {
        "base": "import-model", "data": "import-data", "sft": "sft", "rm": "reward", "rs": "sample", "dpo": "dpo",
        "kto": "kto", "eval": "evaluate"}


def test_a_digest_is_that_of_its_parts_which_name_every_input(tmp_path: Path) -> None:
    run = whole(tmp_path)
    made = keys(run)
    for stage in run.stages:
        key = made[stage.name]
        assert digest_of(json.loads(json.dumps(key.parts))) == key.digest
        text = json.dumps(key.parts)
        assert all(made[name].digest in text for name in stage.inputs())


def test_another_seed_makes_only_what_draws_anew(tmp_path: Path) -> None:
    one, two = keys(whole(tmp_path)), keys(whole(tmp_path, seed=4))
    assert {name for name in one if one[name].key == two[name].key} == {"base", "data"}
    assert "seed" not in one["base"].parts
    assert one["sft"].parts["seed"] == 3


BY_FIELD, BY_RATIO = {"by": "field", "names": ["train"]}, {"by": "ratio", "ratios": {"train": 0.5}}


@pytest.mark.parametrize(("source", "split", "draws"), [
    ({}, BY_FIELD, False), ({}, BY_RATIO, True), ({"take": 9}, BY_FIELD, True),
])
def test_rows_are_drawn_for_a_split_by_ratio_and_for_a_take(
    tmp_path: Path, source: dict[str, Any], split: dict[str, Any], draws: bool
) -> None:
    stage = small.data(tmp_path)
    stage |= {"data": [{**stage["data"][0], **source}], "split": split}
    made = [keys(parse_run(yaml.safe_dump({"name": "n", "seed": seed, "stages": [stage]})))["data"] for seed in (1, 2)]
    assert (made[0].key != made[1].key) is draws


def test_of_models_only_one_made_of_random_weights_is_drawn(tmp_path: Path) -> None:
    sources = ({"source": "tiny"}, {"source": "hub", "repo": "a/b"}, {"source": "folder", "path": str(tmp_path)})
    for source in sources:
        stage = {"name": "base", "kind": "import", "model": source}
        made = [keys(parse_run(yaml.safe_dump({"name": "n", "seed": seed, "stages": [stage]}))) for seed in (1, 2)]
        assert (made[0] != made[1]) is (source["source"] == "tiny")


def test_who_says_nothing_draws() -> None:
    assert {kind.tag for kind in KINDS if kind.draws is not Stage.draws} == {
        "import-model", "import-reward", "import-embedder", "import-endpoint", "import-data", "import-documents",
        "import-artifact", "import-artifact-reward", "import-artifact-embedder", "import-rows",
        "choose", "export", "select-quality", "select-coverage", "select-necessity", "select-merge", "select-random"}


def test_a_renamed_stage_is_found_and_twins_are_made_once(tmp_path: Path) -> None:
    first = execute(small.run(tmp_path, small.train("sft"), small.train("dpo", "dpo", "sft"))).artifacts
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store" / "artifacts").iterdir()}
    stages = [small.train("begun"), small.train("twin"), small.train("ended", "dpo", "twin")]
    second = execute(small.run(tmp_path, *stages)).artifacts
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store" / "artifacts").iterdir()} == made
    assert {name: None if artifact is None else artifact.manifest for name, artifact in second.items()} == {
        "base": first["base"].manifest, "data": first["data"].manifest, "begun": first["sft"].manifest,
        "twin": first["sft"].manifest, "ended": first["dpo"].manifest}


def test_what_was_seen_is_found_under_other_names(tmp_path: Path) -> None:
    execute(small.run(tmp_path, small.train("sft")))
    evaluate = {"name": "eval", "kind": "evaluate", "models": ["tuned"], "rows": "data/test", "perplexity": False,
                "sampling": {"temperature": 0.0, "max_new_tokens": 2}}
    made = execute(small.run(tmp_path, small.train("tuned"), evaluate)).artifacts["eval"]
    assert made is not None
    assert made.manifest.facts["held_out"]["seen"] == {"data/train": 24}
