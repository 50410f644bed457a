"""A second, frozen model: the reference of another stage, computed once, and held to the same tokens as the start."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact, Store
from alignment.config import TrainBase
from alignment.errors import ConfigErrors, ModelError
from alignment.pipeline.keys import keys
from tests import small
from tests.models import published
from tests.training.made import FULL, LORA, context, stage
from tests.training.test_methods import trainer_for


def fitted(
    store: Store, folder: Path, start: Artifact, rows: Artifact, other: Artifact | None, method: str = "dpo",
    **more: Any,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Its events and facts after two steps."""
    from dataclasses import replace

    from alignment.training.fit import fit

    given = {} if other is None else {"reference_model": "other"}
    folder = folder.with_name(f"{folder.parent.name}-{folder.name}".replace("_", "-"))  # a key of its own in the store
    made = context(store, folder, start, rows, method, batch_size=4, micro_batch_size=4, eval_rows="data/dev",
                   trl={"max_steps": 2}, **given, **more)
    made = replace(made, inputs={**made.inputs, **({} if other is None else {"other": other})})
    fit(made)
    lines = [json.loads(line) for line in made.events.read_text(encoding="utf-8").splitlines()]
    return lines, json.loads((made.out / "training.json").read_text(encoding="utf-8"))["facts"]


@pytest.mark.parametrize("method", ["dpo", "kto"])
@pytest.mark.parametrize("strategy", [LORA, FULL], ids=["lora", "full"])
def test_a_reference_that_is_the_start_model_learns_as_without_one(
    store: Store, adapter: Artifact, rows: Artifact, tmp_path: Path, method: str, strategy: dict[str, Any]
) -> None:
    without, _ = fitted(store, tmp_path / "without", adapter, rows, None, method, strategy=strategy,
                        reference="precomputed")
    given, facts = fitted(store, tmp_path / "given", adapter, rows, adapter, method, strategy=strategy)
    for key in ("loss", "eval_loss"):
        wanted = [line[key] for line in without if key in line]
        # Merged into the start of a full training, an adapter is the same function up to rounding.
        near = 0 if strategy == LORA else 1e-5
        assert [line[key] for line in given if key in line] == pytest.approx(wanted, abs=near)
    assert facts["reference"] == {"artifact": adapter.key, "how": "log-probabilities computed once before training"}


def test_the_reference_is_the_other_model_with_its_adapter_on(
    store: Store, base: Artifact, adapter: Artifact, rows: Artifact, tokenizer: Any, tmp_path: Path
) -> None:
    import torch

    from alignment.inference.loading import load_policy

    trainer, made = trainer_for(stage("dpo", reference_model="other"), base, tokenizer, tmp_path, frozen=adapter)
    assert trainer.ref_model is None, "its memory is free again"
    alone = load_policy(adapter, dtype=torch.float32, device="cpu", merge=False)
    for index, row in enumerate(made.rows):
        for side in ("chosen", "rejected"):
            ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])
            with torch.no_grad():
                logps = alone(input_ids=ids).logits[0, :-1].log_softmax(-1)
            answer = range(len(row["prompt_ids"]) - 1, ids.shape[1] - 1)
            said = sum(float(logps[place, ids[0, place + 1]]) for place in answer)
            assert trainer.train_dataset[f"ref_{side}_logps"][index] == pytest.approx(said, abs=1e-3)
    first = fitted(store, tmp_path / "fit", base, rows, adapter)[0][0]
    assert abs(first["loss"] - math.log(2)) > 1e-4
    assert first["rewards/chosen"] != 0


def test_it_counts_in_the_digest_and_is_an_input(tmp_path: Path) -> None:
    run = small.run(tmp_path, small.train("sft"), small.train("one", "dpo", "sft"),
                    small.train("two", "dpo", "sft", reference_model="base"),
                    small.train("three", "dpo", "sft", reference_model="sft"))
    made = keys(run)
    assert len({made[name].key for name in ("one", "two", "three")}) == 3
    two = run.stage("two")
    assert isinstance(two, TrainBase)
    assert two.inputs() == ("sft", "base", "data")
    assert two.reference_mode == "precomputed"
    assert made["two"].parts["config"]["reference_model"] == made["base"].digest


def test_a_reference_may_have_an_adapter_of_another_shape_or_all_weights(tmp_path: Path) -> None:
    wide = {"kind": "lora", "r": 8, "alpha": 16}
    run = small.run(tmp_path, small.train("wide", strategy=wide), small.train("full", strategy=FULL),
                    small.train("dpo", "dpo", reference_model="wide"),
                    small.train("kto", "kto", reference_model="full"))
    assert [ref.stage for ref in run.stage("dpo").model_refs()] == ["base", "wide"]


