"""DPO with every loss of the installed TRL, ORPO and distillation: what is learned is TRL's loss, and what TRL would
pass over is refused before anything is launched."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact, Store
from alignment.config import METHODS
from alignment.config.stages.train import Dpo
from alignment.config.trl_methods import DIFFERENCES, DIVERGENCES, LOSSES, READ_BY
from alignment.config.trl_values import _loss_types
from alignment.errors import ConfigErrors
from alignment.reference.emitted import CURVES
from tests import small
from tests.training.made import context, stage
from tests.training.test_methods import trainer_for

NEEDED: dict[str, dict[str, Any]] = {"exo_pair": {"label_smoothing": 1e-3}, "robust": {"label_smoothing": 0.1}}
"""What a loss cannot do without."""


def one_batch(trainer: Any) -> dict[str, Any]:
    (batch,) = trainer.get_train_dataloader()
    return {name: value for name, value in batch.items() if name != "row"}


def loss_of(trainer: Any, batch: dict[str, Any] | None = None) -> float:
    trainer.model.train()
    return float(trainer.compute_loss(trainer.model, one_batch(trainer) if batch is None else batch).detach())


# --- DPO -----------------------------------------------------------------------------------------------------


def test_the_losses_and_divergences_are_those_of_the_installed_trl() -> None:
    assert set(_loss_types(Dpo.trl_config)) == set(LOSSES)
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).with_name("trainer").joinpath("dpo_trainer.py").read_text(encoding="utf-8"))
    sets = [ast.literal_eval(node.value) for node in ast.walk(tree) if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "f_divergence_loss_types"]
    assert sets == [DIFFERENCES]
    kinds = {node.comparators[0].value for node in ast.walk(tree) if isinstance(node, ast.Compare)
             and isinstance(node.left, ast.Attribute) and node.left.attr == "f_divergence_type"
             and isinstance(node.ops[0], ast.Eq) and isinstance(node.comparators[0], ast.Constant)}
    assert kinds == set(DIVERGENCES)


@pytest.mark.parametrize("trl", [
    *({"loss_type": name, **NEEDED.get(name, {})} for name in LOSSES),
    {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1]},
    *({"f_divergence_type": kind} for kind in DIVERGENCES[1:]), {"use_weighting": True}, {"ld_alpha": 0.5},
    {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3, "loss_type": "ipo"},
], ids=str)
def test_dpo_trains_with_it_and_logs_what_is_declared(
    store: Store, base: Artifact, rows: Artifact, tmp_path: Path, trl: dict[str, Any]
) -> None:
    from alignment.training.fit import fit

    made = context(store, tmp_path, base, rows, "dpo", batch_size=4, micro_batch_size=4, eval_rows="data/dev",
                   trl={"max_steps": 2, **trl})
    fit(made)
    lines = [json.loads(line) for line in made.events.read_text(encoding="utf-8").splitlines()]
    trained, evaluated = ([line for line in lines if line["event"] == kind] for kind in ("train", "eval"))
    names = {curve.name for curve in CURVES[Dpo]}
    assert names <= trained[0].keys()
    assert {f"eval_{name}" for name in names} <= evaluated[0].keys()
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in trained)
    if trl.get("loss_type", "sigmoid") == "sigmoid" and "use_weighting" not in trl:
        assert trained[0]["loss"] == pytest.approx(math.log(2), abs=1e-5), "the policy is its own reference"
    assert trained[1]["logps/chosen"] != trained[0]["logps/chosen"], "something is learned"


def test_several_losses_are_their_weighted_sum(adapter: Artifact, tokenizer: Any, tmp_path: Path) -> None:
    def loss(trl: dict[str, Any]) -> float:
        return loss_of(trainer_for(stage("dpo", trl=trl), adapter, tokenizer, tmp_path)[0])

    both = loss({"loss_type": ["sigmoid", "sft"], "loss_weights": [0.5, 2]})
    assert both == pytest.approx(0.5 * math.log(2) + 2 * loss({"loss_type": "sft"}), rel=1e-5)


@pytest.mark.parametrize("key", sorted(READ_BY))
def test_a_key_that_is_refused_beside_a_loss_would_do_nothing_there(
    adapter: Artifact, base: Artifact, tokenizer: Any, tmp_path: Path, key: str
) -> None:
    """Against a reference that is another model, so that a loss has something to differ by."""
    for name in LOSSES:
        trl = {"loss_type": name, **NEEDED.get(name, {})}
        trainer, _ = trainer_for(stage("dpo", reference_model="other", trl=trl), adapter, tokenizer,
                                 tmp_path / name, frozen=base)
        batch = one_batch(trainer)
        before = loss_of(trainer, batch)
        trainer.label_smoothing, trainer.args.discopop_tau = (
            (0.3, trainer.args.discopop_tau) if key == "label_smoothing" else (trainer.label_smoothing, 7.0))
        assert (loss_of(trainer, batch) != before) == (name in READ_BY[key]), name


@pytest.mark.parametrize(("trl", "key", "problem"), [
    ({"loss_type": "exo_pair"}, "loss_type", "needs a label_smoothing over 0"),
    ({"loss_type": "robust", "label_smoothing": 0.5}, "label_smoothing", "divides by"),
    ({"label_smoothing": 0.1}, "label_smoothing", "no loss of this stage reads it"),
    ({"loss_type": ["ipo", "hinge"], "label_smoothing": 0.1}, "label_smoothing", "no loss of this stage"),
    ({"discopop_tau": 0.1}, "discopop_tau", "no loss of this stage"),
    ({"loss_type": []}, "loss_type", "names no loss"),
    ({"loss_type": ["ipo", "ipo"]}, "loss_type", "twice"),
    ({"loss_type": "simpo"}, "loss_type", "TRL has no such loss"),
    ({"loss_type": ["ipo", "sft"], "loss_weights": [1]}, "loss_weights", "not as many"),
    ({"loss_type": ["ipo", "sft"], "loss_weights": [1, -1]}, "loss_weights", "not weights"),
    ({"loss_type": ["ipo", "sft"], "loss_weights": [0, 0]}, "loss_weights", "nothing to learn"),
    ({"loss_type": "aot", "use_weighting": True}, "use_weighting", "sorts them apart"),
    ({"loss_type": "bco_pair", "f_divergence_type": "js_divergence"}, "f_divergence_type", "no meaning"),
    ({"f_divergence_type": "jsd"}, "f_divergence_type", "no such divergence"),
    ({"f_alpha_divergence_coef": 0.3}, "f_alpha_divergence_coef", "is not read"),
    ({"ld_alpha": 1.5}, "ld_alpha", "not a number that this key takes"),
    ({"sync_ref_model": True}, "sync_ref_model", "nothing that can be held to"),
    ({"ref_model_sync_steps": 8}, "ref_model_sync_steps", "nothing that can be held to"),
    ({"padding_free": True}, "padding_free", "nothing that can be held to"),
    ({"rpo_alpha": 1.0}, "rpo_alpha", "no such key"),
    ({"precompute_ref_batch_size": 4}, "precompute_ref_batch_size", "nothing is computed before"),
])
def test_what_would_fail_or_do_nothing_is_refused_by_name(
    tmp_path: Path, trl: dict[str, Any], key: str, problem: str
) -> None:
    with pytest.raises(ConfigErrors) as caught:
        small.run(tmp_path, small.train("dpo", "dpo", trl=trl))
    [finding] = caught.value.findings
    assert f"trl.{key})" in str(finding.where)
    assert problem in finding.problem


def test_a_loss_that_sorts_the_rows_of_a_pass_has_several_and_memory_does_not_choose_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match="compares rows of one forward pass"):
        small.run(tmp_path, small.train("dpo", "dpo", micro_batch_size=1, trl={"loss_type": "aot"}))
    for trl, rows in (({"loss_type": "aot"}, 8), ({"loss_type": ["sigmoid", "sft"]}, 8), ({}, 1)):
        of = stage("dpo", micro_batch_size=None, trl=trl)
        assert of.micro_batch(1, lambda rows: False) == rows
    assert stage("dpo", micro_batch_size=None, trl={"loss_type": "aot"}).micro_batch(8) == 0


# --- ORPO ----------------------------------------------------------------------------------------------------


def test_orpo_is_trls_loss_on_trls_own_columns(adapter: Artifact, tokenizer: Any, tmp_path: Path) -> None:
    import torch
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    from alignment.training.model import build

    of = stage("orpo", trl={"beta": 0.3})
    trainer, made = trainer_for(of, adapter, tokenizer, tmp_path / "ours")

    class Plain(ORPOTrainer):  # type: ignore[misc]
        @staticmethod
        def tokenize_row(row: dict[str, Any], model: Any = None) -> dict[str, Any]:
            sides = {side: row["prompt_ids"] + row[f"{side}_ids"] for side in ("chosen", "rejected")}
            prompt = [-100] * len(row["prompt_ids"])
            return {"prompt_input_ids": row["prompt_ids"], "prompt_attention_mask": [1] * len(prompt),
                    **{f"{side}_input_ids": ids for side, ids in sides.items()},
                    **{f"{side}_attention_mask": [1] * len(ids) for side, ids in sides.items()},
                    **{f"{side}_labels": prompt + row[f"{side}_ids"] for side in sides}}

    args = ORPOConfig(output_dir=str(tmp_path / "plain"), report_to="none", use_cpu=True, bf16=False, beta=0.3,
                      disable_tqdm=True, train_sampling_strategy="sequential", dataloader_pin_memory=False)
    rows = [{key: value for key, value in row.items() if key != "row"} for row in made.rows]
    plain = Plain(model=build(of, adapter, torch.float32, tokenizer.pad_token_id)[0], args=args,
                  processing_class=tokenizer, train_dataset=Dataset.from_list(rows))
    losses = [loss_of(each) for each in (trainer, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for each in (trainer, plain):
        each.compute_loss(each.model, one_batch(each)).backward()
    ours, theirs = ({name: parameter.grad for name, parameter in each.model.named_parameters()
                     if parameter.grad is not None} for each in (trainer, plain))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-7)


def test_what_orpo_calls_learned_is_what_its_loss_is_over(base: Artifact, tokenizer: Any, tmp_path: Path) -> None:
    _, made = trainer_for(stage("orpo"), base, tokenizer, tmp_path)
    wanted = sum(len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in made.rows)
    assert made.supervised == wanted


# --- distillation --------------------------------------------------------------------------------------------


def test_distillation_is_trls_loss_on_what_trl_would_have_generated(
    adapter: Artifact, base: Artifact, tokenizer: Any, tmp_path: Path
) -> None:
    """TRL's own batches, padded at the left, of answers that stand for its generation."""
    import torch
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    from alignment.training.frozen import load_frozen
    from alignment.training.model import build

    for beta in (0.0, 0.4, 1.0):
        of = stage("distill", trl={"beta": beta, "temperature": 0.7})
        trainer, made = trainer_for(of, base, tokenizer, tmp_path / "ours", frozen=adapter)
        answers = {tuple(row["prompt_ids"]): row["completion_ids"] for row in made.rows}

        class Plain(DistillationTrainer):  # type: ignore[misc]
            def _generate(self, prompts: list[list[int]], answers: Any = answers) -> Any:
                return prompts, [answers[tuple(prompt)] for prompt in prompts], None, None, None

        args = DistillationConfig(
            output_dir=str(tmp_path / "plain"), report_to="none", use_cpu=True, bf16=False, beta=beta, temperature=0.7,
            per_device_train_batch_size=2, disable_tqdm=True, dataloader_pin_memory=False)
        plain = Plain(model=build(of, base, torch.float32, tokenizer.pad_token_id)[0], args=args,
                      teacher_model=load_frozen(of, base, adapter, torch.float32), processing_class=tokenizer,
                      train_dataset=Dataset.from_list([{"prompt": row["prompt_ids"]} for row in made.rows]))
        plain.model.train()
        theirs = float(plain.compute_loss(plain.model, plain._prepare_inputs(
            [{"prompt": row["prompt_ids"]} for row in made.rows])).detach())
        batch = one_batch(trainer)
        trainer.model.train()
        count = trainer._get_num_items_in_batch([batch], batch["tool_mask"].device)
        ours = float(trainer.compute_loss(trainer.model, batch, num_items_in_batch=count).detach())
        assert int(count) == made.supervised
        assert ours == pytest.approx(theirs, rel=1e-5)
        assert ours > 1e-4, "the teacher says something else than the student"


