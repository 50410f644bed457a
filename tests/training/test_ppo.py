"""PPO: the policy learns what the reward asks for, from the start model on, and what it learns knows no padding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from alignment.artifacts import Artifact, Store
from alignment.context import StageContext
from alignment.errors import ConfigErrors, StageError
from tests import small
from tests.training.made import FULL, LORA, context, stage

SHORT = {"parts": {"brief": {"function": "brevity"}}}
LETTERS = {"parts": {"letters": {"function": "tests.training.test_ppo:letters"}}}


def letters(record: Any, answer: str) -> float:
    """Share of an answer that is small letters: about half of what a model without training says."""
    return sum(one.isascii() and one.islower() for one in answer) / max(1, len(answer))


@pytest.fixture
def asked(base: Artifact, rows: Artifact, tmp_path: Path) -> Callable[..., StageContext]:
    """Context of a PPO stage of the test's own."""
    def make(name: str = "ppo", start: Artifact = base, **more: Any) -> StageContext:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return context(Store(str(tmp_path / "own" / name)), folder, start, rows, "ppo",
                       **{"reward": SHORT, "max_new_tokens": 6, "batch_size": 8, "micro_batch_size": 4, **more})
    return make


def trainer_of(made: StageContext) -> Any:
    """The trainer as `fit` makes it, not yet trained."""
    from datasets import Dataset

    from alignment.training import fit as module
    from alignment.training.methods import method_of
    from alignment.training.model import build
    from alignment.training.prepare import prepare

    of = made.stage
    method = method_of(of)  # type: ignore[arg-type]
    start = made.inputs["base"]
    tokenizer = module.load_tokenizer(start.path() / "model", side="right")
    prepared = prepare(made.rows("data/train"), tokenizer, of, "here", method.columns)  # type: ignore[arg-type]
    model, _ = build(of, start, torch.float32, tokenizer.pad_token_id)  # type: ignore[arg-type]
    arguments = module._arguments(made, of, method, "cpu", torch.float32, 1)  # type: ignore[arg-type]
    rows = Dataset.from_list(prepared.rows)
    trainer = module._trainer(method, model, arguments, tokenizer, rows, None, prepared.ids, method.extras(made))
    trainer.create_optimizer()
    return trainer


def rollout_of(trainer: Any) -> Any:
    return trainer._rollout(trainer.model, [trainer.train_dataset[index] for index in range(8)])


def events(made: StageContext, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, made.events.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["event"] == kind]


# --- it learns -----------------------------------------------------------------------------------------------


