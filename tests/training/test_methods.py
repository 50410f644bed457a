"""Methods: each has its file, its trainer under our guards, and columns that TRL's own collator takes."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignment.artifacts import Artifact
from alignment.config import METHODS, TrainBase
from alignment.config.stages.online import OURS as ONLINE
from alignment.config.trl_keys import OURS, known_keys
from alignment.context import StageContext
from alignment.records import Record
from tests.training.made import FULL, LORA, context, preferred, stage

TAGS = [method.tag for method in METHODS]
PAIRS = [preferred("long", "Who are you?", "Me, of course.", "No."), preferred("short", "Who?", "I.", "You!")]
ARGUMENTS: list[tuple[str, dict[str, Any]]] = [
    ("sft", {}), ("sft", {"packing": True}), ("reward", {}), ("dpo", {}), ("dpo", {"strategy": FULL}),
    ("dpo", {"reference": "precomputed"}), ("grpo", {}), ("rloo", {}), ("ppo", {}),
]


def method_for(tag: str) -> Any:
    from alignment.training.methods import method_of

    return method_of(stage(tag))


def trainer_for(
    of: TrainBase, start: Artifact, tokenizer: Any, folder: Path, records: list[Record] = PAIRS,
    frozen: Artifact | None = None,
) -> tuple[Any, Any]:
    """The method's trainer over the records, and the prepared rows; `frozen` is its reference_model or teacher."""
    import torch
    from datasets import Dataset

    from alignment.training.frozen import load_frozen
    from alignment.training.guards import Rows
    from alignment.training.methods import method_of
    from alignment.training.model import build
    from alignment.training.prepare import prepare

    method = method_of(of)
    made = prepare(records, tokenizer, of, "here", method.columns)
    args = method.config(
        output_dir=str(folder / "checkpoints"), report_to="none", use_cpu=True, disable_tqdm=True, bf16=False,
        train_sampling_strategy="sequential", dataloader_pin_memory=False, **method.arguments(of),
        **of.trl)
    trainer = method.trainer(model=build(of, start, torch.float32, tokenizer.pad_token_id)[0], args=args,
                             processing_class=tokenizer, train_dataset=Dataset.from_list(made.rows),
                             **({method.frozen_as: load_frozen(of, start, frozen, torch.float32)} if frozen else {}))
    trainer.data_collator = Rows(trainer.data_collator)
    return trainer, made


def batch_of(trainer: Any) -> dict[str, Any]:
    """The one batch that the trainer would get, as lists."""
    (batch,) = trainer.get_train_dataloader()
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in batch.items()}


def test_every_method_has_a_file_of_its_name_and_no_file_is_without() -> None:
    from alignment.training import methods

    folder = Path(inspect.getfile(methods)).parent
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(TAGS)
    assert len(set(TAGS)) == len(METHODS)


@pytest.mark.parametrize("tag", TAGS)
def test_the_trainer_is_trls_under_our_guards_and_its_config_the_one_that_the_stage_names(tag: str) -> None:
    from transformers import Trainer

    from alignment.training.guards import Guarded
    from alignment.training.methods import Method

    method = method_for(tag)
    assert isinstance(method, Method)
    order = method.trainer.__mro__
    assert issubclass(method.trainer, Trainer)
    of_trl = next(kind for kind in order if kind.__module__.startswith("trl."))
    assert order.index(Guarded) < order.index(of_trl), "a guard behind the trainer would never be asked"
    file, _, name = stage(tag).trl_config.partition(":")
    assert method.config.__name__ == name
    assert Path(inspect.getfile(method.config)).as_posix().endswith(f"/{file}")
    accepted = {field.name for field in dataclasses.fields(method.config)}
    assert known_keys(stage(tag).trl_config) == accepted, "what check allows under `trl` is what the config takes"


@pytest.mark.parametrize(("tag", "more"), ARGUMENTS)
def test_arguments_are_known_to_trl_and_are_ours_alone_or_the_users_to_change(tag: str, more: dict[str, Any]) -> None:
    of = stage(tag, **more)
    method = method_for(tag)
    given = method.arguments(of)
    accepted = {field.name for field in dataclasses.fields(method.config)}
    assert given.keys() <= accepted
    free = given.keys() - OURS.keys() - ONLINE.keys()
    assert free == ({"packing_strategy", "eval_packing"} if more.get("packing") else set())