def test_a_teacher_with_an_adapter_answers_as_its_stage_does(
    adapter: Artifact, base: Artifact, tokenizer: Any
) -> None:
    import torch

    from alignment.inference.loading import load_policy
    from alignment.training.frozen import load_frozen

    teacher = load_frozen(stage("distill"), base, adapter, torch.float32)
    alone = load_policy(adapter, dtype=torch.float32, device="cpu", merge=False)
    ids = torch.arange(20, 50).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(teacher(input_ids=ids).logits, alone(input_ids=ids).logits)
        start = load_policy(base, dtype=torch.float32, device="cpu")
        assert not torch.equal(teacher(input_ids=ids).logits, start(input_ids=ids).logits)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_head_that_trl_does_not_know_is_found_before_the_first_step(
    adapter: Artifact, base: Artifact, tokenizer: Any, tmp_path: Path
) -> None:
    import torch

    from alignment.errors import ModelError
    from alignment.training.methods.distill import prove

    trainer, _ = trainer_for(stage("distill"), base, tokenizer, tmp_path, frozen=adapter)
    prove(trainer, torch.float32, "here")
    trainer.teacher_model.lm_head.register_forward_hook(lambda module, inputs, output: output * 40)
    with pytest.raises(ModelError, match="TRL does not know"):
        prove(trainer, torch.float32, "here")


