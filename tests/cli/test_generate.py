"""Generate stages at the command line: what `check` knows before anything is asked, and rows with what made them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.config import load_run
from alignment.distributed.generate import shared
from alignment.pipeline import execute
from tests.cli.conftest import Call, Said
from tests.distributed.test_generate import seed_rows
from tests.generation.scripted import Scripted, good_teacher


@pytest.fixture
def checked(call: Call) -> Callable[..., Said]:
    def check(*command: str, count: int = 10, **keys: Any) -> Said:
        run = {"name": "gen", "compute": {"dtype": "float32", "device": "cpu"}, "store": "store", "stages": [
            {"name": "base", "kind": "import", "model": {"source": "tiny"}},
            {"name": "seeds", "kind": "import", "data": [{"path": "seeds.jsonl", "format": "self-instruct"}],
             "split": {"by": "ratio", "ratios": {"train": 1.0}}},
            {"name": "gen", "kind": "generate", "recipe": "self_instruct", "teacher": "base", "seeds": ["seeds/train"],
             "take": 6, "requests_per_round": 3, **keys}]}
        Path("seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in seed_rows()[:count]))
        Path("run.yaml").write_text(yaml.safe_dump(run, sort_keys=False))
        return call(*(command or ("check",)), "run.yaml")

    return check


def test_the_run_itself_passes_and_says_what_it_saw(checked: Callable[..., Said]) -> None:
    said = checked()
    assert (said.code, said.err) == (0, "")
    assert "10 seed tasks, 3 of them classifications" in said.out


@pytest.mark.parametrize(("keys", "count", "place", "problem"), [
    ({}, 1, "stages[2].seeds", "too few seed tasks"),
    ({"take": 0}, 10, "stages[2].take", "0"),
    ({"max_requests": 0}, 10, "stages[2].max_requests", "0"),
    ({"recipe": "self-instruction"}, 10, "stages[2]", "recipe (of a generate stage) is one of self_instruct"),
    ({"language": "zh"}, 10, "stages[2].language", "most seed tasks are in another language"),
    ({"max_prompt_tokens": 40}, 10, "stages[2].max_prompt_tokens", "every prompt is longer"),
    ({"max_prompt_tokens": 1900}, 10, "stages[2].max_prompt_tokens", "can tell the places of"),
    ({"prompts": {"instructions": "seeds.jsonl"}}, 10, "stages[2].prompts.instructions", "lacks {tasks} and {next}"),
    ({"prompts": {"input_first": "none.txt"}}, 10, "stages[2].prompts.input_first", "cannot be read"),
    ({"seeds": ["seeds/dev"]}, 10, "stages[2].seeds[0]", "no stage makes"),
    ({"teacher": "seeds"}, 10, "stages[2].teacher", "language model"),
])
def test_what_is_known_to_fail_is_said_before_launch(
    keys: dict[str, Any], count: int, place: str, problem: str, checked: Callable[..., Said]
) -> None:
    said = checked(count=count, **keys)
    assert said.code == 2
    assert f"({place})" in said.err
    assert problem in said.err
    assert said.err.count("error:") <= 1


def test_a_row_is_shown_with_what_made_it(
    checked: Callable[..., Said], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked()
    monkeypatch.setattr(shared, "open_engine", lambda context, name: Scripted(good_teacher))
    execute(load_run(Path("run.yaml")))
    said = call("data", "show", "run.yaml", "--stage", "gen")
    assert said.code == 0, said.err
    assert "r1-1-1-1  (prompt-completion)" in said.out
    assert '"request": "r1-1"' in said.out
    assert "similar: [[" in said.out
    said = call("plan", "run.yaml")
    assert said.code == 0, said.err
    assert "generate · self_instruct en, 6 tasks" in said.out
    page = Path("store/runs/gen/report.html").read_text(encoding="utf-8")
    assert 'id="generation"' in page
    said = call("data", "show", "run.yaml", "--stage", "seeds")
    assert said.code == 0
    assert "Say what number 0 of the apples" in said.out
