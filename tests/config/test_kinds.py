"""A stage says what it is: every kind stands in every room's table, and no room asks a stage for its class."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.checks.imported import MODELS
from alignment.checks.stages import CHECKS
from alignment.config import (
    KINDS,
    METHODS,
    FolderModel,
    GgufModel,
    HubModel,
    Stage,
    TinyModel,
    TrainBase,
    parse_run,
    row_of,
)
from alignment.pipeline.keys import CONTENT
from alignment.planner.plan import PLANS, SIZES
from alignment.report.curves import PANELS
from alignment.report.sections import SECTIONS

ROOT = Path(__file__).parents[2]
TABLES: dict[str, dict[type[Stage], Any]] = {"checks": CHECKS, "planner": PLANS, "report": SECTIONS}
EVERY = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.tag)


@EVERY
@pytest.mark.parametrize("room", list(TABLES))
def test_every_kind_has_a_row_in_every_table(kind: type[Stage], room: str) -> None:
    row_of(TABLES[room], kind)


@pytest.mark.parametrize("room", list(TABLES))
def test_a_kind_without_a_row_is_an_error_that_names_it(room: str) -> None:
    class Stray(Stage):
        tag = "stray"

    with pytest.raises(KeyError, match="stray"):
        row_of(TABLES[room], Stray)


@EVERY
def test_every_kind_has_a_script_and_a_body(kind: type[Stage]) -> None:
    assert f'main("{kind.script}")' in (ROOT / "ray_jobs" / f"{kind.script}.py").read_text(encoding="utf-8")
    module, _, name = kind.body.partition(":")
    file = ROOT / (module.replace(".", "/") + ".py")
    defined = [node.name for node in ast.parse(file.read_text(encoding="utf-8")).body
               if isinstance(node, ast.FunctionDef)]
    assert name in defined


@EVERY
def test_every_kind_says_what_it_is_and_what_it_makes(kind: type[Stage]) -> None:
    assert kind.makes in ("rows", "policy", "reward", "embedder", "table", "files", "endpoint")
    assert kind.title is not Stage.title
    assert kind.__doc__
    assert len(kind.__doc__) > 30


def test_tags_are_unique() -> None:
    assert len({kind.tag for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.tag)
def test_every_method_has_a_file_and_panels(method: type[TrainBase]) -> None:
    file = ROOT / "alignment" / "training" / "methods" / f"{method.tag}.py"
    assert "METHOD = Method(" in file.read_text(encoding="utf-8")
    assert PANELS[method.tag]
    assert method.model_fields["method"].annotation.__args__ == (method.tag,)


def test_every_file_of_a_method_belongs_to_one() -> None:
    files = {path.stem for path in (ROOT / "alignment" / "training" / "methods").glob("[a-z]*.py")}
    assert files == {method.tag for method in METHODS}
    assert set(PANELS) == {method.tag for method in METHODS}


@pytest.mark.parametrize("table", [MODELS, SIZES, CONTENT], ids=["checks", "planner", "digest"])
def test_every_source_of_a_model_has_a_row(table: dict[type, Any]) -> None:
    assert {HubModel, FolderModel, GgufModel, TinyModel} <= set(table)


# --- no room asks a stage for its class ---


def _names(node: ast.expr) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr


def _asked(source: str) -> list[str]:
    """Stage classes that isinstance, issubclass or `type(x) is` is called with."""
    classes = {kind.__name__ for kind in KINDS} | {base.__name__ for kind in KINDS for base in kind.__mro__
                                                  if issubclass(base, Stage)} - {"Stage"}
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in (
                "isinstance", "issubclass") and len(node.args) == 2:
            found += [name for name in _names(node.args[1]) if name in classes]
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Call) and isinstance(
                node.left.func, ast.Name) and node.left.func.id == "type":
            found += [name for part in node.comparators for name in _names(part) if name in classes]
        if isinstance(node, ast.MatchClass):
            found += [name for name in _names(node.cls) if name in classes]
    return found


@pytest.mark.parametrize("source", [
    "isinstance(stage, Sft)", "isinstance(stage, Reward | Dpo)", "isinstance(stage, (Sample, int))",
    "isinstance(stage, config.TrainBase)", "issubclass(kind, Evaluate)", "type(stage) is ImportData",
    "match stage:\n case ImportModel():\n  pass",
])
def test_the_search_finds_such_questions(source: str) -> None:
    assert _asked(source)


def test_no_room_asks_a_stage_for_its_class() -> None:
    files = [path for folder in ("alignment", "ray_jobs") for path in (ROOT / folder).rglob("*.py")
             if "config/stages" not in path.as_posix()]
    assert len(files) > 100
    found = {str(path.relative_to(ROOT)): names for path in files
             if (names := _asked(path.read_text(encoding="utf-8")))}
    assert not found, "say it on the class (config/stages), or put the code into its room's table"


def test_bodies_import_by_the_name_that_the_class_says() -> None:
    for body in {kind.body for kind in KINDS}:
        module, _, name = body.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_the_rows_that_a_title_names_are_those_that_the_scale_leaves() -> None:
    """At scale 0.5 a stage that takes 60 rows said that it makes 60, on the terminal and in the report."""
    run = parse_run(yaml.safe_dump({"name": "t", "scale": 0.5, "stages": [
        {"name": "base", "kind": "import", "model": {"source": "tiny"}},
        {"name": "rows", "kind": "import", "data": [{"path": "x.jsonl", "format": "passage-qa"}],
         "split": {"by": "ratio", "ratios": {"train": 1.0}}},
        {"name": "gen", "kind": "generate", "recipe": "document_qa", "teacher": "base", "passages": ["rows/train"],
         "take": 60},
        {"name": "few", "kind": "select", "by": "random", "rows": ["gen/train"], "take": 45},
        {"name": "half", "kind": "select", "by": "random", "rows": ["gen/train"], "share": 0.5}]}))
    assert [run.title_of(stage) for stage in run.stages[2:]] == [
        "generate · document_qa en, 30 rows", "select · random, 22 rows", "select · random, 50%"]