@pytest.mark.parametrize(("more", "key", "problem"), [
    ({"trl": {"top_p": 0.9}}, "trl.top_p", "nothing that can be held to"),
    ({"trl": {"use_vllm": True}}, "trl.use_vllm", "nothing that can be held to"),
    ({"trl": {"beta": 1.2}}, "trl.beta", "not a number that this key takes"),
    ({"trl": {"lmbda": 0.5}}, "trl.lmbda", "no such key"),
    ({"teacher": "base"}, "teacher", "nothing to learn"),
    ({"teacher": "data"}, "teacher", "language model"),
])
def test_what_distill_cannot_honour_is_refused_by_name(
    tmp_path: Path, more: dict[str, Any], key: str, problem: str
) -> None:
    with pytest.raises(ConfigErrors) as caught:
        small.run(tmp_path, small.train("d", "distill", **more))
    [finding] = caught.value.findings
    assert f"{key})" in str(finding.where)
    assert problem in finding.problem


def test_every_key_that_is_refused_is_one_of_trls() -> None:
    from alignment.config.trl_keys import known_keys

    for method in METHODS:
        assert method.not_passed.keys() <= (known_keys(method.trl_config) or set()), method.tag


@pytest.mark.parametrize(("method", "close"), [("orpo", 0.05), ("distill", 2e-4)])
def test_a_batch_in_parts_has_the_loss_of_the_whole(
    store: Store, adapter: Artifact, base: Artifact, rows: Artifact, tmp_path: Path, method: str, close: float
) -> None:
    """And not as many times that as it has parts. ORPO's mean over the tokens of a pass makes them differ a little."""
    from dataclasses import replace

    from alignment.training.fit import fit

    losses = []
    for size in (4, 1):
        made = context(store, tmp_path / f"{method}-{size}", base, rows, method, batch_size=4, micro_batch_size=size,
                       take=4, trl={"max_steps": 1})
        made = replace(made, inputs={**made.inputs, "other": adapter})
        fit(made)
        losses.append(json.loads(made.events.read_text(encoding="utf-8").splitlines()[0])["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=close)


