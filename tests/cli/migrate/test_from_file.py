"""`init --from`: the file that is written, what is said, and that `check` takes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.config import load_run
from alignment.config.yaml_text import dump
from tests.cli.conftest import Call
from tests.cli.migrate.samples import AXOLOTL, INFOS, LLAMA_FACTORY, TRL


def write(given: dict[str, Any], name: str = "theirs.yaml") -> str:
    Path(name).write_text(dump(given))
    return name


def test_what_is_written_passes_check_where_the_hub_is_not_asked(call: Call) -> None:
    said = call("init", "mine.yaml", "--from", write({**AXOLOTL, "deepspeed": None, "bf16": None, "datasets": [
        AXOLOTL["datasets"][0]]}))
    assert said.code == 0, said.err
    assert "datasets[0].type" in said.out
    assert "kubealign check mine.yaml" in said.out
    text = Path("mine.yaml").read_text()
    assert text.startswith("# From Axolotl's theirs.yaml")
    assert "#   tf32: " in text
    assert load_run("mine.yaml").name == "mine"
    checked = call("check", "mine.yaml")
    assert checked.code == 0, checked.err
    assert "not read now: hub:some/chats/train[:10%]@main" in checked.out


def test_what_lies_beside_the_file_is_read(call: Call) -> None:
    Path("there/data").mkdir(parents=True)
    Path("there/data/dataset_info.json").write_text(json.dumps(INFOS))
    chat = [{"conversations": [{"from": "human", "value": f"What is {n}?"}, {"from": "gpt", "value": f"It is {n}."}]}
            for n in range(60)]
    Path("there/data/chat.json").write_text(json.dumps(chat))
    zero = {"stage": 3, "offload_param": {"device": "cpu"}}
    Path("there/ds.json").write_text(json.dumps({"zero_optimization": zero}))
    theirs = write({**LLAMA_FACTORY, "dataset": "harbour_chat", "deepspeed": "ds.json"}, "there/theirs.yaml")
    assert call("init", "mine.yaml", "--from", theirs, "--processes", "2").code == 0
    run = load_run("mine.yaml")
    assert run.stages[1].data[0].path == "there/data/chat.json"
    assert (run.compute.sharding, run.compute.workers) == ("zero3-offload", 2)
    assert call("init", "alone.yaml", "--from", write({**LLAMA_FACTORY, "deepspeed": None, "dataset": "harbour_chat"},
                                                      "there/theirs.yaml")).code == 0
    checked = call("check", "alone.yaml")
    assert checked.code == 0, checked.err
    assert "train" in checked.out
    Path("there/data/dataset_info.json").write_text("{")
    broken = call("init", "other.yaml", "--from", theirs)
    assert (broken.code, "dataset_info.json" in broken.err) == (2, True)


def test_refusals(call: Call) -> None:
    theirs = write(TRL)
    assert "--method" in call("init", "mine.yaml", "--from", theirs).err
    assert not Path("mine.yaml").exists()
    assert call("init", "mine.yaml", "--from", theirs, "--method", "dpo").code == 0
    again = call("init", "mine.yaml", "--from", theirs, "--method", "dpo")
    assert (again.code, "--force" in again.err) == (2, True)
    assert "cannot be read" in call("init", "x.yaml", "--from", "nowhere.yaml").err
    Path("list.yaml").write_text("[1]")
    assert "is a mapping" in call("init", "x.yaml", "--from", "list.yaml").err
    both = call("init", "x.yaml", "--from", theirs, "--method", "dpo", "--recipe", "qa")
    assert (both.code, "one of them" in both.err) == (2, True)
    assert "files of other tools" in call("init", "x.yaml", "--processes", "2").err
    assert "this one says it itself" in call("init", "x.yaml", "--from", write(AXOLOTL), "--method", "dpo").err
    bad = call("init", "x.yaml", "--from", write({**AXOLOTL, "lora_r": -1}))
    assert (bad.code, "no stage here takes" in bad.err, "-1" in bad.err) == (2, True, True)


@pytest.mark.parametrize("given", [{**LLAMA_FACTORY, "dataset": "harbour_chat, harbour_tasks"}, AXOLOTL])
def test_a_written_file_is_what_is_loaded(given: dict[str, Any], call: Call) -> None:
    assert call("init", "mine.yaml", "--from", write(given)).code == 0
    run = load_run("mine.yaml")
    assert [stage.name for stage in run.stages] == ["base", "data", "sft"]
    assert run.stages[2].rows == ("data/train",)