@pytest.mark.parametrize(("more", "key", "problem"), [
    ({"reference_model": "base", "reference": "adapter"}, "reference", "no other stage's model"),
    ({"reference_model": "nowhere"}, "reference_model", "does not come before it"),
    ({"reference_model": "data"}, "reference_model", "language model"),
])
def test_a_wrong_reference_is_told_at_its_key(tmp_path: Path, more: dict[str, Any], key: str, problem: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        small.run(tmp_path, small.train("sft"), small.train("dpo", "dpo", "sft", **more))
    [finding] = caught.value.findings
    assert f".{key})" in str(finding.where)
    assert problem in finding.problem


def retold(store: Store, base: Artifact, folder: Path, change: Any) -> Artifact:
    """`base` under another key, its model folder changed."""
    shutil.copytree(base.path() / "model", folder / "model")
    change(folder / "model")
    return published(store, f"{folder.name}-000000000000", folder)


def test_another_template_or_vocabulary_is_refused_before_training(
    store: Store, base: Artifact, rows: Artifact, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    from alignment.inference.info import write_info
    from alignment.templates import source

    def template(model: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokenizer.chat_template = source("llama3")
        tokenizer.save_pretrained(model)
        write_info(model, role="policy", form="full", base=None, tokenizer=tokenizer)

    def vocabulary(model: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokenizer.add_tokens(["<new>"])
        tokenizer.save_pretrained(model)

    for name, change, problem in (("told", template, "chat templates"), ("wider", vocabulary, "vocabularies")):
        other = retold(store, base, tmp_path / f"{name}-{tmp_path.name[-1]}", change)
        with pytest.raises(ModelError, match=problem) as caught:
            fitted(store, tmp_path / f"fit-{name}", base, rows, other)
        assert caught.value.where == "stage stage, reference_model"


def test_check_finds_another_vocabulary_and_template_before_launch(tmp_path: Path) -> None:
    from alignment.checks.seen import Sight
    from alignment.checks.stages import wrong
    from alignment.config import parse_run

    def folder(name: str, **vocabulary: int) -> dict[str, Any]:
        made = tmp_path / name
        made.mkdir()
        for file, content in (("config.json", {}), ("tokenizer.json", {"model": {"vocab": vocabulary}}),
                              ("tokenizer_config.json", {"chat_template": name[0]})):
            (made / file).write_text(json.dumps(content), encoding="utf-8")
        (made / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
        return {"name": name, "kind": "import", "model": {"source": "folder", "path": str(made)}}

    stages = [folder("a", x=0, y=1), folder("ab", x=0, y=1), folder("b", x=0, y=1), folder("az", y=0, x=1),
              small.data(tmp_path), *(small.train(f"d-{name}", "distill", "a", teacher=name) for name in ("ab", "b")),
              small.train("dpo", "dpo", "a", reference_model="az")]
    run = parse_run(json.dumps({"name": "x", "stages": stages}))
    sight = Sight(10**6)
    found = {stage.name: [(place, error.problem) for place, error in wrong(run, stage, sight)] for stage in run.stages}
    assert found["d-ab"] == []
    [(place, problem)] = found["d-b"]
    assert place == ("teacher",)
    assert "chat template is not that of a" in problem
    [(place, problem)] = found["dpo"]
    assert place == ("reference_model",)
    assert "tokenizer is not that of a" in problem


def test_the_plan_counts_the_weights_and_the_work_of_a_second_model(tmp_path: Path) -> None:
    from alignment.planner import Rates, plan
    from alignment.planner.need import Device, memory_of

    run = small.run(tmp_path, small.train("alone", "dpo"), small.train("held", "dpo", reference_model="other"),
                    small.train("orpo", "orpo"), small.train("taught", "distill"), small.train("sft"))
    made = {item.name: item for item in plan(run, dict.fromkeys(stage.name for stage in run.stages),
                                             Rates(flops=1e11, bandwidth=1e10))}
    weights = {name: item.memory.weights for name, item in made.items() if item.memory is not None}
    other = made["other"].size
    assert other is not None
    assert weights["taught"] == weights["sft"] + 4 * other.parameters
    copied = weights["alone"] - weights["sft"]
    assert weights["held"] == weights["alone"] - copied + 4 * other.parameters, "the copy of an adapter is not needed"
    seconds = {name: item.seconds for name, item in made.items() if item.seconds is not None}
    assert seconds["taught"] > seconds["sft"]
    size = dataclasses.replace(other, vocab=128_000)  # a tile of TRL's head holds all of a tiny one
    whole, tiles = (memory_of(run.stage(name), size, Device(on_gpu=False), rows=4, length=1024)
                    for name in ("orpo", "alone"))
    assert whole.logits > tiles.logits