def test_a_policy_learns_what_the_reward_asks_for_and_the_value_head_what_to_expect(
    asked: Callable[..., StageContext]
) -> None:
    from alignment.training.fit import fit

    made = asked(reward=LETTERS, strategy=FULL, eval_rows="data/dev", minibatches=2, learning_rate=1e-2, epochs=16,
                 checkpoints={"every": 16})
    fit(made)
    train, (before, after) = events(made, "train"), events(made, "eval")
    rewards, values = ([line[key] for line in train] for key in ("reward", "value_loss"))
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.1
    assert sum(values[-4:]) / 4 < sum(values[:4]) / 4 / 2
    assert (before["step"], before["eval_reward_gain"]) == (0, 0.0)
    assert after["eval_reward_gain"] > 0
    assert train[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert train[-1]["kl"] > 0.01
    assert max(line["sampling/logp_difference"] for line in train) < 1e-4, "what is learned is what was drawn"
    assert train[0]["rewards/letters/mean"] == train[0]["reward"]


# --- the reference -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [LORA, FULL], ids=["lora", "full"])
def test_the_reference_is_the_start_model_also_where_that_is_an_adapter(
    asked: Callable[..., StageContext], adapter: Artifact, strategy: dict[str, Any]
) -> None:
    from alignment.inference.loading import load_policy

    made = asked(start=adapter, strategy=strategy)
    trainer = trainer_of(made)
    rollout = rollout_of(trainer)
    with torch.no_grad():  # whatever the policy learns
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    found = trainer._reference(trainer.model, rollout.answers)
    torch.testing.assert_close(found, rollout.old, atol=1e-5, rtol=0)
    start = load_policy(adapter, dtype=torch.float32, device="cpu", merge=True)
    wanted = trainer._said(start, rollout.answers).log_probs
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert (trainer._said(trainer.model, rollout.answers).log_probs - found).abs().max() > 0.01


def test_a_module_that_is_trained_whole_has_a_frozen_twin_in_the_reference(asked: Callable[..., StageContext]) -> None:
    trainer = trainer_of(asked(strategy={**LORA, "modules_to_save": ["embed_tokens"]}))
    rollout = rollout_of(trainer)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "embed_tokens" in name and parameter.requires_grad:
                parameter.mul_(1.5)
    torch.testing.assert_close(trainer._reference(trainer.model, rollout.answers), rollout.old, atol=1e-5, rtol=0)
    assert (trainer._said(trainer.model, rollout.answers).log_probs - rollout.old).abs().max() > 0.01


def test_a_policy_that_is_not_its_reference_stops_before_it_learns(asked: Callable[..., StageContext]) -> None:
    trainer = trainer_of(asked(strategy=FULL))
    with torch.no_grad():
        for parameter in trainer.ref_model.parameters():
            parameter.mul_(1.5)
    with pytest.raises(StageError, match="not its reference") as error:
        rollout_of(trainer)
    assert error.value.where == "stage stage, step 0"


# --- answers -------------------------------------------------------------------------------------------------


def answers(trainer: Any, said: list[tuple[list[int], int | None]]) -> Any:
    """Answers of these tokens, each with the stop token that ended it, to prompts of different lengths."""
    from alignment.inference.requests import Completion
    from alignment.training.ppo_rollout import Answers

    prompts = [trainer.train_dataset[index]["prompt"] for index in range(len(said))]
    made = [Completion("", ids, stop is not None, stop, tuple([-1.0] * (len(ids) + (stop is not None))))
            for ids, stop in said]
    return Answers.of([f"p{index}" for index in range(len(said))], prompts, made, torch.device("cpu"))


def test_the_stop_token_is_the_last_token_of_its_answer_and_learned(asked: Callable[..., StageContext]) -> None:
    made = answers(trainer_of(asked()), [([11, 12], 7), ([13, 14, 15], None), ([], 7)])
    assert made.tokens.tolist() == [[11, 12, 7], [13, 14, 15], [7, 0, 0]]
    assert made.mask.tolist() == [[1, 1, 1], [1, 1, 1], [1, 0, 0]]
    assert made.finished.tolist() == [True, False, True]


def test_log_probabilities_are_the_models_own_of_each_row_alone(asked: Callable[..., StageContext]) -> None:
    trainer = trainer_of(asked(temperature=0.7))
    made = answers(trainer, [([11, 12], 7), ([13, 14, 15, 16], None), ([], 7)])
    found = trainer._said(trainer.model.eval(), made)
    for row, prompt in enumerate(made.prompts):
        own = made.completions[row].tokens
        with torch.no_grad():
            logits = trainer.model(torch.tensor([prompt + own])).logits[0, len(prompt) - 1:-1] / 0.7
        wanted = logits.log_softmax(-1).gather(-1, torch.tensor(own)[:, None]).squeeze(-1)
        torch.testing.assert_close(found.log_probs[row, :len(own)], wanted, atol=1e-5, rtol=0)
        assert not found.log_probs[row, len(own):].any()


def test_an_answer_that_was_cut_pays_the_penalty(
    asked: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignment.training import ppo_loss

    trainer, seen = trainer_of(asked(missing_eos_penalty=0.75, max_new_tokens=2)), []
    real = ppo_loss.token_rewards
    monkeypatch.setattr(ppo_loss, "token_rewards",
                        lambda scores, *args: (seen.append(scores), real(scores, *args))[1])
    rollout = rollout_of(trainer)
    rewards = trainer.reward.judge([_record(trainer, index) for index in range(8)],
                                   [one.text for one in rollout.answers.completions]).total
    cut = ~rollout.answers.finished
    assert cut.any()
    torch.testing.assert_close(seen[0], torch.tensor(rewards) - 0.75 * cut)


def _record(trainer: Any, index: int) -> Any:
    from alignment.records import Record

    return Record.from_json(trainer.train_dataset[index]["record"])


# --- what is learned -----------------------------------------------------------------------------------------


def test_gradients_do_not_depend_on_how_answers_are_batched(asked: Callable[..., StageContext]) -> None:
    """Rows of one update together, two by two, one by one: padding and passes change nothing."""
    trainer = trainer_of(asked(strategy=FULL, minibatches=1, ppo_epochs=1, eval_rows=None))
    rollout = rollout_of(trainer)
    assert len({int(one) for one in rollout.answers.mask.sum(-1)} | {len(p) for p in rollout.answers.prompts}) > 2
    found = []
    for size in (8, 2, 1):
        trainer.rows_at_once = size
        loss = trainer._learn(trainer.model, rollout)
        gradients = [p.grad.clone() for p in [*trainer.model.parameters(), *trainer.head.parameters()]]
        found.append((loss, gradients))
    for loss, gradients in found[1:]:
        torch.testing.assert_close(loss, found[0][0], atol=1e-6, rtol=1e-4)
        for one, wanted in zip(gradients, found[0][1], strict=True):
            torch.testing.assert_close(one, wanted, atol=1e-6, rtol=1e-3)


def test_gradient_checkpointing_changes_no_loss(asked: Callable[..., StageContext]) -> None:
    from alignment.training.fit import fit

    found = []
    for name, checkpointing in (("plain", False), ("checkpointed", True)):
        made = asked(name, trl={"gradient_checkpointing": checkpointing, "max_steps": 2}, learning_rate=5e-3)
        fit(made)
        found.append([line[key] for line in events(made, "train") for key in ("loss", "value_loss", "kl", "grad_norm")])
    assert found[1] == pytest.approx(found[0], abs=1e-5)


def test_the_value_head_reaches_no_weight_of_the_policy(asked: Callable[..., StageContext]) -> None:
    from alignment.training.ppo_rollout import ValueHead

    states = torch.randn(2, 3, 8, requires_grad=True)
    head = ValueHead(8)
    assert not head(states).any(), "it begins at 0"
    torch.nn.init.normal_(head.score.weight)
    head(states).sum().backward()
    assert states.grad is None
    torch.testing.assert_close(head(states), head(states * 100 + 5), atol=1e-4, rtol=0)


def test_a_loss_that_is_not_finite_stops_with_the_rows_of_its_pass(
    asked: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignment.training.fit import fit
    from alignment.training.methods.ppo import GuardedPpo

    seen: list[list[str]] = []
    real = GuardedPpo.compute_loss

    def compute_loss(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        seen.append([inputs["rollout"].answers.ids[row] for row in inputs["chosen"]])
        return real(self, model, inputs, *args, **kwargs) * (float("nan") if len(seen) == 2 else 1.0)

    monkeypatch.setattr(GuardedPpo, "compute_loss", compute_loss)
    with pytest.raises(StageError, match="the loss is not finite") as error:
        fit(asked())
    assert error.value.where == f"step 1, rows {seen[1]}"
    assert len(seen[1]) == 4


def test_weights_that_give_no_numbers_stop_with_rows(asked: Callable[..., StageContext]) -> None:
    trainer = trainer_of(asked(strategy=FULL))
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(float("nan"))
    with pytest.raises(StageError, match="the policy cannot answer") as error:
        rollout_of(trainer)
    assert "rows ['p0', 'p1'" in str(error.value.where)


# --- checkpoints and config ----------------------------------------------------------------------------------


class Stops(TrainerCallback):  # type: ignore[misc]
    """As a kill, between the checkpoints of steps 2 and 4."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("strategy", [LORA, FULL], ids=["lora", "full"])
def test_a_resumed_stage_equals_an_uninterrupted_one_value_head_and_gain_included(
    asked: Callable[..., StageContext], adapter: Artifact, strategy: dict[str, Any]
) -> None:
    from alignment.training.fit import fit

    keys: dict[str, Any] = {"start": adapter, "strategy": strategy, "epochs": 4, "minibatches": 2, "ppo_epochs": 2,
                            "eval_rows": "data/dev", "learning_rate": 5e-3}
    alone, stopped = asked("alone", **keys), asked("stopped", **keys)
    fit(alone)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, callbacks=(Stops(),))
    fit(stopped)

    def lines(made: StageContext) -> list[dict[str, Any]]:
        return [{k: v for k, v in line.items() if k != "time"}
                for kind in ("train", "eval") for line in events(made, kind)]

    assert lines(stopped) == lines(alone)
    name = "adapter_model.safetensors" if strategy is LORA else "model.safetensors"
    assert (stopped.out / "model" / name).read_bytes() == (alone.out / "model" / name).read_bytes()
    resumed = json.loads((stopped.out / "training.json").read_text(encoding="utf-8"))["facts"]
    assert resumed["timing"]["resumed_from_step"] == 2
    kept = stopped.work / "checkpoints" / "checkpoint-4" / "ppo.safetensors"
    assert kept.read_bytes() == (alone.work / "checkpoints" / "checkpoint-4" / "ppo.safetensors").read_bytes()
    assert not [path for path in (stopped.out / "model").iterdir() if "ppo" in path.name], "the head is not published"


def test_a_checkpoint_without_the_heads_optimizer_is_one_sentence(
    asked: Callable[..., StageContext], adapter: Artifact
) -> None:
    from alignment.training.fit import fit

    stopped = asked("earlier", start=adapter, strategy=LORA, epochs=4)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, callbacks=(Stops(),))
    [kept] = (stopped.work / "checkpoints").glob("*/ppo_optimizer.pt")
    kept.unlink()
    with pytest.raises(StageError, match="without the optimizer of its value head") as error:
        fit(stopped)
    assert str(kept.parents[1]) in str(error.value)


@pytest.mark.parametrize(("kept", "found"), [
    (None, "no such file"), (b"", "header"), ({"score.weight": [1, 8], "score.bias": [1]}, "[1, 8]"),
    ({"weight": [1, 16]}, "'weight'"),
])
def test_a_value_head_that_does_not_fit_is_one_sentence(
    tmp_path: Path, kept: bytes | dict[str, list[int]] | None, found: str) -> None:
    from safetensors.torch import save_file

    from alignment.training.ppo_rollout import ValueHead

    file = tmp_path / "checkpoint-4" / "ppo.safetensors"
    file.parent.mkdir()
    if isinstance(kept, bytes):
        file.write_bytes(kept)
    elif kept is not None:
        save_file({name: torch.zeros(shape) for name, shape in kept.items()}, file)
    with pytest.raises(StageError, match="value head of a checkpoint does not fit the policy") as caught:
        ValueHead(16).take_up(file, "stage ppo")
    assert caught.value.where == "stage ppo"
    assert found in str(caught.value.found)
    assert "'score.weight': [1, 16]" in str(caught.value.expected)
    assert str(file.parent) in str(caught.value.hint)


@pytest.mark.parametrize(("more", "said"), [
    ({"strategy": {**LORA, "dropout": 0.1}}, "dropout"), ({"minibatches": 3}, "minibatches"),
    ({"num_generations": 4}, "num_generations"), ({"max_new_tokens": 2000}, "max_new_tokens"),
    ({"trl": {"beta": 0.1}}, "no such key"), ({"trl": {"neftune_noise_alpha": 5.0}}, "the one that answered"),
    ({"reward": {"parts": {}}}, "parts"), ({"gamma": 1.5}, "gamma"),
])
def test_what_cannot_be_is_refused_before_launch(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigErrors, match=said):
        small.run(tmp_path, small.train("ppo", "ppo", **{"reward": SHORT, "max_new_tokens": 6, **more}))


def test_a_gate_on_the_kl_is_heard_whatever_the_kl_costs() -> None:
    made = stage("ppo", reward=SHORT, kl_coef=0.0, gates={"kl": 1.0})
    assert not list(made.findings())