@pytest.mark.parametrize(("tag", "more", "wanted"), [
    ("sft", {}, {"max_length": None, "packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}),
    ("sft", {"packing": True, "max_length": 64},
     {"max_length": 64, "packing": True, "packing_strategy": "bfd", "eval_packing": False}),
    ("reward", {}, {"max_length": None}),
    ("dpo", {}, {"max_length": None, "precompute_ref_log_probs": False}),
    ("dpo", {"strategy": FULL}, {"max_length": None, "precompute_ref_log_probs": True}),
    ("dpo", {"reference": "precomputed"}, {"max_length": None, "precompute_ref_log_probs": True}),
])
def test_trl_does_neither_tokenize_nor_cut(
    tmp_path: Path, tag: str, more: dict[str, Any], wanted: dict[str, Any]
) -> None:
    method = method_for(tag)
    given = method.arguments(stage(tag, **more))
    args = method.config(output_dir=str(tmp_path), report_to="none", use_cpu=True, **given)
    assert {name: getattr(args, name) for name in wanted} == wanted


# --- what the collator makes of the columns ------------------------------------------------------------------


def filled(ids: list[int], size: int, value: int) -> list[int]:
    return ids + [value] * (size - len(ids))


@pytest.mark.parametrize("loss", ["completion", "assistant", "all"])
def test_sft_rows_are_batched_with_their_labels(
    base: Artifact, tokenizer: Any, tmp_path: Path, loss: str
) -> None:
    trainer, made = trainer_for(stage("sft", loss=loss), base, tokenizer, tmp_path)
    size = max(made.lengths)
    batch = batch_of(trainer)
    assert batch == {
        "input_ids": [filled(row["input_ids"], size, tokenizer.pad_token_id) for row in made.rows],
        "labels": [filled(row["labels"], size, -100) for row in made.rows],
        "attention_mask": [filled([1] * len(row["input_ids"]), size, 0) for row in made.rows],
        "row": [[0], [1]],
    }
    assert sum(label != -100 for row in batch["labels"] for label in row) == made.supervised


def test_reward_rows_are_batched_with_the_chosen_ones_first(base: Artifact, tokenizer: Any, tmp_path: Path) -> None:
    trainer, made = trainer_for(stage("reward"), base, tokenizer, tmp_path)
    sides = [row[side] for side in ("chosen_ids", "rejected_ids") for row in made.rows]
    size = max(made.lengths)
    assert batch_of(trainer) == {
        "input_ids": [filled(ids, size, tokenizer.pad_token_id) for ids in sides],
        "attention_mask": [filled([1] * len(ids), size, 0) for ids in sides],
        "row": [[0], [1]],
    }


def test_dpo_rows_are_batched_with_a_mask_over_the_answers(base: Artifact, tokenizer: Any, tmp_path: Path) -> None:
    trainer, made = trainer_for(stage("dpo"), base, tokenizer, tmp_path)
    sides = [(row["prompt_ids"], row[side]) for side in ("chosen_ids", "rejected_ids") for row in made.rows]
    size = max(made.lengths)
    batch = batch_of(trainer)
    assert batch == {
        "input_ids": [filled(prompt + answer, size, tokenizer.pad_token_id) for prompt, answer in sides],
        "attention_mask": [filled([1] * (len(prompt) + len(answer)), size, 0) for prompt, answer in sides],
        "completion_mask": [filled([0] * len(prompt) + [1] * len(answer), size, 0) for prompt, answer in sides],
        "row": [[0], [1]],
    }
    assert sum(map(sum, batch["completion_mask"])) == made.supervised


def test_packed_rows_hold_every_token_and_no_attention_goes_across_them(
    base: Artifact, tokenizer: Any, tmp_path: Path
) -> None:
    trainer, made = trainer_for(stage("sft", packing=True, max_length=256), base, tokenizer, tmp_path)
    batch = batch_of(trainer)
    rows = [next(row for row in made.rows if len(row["input_ids"]) == length)
            for length in sorted(made.lengths, reverse=True)]
    assert batch["input_ids"] == [[token for row in rows for token in row["input_ids"]]]
    assert batch["row"] == [[row["row"] for row in rows]]
    assert batch["position_ids"] == [[place for row in rows for place in range(len(row["input_ids"]))]]
    learned = [label for label in batch["labels"][0] if label != -100]
    assert learned == [label for row in rows for label in row["labels"] if label != -100]
    assert len(learned) == made.supervised


# --- what is kept of the end ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", TAGS)
def test_final_metrics_are_keys_that_the_trainer_logs(fitted: Callable[[str], StageContext], tag: str) -> None:
    made = fitted(tag)
    names = method_for(tag).final_metrics
    lines = [json.loads(line) for line in made.events.read_text(encoding="utf-8").splitlines()]
    trained, (*_, evaluated) = [[line for line in lines if line["event"] == kind] for kind in ("train", "eval")]
    assert [line["step"] for line in trained] == [1, 2]
    metrics = json.loads((made.out / "training.json").read_text(encoding="utf-8"))["metrics"]
    logged = {f"train_{name}": trained[-1].get(name) for name in names} | {
        f"eval_{name}": evaluated.get(f"eval_{name}") for name in names}
    assert {key: value for key, value in metrics.items() if key.startswith(("train_", "eval_"))} == {
        key: value for key, value in logged.items() if value is not None}
    assert {key.partition("_")[2] for key, value in logged.items() if value is not None} >= {*names} - {"kl"}
    assert tag in ("grpo", "rloo", "ppo") or None not in logged.values()
    assert names[0] == "loss", "aims and reports ask every method for it"


@pytest.mark.parametrize("tag", ["sft", "reward"])
def test_most_methods_have_no_facts_of_their_own(base: Artifact, tag: str) -> None:
    assert method_for(tag).facts(stage(tag), SimpleNamespace(), base) == {}


@pytest.mark.parametrize(("more", "adapters", "how"), [
    ({"reference": "precomputed"}, None, "log-probabilities computed once before training"),
    ({"strategy": FULL}, None, "log-probabilities computed once before training"),
    ({"strategy": LORA}, ["default", "ref"], "frozen copy of the start adapter"),
    ({"strategy": LORA}, ["default"], "adapter off"),
])
def test_a_dpo_stage_says_what_its_reference_was(
    adapter: Artifact, more: dict[str, Any], adapters: list[str] | None, how: str
) -> None:
    model = SimpleNamespace() if adapters is None else SimpleNamespace(peft_config=dict.fromkeys(adapters))
    facts = method_for("dpo").facts(stage("dpo", **more), SimpleNamespace(model=model), adapter)
    assert facts == {"reference": {"artifact": "adapter-000000000000", "how": how}}


def test_the_reference_of_dpo_is_a_frozen_copy_of_the_start(adapter: Artifact, tokenizer: Any, tmp_path: Path) -> None:
    import torch
    from peft import get_peft_model_state_dict

    trainer, _ = trainer_for(stage("dpo"), adapter, tokenizer, tmp_path)
    default, ref = (get_peft_model_state_dict(trainer.model, adapter_name=name) for name in ("default", "ref"))
    assert default.keys() == ref.keys()
    assert all(torch.equal(default[name], ref[name]) for name in ref)
    assert not any(p.requires_grad for name, p in trainer.model.named_parameters() if ".ref." in name)


def logps(trainer: Any, batch: dict[str, Any]) -> list[float]:
    return [value for side in trainer.compute_ref_log_probs(trainer.model, batch) for value in side.tolist()]


@pytest.mark.parametrize("tag", ["dpo", "kto"])
def test_dropout_counts_for_the_policy_and_never_for_the_reference(
    adapter: Artifact, tokenizer: Any, tmp_path: Path, tag: str
) -> None:
    from peft.tuners.lora import LoraLayer

    from alignment.training.model import settle_adapter

    plain, _ = trainer_for(stage(tag), adapter, tokenizer, tmp_path / "plain")
    of = stage(tag, strategy={**LORA, "dropout": 0.5})
    trainer, _ = trainer_for(of, adapter, tokenizer, tmp_path / "dropout")
    assert of.adapter is not None
    assert settle_adapter(trainer.model, of.adapter) == {"r": 4, "alpha": 8, "dropout": 0.5}
    (batch,) = trainer.get_train_dataloader()
    trainer.model.train()
    plain.model.train()
    assert logps(trainer, batch) == logps(trainer, batch) == logps(plain, batch)
    layers = [layer.lora_dropout for layer in trainer.model.modules() if isinstance(layer, LoraLayer)]
    assert {(layer["default"].p, layer["ref"].p) for layer in layers} == {(0.5, 0)}

    def loss() -> float:
        return float(trainer.compute_loss(trainer.model, {k: v for k, v in batch.items() if k != "row"}).detach())

    assert len({loss() for _ in range(4)}) == 4, "another share of the policy's inputs is left out each time"
    trainer.model.eval()
    assert len({loss() for _ in range(4)}) == 1


def test_what_fit_tells_trl_is_ours_alone(
    base: Artifact, rows: Artifact, tmp_path: Path
) -> None:
    """Or a default, of which a key under `trl` may make something else."""
    import torch

    from alignment.artifacts import Store
    from alignment.errors import ConfigErrors
    from alignment.training.fit import _arguments
    from tests import small

    given: set[str] = set()
    for method in METHODS:
        for more in ({}, {"eval_rows": "data/dev", "checkpoints": {"every": 2, "final": "best"}}):
            made = context(Store(str(tmp_path / "store")), tmp_path, base, rows, method.tag, **more)
            of = dataclasses.replace(method_for(method.tag), config=lambda **all: given.update(all))
            _arguments(made, made.stage_as(TrainBase), of, "cpu", torch.float32, 2)
    assert given - OURS.keys() - ONLINE.keys() == {"gradient_checkpointing", "dataloader_pin_memory"}
    known = frozenset.union(*(known_keys(method.trl_config) or frozenset() for method in METHODS))
    for key in sorted(given & known & OURS.keys()):
        with pytest.raises(ConfigErrors, match="not under trl"):
            small.run(tmp_path, small.train("sft", trl={key: 1}))


@pytest.mark.parametrize(("tag", "trl", "names"), [
    ("dpo", {}, ["ref_chosen_logps", "ref_rejected_logps"]), ("kto", {}, ["ref_KL_logps", "ref_logps"]),
    ("kto", {"loss_type": "apo_zero_unpaired"}, ["ref_logps"]),
])
def test_a_process_that_is_not_the_first_has_the_reference_too(
    base: Artifact, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str, trl: dict[str, Any],
    names: list[str],
) -> None:
    """TRL leaves it in a temporary file that the first one alone writes and knows."""
    from accelerate import Accelerator

    of = stage(tag, reference="precomputed", trl=trl)
    first, _ = trainer_for(of, base, tokenizer, tmp_path / "first")
    monkeypatch.setattr(Accelerator, "is_main_process", property(lambda self: False))
    other, _ = trainer_for(of, base, tokenizer, tmp_path / "other")
    assert sorted(name for name in other.train_dataset.column_names if name.startswith("ref_")) == names
    for name in names:
        assert other.train_dataset[name] == first.train_dataset[name]


def test_a_precomputed_reference_is_kept_beside_the_checkpoints_and_read_again(
    base: Artifact, tokenizer: Any, tmp_path: Path
) -> None:
    from datasets import Dataset

    of = stage("dpo", reference="precomputed")
    file = tmp_path / "reference" / "train.parquet"
    one, _ = trainer_for(of, base, tokenizer, tmp_path)
    written = Dataset.from_parquet(str(file))
    assert written.column_names == ["ref_chosen_logps", "ref_rejected_logps"]
    assert written.num_rows == len(PAIRS)
    assert all(value < 0 for row in written for value in row.values())
    assert one.train_dataset["ref_chosen_logps"] == written["ref_chosen_logps"]
    assert [path.name for path in file.parent.iterdir()] == ["train.parquet"]
    # Numbers that no model would give: whoever shows them has not computed.
    Dataset.from_dict({"ref_chosen_logps": [-1.5, -2.5], "ref_rejected_logps": [-3.5, -4.5]}).to_parquet(str(file))
    two, made = trainer_for(of, base, tokenizer, tmp_path)
    batch = batch_of(two)
    assert (batch["ref_chosen_logps"], batch["ref_rejected_logps"]) == ([-1.5, -2.5], [-3.5, -4.5])
    assert two.train_dataset["chosen_ids"] == [row["chosen_ids"] for row in made.rows]


@pytest.mark.parametrize("size", [2, 3, 4, 7, 32])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 8, 9, 21])
def test_every_row_of_kto_is_compared_with_another_ones_answer(count: int, size: int) -> None:
    from alignment.training.methods.kto import _neighbours

    answers = [[index] for index in range(count)]
    theirs = _neighbours(answers, size)
    assert all(own != other for own, other in zip(answers, theirs, strict=True)), "also where the last one is alone"
    for start in range(0, count - count % size, size):
        assert sorted(theirs[start:start + size]) == answers[start:start + size], "of one forward pass"
