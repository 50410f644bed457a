"""Every run file that is shipped loads; the schema that editors use agrees with the loader."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from alignment.cli.info import run_schema
from alignment.config import load_run
from alignment.config.yaml_file import parse_tree

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs/runs").glob("*.yaml"))
RECIPES = sorted((ROOT / "alignment/cli/recipes").glob("*.yaml"))


def _tree(path: Path) -> Any:
    return parse_tree(path.read_text(encoding="utf-8"), str(path), "run", "")[0]


def test_something_is_shipped() -> None:
    assert CONFIGS
    assert RECIPES


@pytest.mark.parametrize("path", CONFIGS, ids=[str(path.relative_to(ROOT)) for path in CONFIGS])
def test_shipped_config_loads_and_fits_the_schema(path: Path) -> None:
    run = load_run(path)
    assert run.stages
    jsonschema.validate(_tree(path), run_schema(), cls=jsonschema.Draft202012Validator)


def test_the_judge_that_qwen_qa_names_in_its_comments_takes_the_functions_place() -> None:
    path = ROOT / "configs/runs/qwen-qa.yaml"
    found = re.search(r"--set (judged.kind=\S+) --set (judged.recipe=\S+) --set (judged.score)='(.*?)'",
                      path.read_text(encoding="utf-8"))
    assert found
    stage = load_run(path, [found[1], found[2], f"{found[3]}={found[4]}"]).stage("judged")
    assert (stage.tag, [ref.stage for ref in stage.model_refs()]) == ("judged-pairs", ["sft", "there"])


@pytest.mark.parametrize(("change", "path"), [
    ({"stages": [{"name": "base", "kind": "import", "model": {"source": "tiny"}},
                 {"name": "sft", "kind": "train", "method": "sft", "model": "B ase", "rows": ["seed/train"]}]},
     ["stages", 1]),
    ({"stages": []}, ["stages"]), ({"seeed": 3}, []), ({"scale": 0}, ["scale"]),
    ({"stages": [{"name": "sft", "kind": "train", "method": "sft", "model": "base"}]}, ["stages", 0]),
    ({"stages": [{"name": "base", "model": {"source": "tiny"}}]}, ["stages", 0]),
])
def test_the_schema_refuses_what_the_loader_refuses(change: dict[str, Any], path: list[str | int]) -> None:
    tree = {**_tree(CONFIGS[0]), **change}
    with pytest.raises(jsonschema.ValidationError) as caught:
        jsonschema.validate(tree, run_schema(), cls=jsonschema.Draft202012Validator)
    assert list(caught.value.absolute_path)[: len(path)] == path
