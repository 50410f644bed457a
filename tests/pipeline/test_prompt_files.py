"""Prompt files count by what they hold, not by where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignment.config import SelfInstruct
from alignment.errors import ConfigError
from alignment.pipeline.keys import keys
from tests import small

OWN = "Tasks:\n{tasks}\n{next}."


def key(folder: Path, **more: Any) -> str:
    run = small.run(folder, {"name": "gen", "kind": "generate", "recipe": "self_instruct", "teacher": "base",
                             "seeds": ["data/train"], **more})
    return keys(run)["gen"].digest


def test_a_prompt_file_is_part_of_the_digest_by_its_content(tmp_path: Path) -> None:
    one, other = tmp_path / "one.txt", tmp_path / "deep" / "other.txt"
    other.parent.mkdir()
    one.write_text(OWN)
    other.write_text(OWN)
    shipped = key(tmp_path)
    mine = key(tmp_path, prompts={"instructions": str(one)})
    assert mine == key(tmp_path, prompts={"instructions": str(other)})
    assert mine != shipped
    other.write_text(OWN + "!")
    assert mine != key(tmp_path, prompts={"instructions": str(other)})
    assert shipped != key(tmp_path, language="zh")
    other.write_text("{tasks}")
    with pytest.raises(ConfigError, match=r"lacks \{next\}"):
        key(tmp_path, prompts={"instructions": str(other)})


def test_a_shipped_prompt_copied_to_a_file_of_ones_own_is_the_same(tmp_path: Path) -> None:
    stage = SelfInstruct.model_validate({"name": "gen", "recipe": "self_instruct", "teacher": "base",
                                         "seeds": ("data/train",)})
    shipped = next(prompt for prompt in stage.prompt_files() if prompt.step == "input_first")
    (tmp_path / "copy.txt").write_text(shipped.file.read_text(encoding="utf-8"), encoding="utf-8")
    assert key(tmp_path) == key(tmp_path, prompts={"input_first": str(tmp_path / "copy.txt")})


def test_files_of_ones_own_travel_and_are_found_where_they_went() -> None:
    stage = SelfInstruct.model_validate({"name": "gen", "recipe": "self_instruct", "teacher": "base",
                                         "seeds": ("data/train",), "prompts": {"instructions": "a/b.txt"}})
    assert [outside.path for outside in stage.sources() if outside.travels] == ["a/b.txt"]
    moved = stage.relocated({"a/b.txt": "/mnt/0-b.txt"})
    assert moved.prompts.instructions == "/mnt/0-b.txt"
    assert moved.prompts.input_first is None
