"""`init`: every recipe passes `check` at once, whatever the file is called; nothing is overwritten by surprise."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.cli.init import recipes
from alignment.config import load_run
from tests.cli.conftest import Call

RECIPES = ("dpo", "qa", "sft", "tiny")


def test_the_recipes_are_listed_with_their_first_line(call: Call) -> None:
    assert tuple(recipes()) == RECIPES
    said = call("init", "--list")
    assert said.code == 0
    for name, line in recipes().items():
        assert name in said.out
        assert line in said.out


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_fresh_recipe_passes_check_and_plan(recipe: str, call: Call) -> None:
    said = call("init", "my-run.yaml", "--recipe", recipe)
    assert said.code == 0
    assert "kubealign check my-run.yaml" in said.out
    assert "kubealign run my-run.yaml" in said.out
    checked = call("check", "my-run.yaml")
    assert (checked.code, checked.err) == (0, "")
    assert checked.out.endswith("ok\n")
    assert len(checked.out.splitlines()) == len(load_run("my-run.yaml").stages) + 1
    assert call("plan", "my-run.yaml").code == 0


def test_what_is_written(call: Call) -> None:
    call("init", "my-run.yaml", "--recipe", "qa")
    assert sorted(path.name for path in Path().iterdir()) == ["my-run-qa.jsonl", "my-run.yaml"]
    text = Path("my-run.yaml").read_text()
    assert "@" not in text
    assert "#" in text
    assert load_run("my-run.yaml").name == "my-run"


@pytest.mark.parametrize(("file", "name"), [
    ("deep/er/run.yaml", "run"), ("2nd try.yaml", "run-2nd-try"), ('a "quoted" [run]\\x.yaml', "a-quoted-run-x"),
    ("Läufe 一.yaml", "l-ufe"), ("-.yaml", "run"), ("x" * 60 + ".yaml", "x" * 40), ("UPPER_case.yml", "upper-case"),
])
def test_any_file_name(file: str, name: str, call: Call) -> None:
    target = Path.cwd() / file  # absolute, as a name may begin with a dash
    assert call("init", target, "--recipe", "tiny").code == 0
    assert load_run(target).name == name
    assert call("check", target).code == 0


def test_nothing_is_overwritten_without_force(call: Call) -> None:
    Path("my-run-qa.jsonl").write_text("mine")
    said = call("init", "my-run.yaml", "--recipe", "qa")
    assert said.code == 2
    assert "my-run-qa.jsonl" in said.err
    assert "--force" in said.err
    assert Path("my-run-qa.jsonl").read_text() == "mine"
    assert not Path("my-run.yaml").exists()
    assert call("init", "my-run.yaml", "--recipe", "qa", "--force").code == 0
    assert call("check", "my-run.yaml").code == 0


def test_refusals(call: Call) -> None:
    unknown = call("init", "x.yaml", "--recipe", "nope")
    assert unknown.code == 2
    assert "dpo, qa, sft, tiny" in unknown.err
    assert call("init").code == 2
    Path("file").write_text("")
    below = call("init", "file/run.yaml")
    assert below.code == 2
    assert "cannot be written" in below.err
