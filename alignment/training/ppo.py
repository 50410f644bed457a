"""The PPO trainer: transformers' loop around one step that answers, judges and learns.

One step: the policy answers a batch of prompts; a reward judges the answers; the frozen start model says how far the
policy has gone (KL); then `ppo_epochs` passes over the answers in `minibatches` updates each. As in TRL 1.12 a step of
the schedule, the log and the checkpoints is such a whole step, so that no checkpoint lies between answers and what is
learned of them. Losses are ppo_loss.py's, answers and values ppo_rollout.py's. Does not load, save or resume models,
write events or stop on NaN by itself: `fit` and `Guarded` do, as for every method.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import gather_object
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.utils import use_adapter

from alignment.config.stages.online import Ppo
from alignment.errors import ModelError, StageError
from alignment.inference.engine import left_padded
from alignment.records import Record
from alignment.rewards.parts import Judged
from alignment.training import ppo_loss
from alignment.training.gates import Gate, prove_start
from alignment.training.ppo_rollout import Answers, Said, ValueHead, answered, draw, said_by

FILE = "ppo.safetensors"
"""Beside a checkpoint's weights: the value head, and what the start earned on held-out prompts."""
NO_KL = 1e-4
"""The policy is its own reference before the first update, to rounding."""
WATCHED = ("policy_loss", "value_loss", "clip_fraction", "value_clip_fraction", "approx_kl")
"""What is logged of the updates, in the order in which compute_loss adds it up."""
SURE = 1.96
"""Standard errors to each side of a mean that make its 95 % interval."""


class Reward(Protocol):
    """What judges answers: `alignment.rewards.RewardSum`, or anything like it."""

    def judge(self, records: Sequence[Record], answers: Sequence[str]) -> Judged:
        """What each answer earns by each part, and in all."""


@dataclass
class Rollout:
    """Answers and what is to be learned of them: old log-probabilities, old values, advantages, returns, all [B, T]."""

    answers: Answers
    old: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


class PpoTrainer(_BaseTrainer):  # type: ignore[misc]
    """See the module.

    Args:
        args: per_device_train_batch_size are the rows of one forward pass; times gradient_accumulation_steps, those of
            one step on this worker.
        train_dataset: columns prompt_ids and number (of the row's record).
        records, held: what the rows of both data sets were made from, by number.
    """

    optimizer: Any
    control: Any

    def __init__(
        self, model: Any, args: Any, processing_class: Any, train_dataset: Any, eval_dataset: Any = None, *,
        stage: Ppo, reward: Reward, records: Sequence[Record], held: Sequence[Record] = (),
    ) -> None:
        self.stage, self.reward, self.records, self.held = stage, reward, records, held
        self.rows_at_once, args = args.per_device_train_batch_size, copy.copy(args)
        args.per_device_train_batch_size *= args.gradient_accumulation_steps
        args.gradient_accumulation_steps = 1
        _without_dropout(model)
        self.frozen = _frozen_copy(model)
        self.head = ValueHead(model.config.get_text_config().hidden_size)
        self.start_rewards: Tensor | None = None
        self._metrics: dict[str, list[float]] = defaultdict(list)
        super().__init__(model=model, args=args, processing_class=processing_class, data_collator=_prompts,
                         train_dataset=train_dataset, eval_dataset=eval_dataset)
        self.head.to(self.accelerator.device)
        if self.frozen is not None:
            self.frozen.to(self.accelerator.device)
        self.add_callback(Gate(stage.gates, f"stage {stage.name}"))

    # --- one step ---------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Answer, judge, learn; the gradients of the last update are left to transformers' loop."""
        if self.state.global_step == 0 and self.eval_dataset is not None:
            self.evaluate()
        rows = inputs["number"].tolist()
        prompts = [ids[mask == 1].tolist() for ids, mask in
                   zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
        rollout = self._rollout(model, rows, prompts)
        self.tokens_here += int(rollout.answers.mask.sum())  # Guarded counts the prompts
        return self._learn(model, rollout)

    def _rollout(self, model: Any, rows: list[int], prompts: list[list[int]]) -> Rollout:
        stage, bare = self.stage, self.accelerator.unwrap_model(model)
        model.eval()
        answers = self._answers(bare, self.records, rows, prompts, f"step {self.state.global_step}")
        judged = self.reward.judge([self.records[row] for row in rows], answers.texts)
        rewards, mask = torch.tensor(judged.total, device=answers.mask.device), answers.mask
        own, reference = self._said(bare, answers), self._reference(bare, answers)
        kl = ppo_loss.kl_terms(own.log_probs, reference, mask, stage.kl_estimator)
        scores = ppo_loss.answer_scores(rewards, answers.finished, stage.missing_eos_penalty or 0.0)
        earned = ppo_loss.token_rewards(scores, kl, mask, stage.kl_coef)
        if stage.whiten_rewards:
            earned = ppo_loss.whiten(earned, mask, shift_mean=False, over_all=self._over_all)
        advantages, returns = ppo_loss.gae(earned, own.values, mask, stage.gamma, stage.lam)
        advantages = ppo_loss.whiten(advantages, mask, over_all=self._over_all)
        self._note(answers, judged, rewards, kl, own)
        return Rollout(answers, own.log_probs, own.values, advantages, returns)

    def _learn(self, model: Any, rollout: Rollout) -> Tensor:
        """Every update but the last one's step; returns the mean loss of all of them, []."""
        model.train()
        count, losses = len(rollout.answers.rows), []
        self._sums = torch.zeros(len(WATCHED), device=self.accelerator.device)
        updates = [chosen for epoch in range(self.stage.ppo_epochs)
                   for chosen in torch.chunk(self._order(count, epoch), self.stage.minibatches)]
        for index, chosen in enumerate(updates):
            self.optimizer.zero_grad()
            tokens = self._over_all(rollout.answers.mask[chosen].sum())
            losses.append(torch.zeros((), device=tokens.device))
            passes = torch.split(chosen, self.rows_at_once)
            for number, part in enumerate(passes):
                one = part.tolist()
                last = number == len(passes) - 1
                with nullcontext() if last else self.accelerator.no_sync(model):
                    with self.compute_loss_context_manager():
                        loss = self.compute_loss(model, {**rollout.answers.inputs(one), "rollout": rollout,
                                                         "chosen": one, "tokens": tokens})
                    self._check(loss, [rollout.answers.rows[row] for row in one])
                    self.accelerator.backward(loss)
                losses[-1] += loss.detach()
            for weight in self.head.parameters():  # which no wrapper shares out
                weight.grad = self.accelerator.reduce(weight.grad, "mean")
            if index < len(updates) - 1:
                if self.args.max_grad_norm > 0:
                    self._clip_grad_norm(model)
                self.optimizer.step()
        self._log_later(dict(zip(WATCHED, self._sums / len(updates), strict=True)))
        return torch.stack(losses).mean()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Surrogate plus vf_coef times the value loss, []: a sum over this pass's tokens, divided by all of the
        update's, times the workers, whose gradients are averaged."""
        stage, given = self.stage, dict(inputs)
        rollout, chosen, tokens = given.pop("rollout"), given.pop("chosen"), given.pop("tokens")
        width = rollout.answers.width(chosen)
        mask, old, values, advantages, returns = (tensor[chosen, :width] for tensor in (
            rollout.answers.mask, rollout.old, rollout.values, rollout.advantages, rollout.returns))
        said = said_by(model, self.accelerator.unwrap_model(model), self.head, given, width, stage.temperature)
        policy = ppo_loss.policy_loss(said.log_probs, old, advantages, mask, stage.cliprange)
        value = ppo_loss.value_loss(said.values, values, returns, mask, stage.cliprange_value)
        share = self.args.world_size / tokens
        with torch.no_grad():
            moved = ppo_loss.approx_kl(said.log_probs, old, mask) * mask.sum()
            sums = (policy.loss.sum(), value.loss.sum(), policy.clipped.sum(), value.clipped.sum(), moved)
            self._sums += torch.stack(sums) * share
        return (policy.loss.sum() + stage.vf_coef * value.loss.sum()) * share  # type: ignore[no-any-return]

    def _check(self, loss: Tensor, rows: list[int]) -> None:
        if not bool(loss.isfinite()):
            raise StageError("the loss is not finite", found=float(loss), hint="lower the learning rate, or look at "
                             "these rows", where=f"step {self.state.global_step + 1}, rows "
                                                 f"{[self.records[row].id for row in rows]}")

    def _order(self, count: int, epoch: int) -> Tensor:
        """A shuffle of the answers, the same in a resumed run, [count]."""
        seed = (self.args.seed * 1_000_003 + self.state.global_step) * 1_009 + epoch
        return torch.randperm(count, generator=torch.Generator().manual_seed(seed % 2**63))

    # --- what models say ----------------------------------------------------------------------------------------

    def _answers(self, bare: Any, records: Sequence[Record], rows: list[int], prompts: list[list[int]],
                 when: str | None = None) -> Answers:
        """Answers to some rows: drawn, or greedy where no occasion is given."""
        temperature = 0.0 if when is None else self.stage.temperature
        draws = [draw(self.args.seed, str(when), records[row].id, temperature, self.stage.max_new_tokens)
                 for row in rows]
        model = bare.get_base_model() if isinstance(bare, PeftModel) else bare
        try:
            with self.accelerator.autocast():
                return answered(model, self.processing_class, rows, prompts, draws)
        except ModelError as error:
            raise StageError(f"the policy cannot answer: {error.problem}", found=error.found, hint=error.hint,
                             where=f"step {self.state.global_step + 1}, rows {[records[row].id for row in rows]}",
                             ) from error

    def _said(self, bare: Any, answers: Answers) -> Said:
        """What a model says of answers, a few rows at a time, without gradients; [B, T] each."""
        made = [torch.zeros_like(answers.mask) for _ in Said._fields]
        with torch.no_grad(), self.accelerator.autocast():
            for start in range(0, len(answers.rows), self.rows_at_once):
                chosen = list(range(start, min(start + self.rows_at_once, len(answers.rows))))
                inputs = answers.inputs(chosen)
                width = answers.width(chosen)
                said = said_by(bare, bare, self.head, inputs, width, self.stage.temperature)
                for whole, part in zip(made, said, strict=True):
                    whole[chosen, :width] = part
        return Said(*made)

    def _reference(self, bare: Any, answers: Answers) -> Tensor:
        """Log-probabilities of the answers under the start model, [B, T]."""
        if self.frozen is not None:
            return self._said(self.frozen, answers).log_probs
        with use_adapter(bare, "ref"):
            return self._said(bare, answers).log_probs

    # --- what is logged -----------------------------------------------------------------------------------------

    def _note(self, answers: Answers, judged: Judged, rewards: Tensor, kl: Tensor, own: Said) -> None:
        """The step's numbers, means over all workers; the first step's KL is held to 0."""
        mask, spread = answers.mask, (own.log_probs - answers.sampled).abs()
        means = {
            "reward": rewards.mean(), "kl": ppo_loss.masked_mean(kl, mask),
            "entropy": ppo_loss.masked_mean(own.entropy, mask), "completions/mean_length": mask.sum(-1).mean(),
            "completions/clipped_ratio": 1 - answers.finished.float().mean(),
            "sampling/logp_difference": ppo_loss.masked_mean(spread, mask),
            **{f"rewards/{name}/mean": torch.tensor(part, device=mask.device).mean()
               for name, part in judged.parts.items()},
        }
        every = self.accelerator.gather(rewards)
        self._log_later({**means, "reward_std": every.std(correction=min(1, len(every) - 1))})
        if self.state.global_step == 0:
            prove_start(self._metrics["kl"][-1], f"stage {self.stage.name}", NO_KL)

    def _log_later(self, means: dict[str, Tensor]) -> None:
        shared = self.accelerator.reduce(torch.stack([value.float() for value in means.values()]), "mean")
        for name, value in zip(means, shared.tolist(), strict=True):
            self._metrics[name].append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Beside the loss, means of what was noted since the line before."""
        if "loss" in logs:
            logs.update({name: sum(values) / len(values) for name, values in self._metrics.items() if values})
            self._metrics.clear()
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Answer the held-out prompts greedily, judge, and log the mean reward with its interval, and its gain over
        the start's with the interval of the differences prompt by prompt. `loss` is minus the reward, so that the
        best checkpoint is the one with the highest."""
        bare, given = self.accelerator.unwrap_model(self.model), list(self.eval_dataset)
        bare.eval()
        mine, found = range(self.args.process_index, len(given), self.args.world_size), []
        for start in range(0, len(mine), self.args.per_device_train_batch_size):
            rows = [given[i]["number"] for i in mine[start:start + self.args.per_device_train_batch_size]]
            answers = self._answers(bare, self.held, rows, [given[row]["prompt_ids"] for row in rows])
            judged = self.reward.judge([self.held[row] for row in rows], answers.texts)
            lengths = answers.mask.sum(-1).tolist()
            found += [(row, judged.total[i], lengths[i], float(not answers.completions[i].finished),
                       [part[i] for part in judged.parts.values()], list(judged.parts)) for i, row in enumerate(rows)]
        every = sorted(gather_object(found))
        rewards = torch.tensor([one[1] for one in every])
        if self.state.global_step == 0:
            self.start_rewards = rewards
        numbers = {"loss": -float(rewards.mean()), **_interval("reward", rewards),
                   "completions/mean_length": _mean([one[2] for one in every]),
                   "completions/clipped_ratio": _mean([one[3] for one in every])}
        numbers |= {f"rewards/{name}/mean": _mean([one[4][i] for one in every]) for i, name in enumerate(every[0][5])}
        if self.start_rewards is not None:
            numbers |= _interval("gain", rewards - self.start_rewards)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in numbers.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # --- what transformers asks ---------------------------------------------------------------------------------

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["prompt_ids", "number"]

    def create_optimizer(self, model: Any = None) -> Any:
        """The policy's groups, and one of the value head's own with its own rate under the same schedule."""
        fresh = self.optimizer is None
        optimizer: Any = super().create_optimizer(model)
        if fresh:
            optimizer.add_param_group({"params": list(self.head.parameters()), "weight_decay": 0.0,
                                       "lr": self.stage.value_learning_rate})
        return optimizer

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            kept = {f"head.{name}": tensor.cpu() for name, tensor in self.head.state_dict().items()}
            if self.start_rewards is not None:
                kept["start_rewards"] = self.start_rewards
            save_file(kept, Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}", FILE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        kept = load_file(Path(resume_from_checkpoint, FILE))
        self.start_rewards = kept.pop("start_rewards", None)
        self.head.load_state_dict({name.removeprefix("head."): tensor for name, tensor in kept.items()})

    def _over_all(self, sums: Tensor) -> Tensor:
        return self.accelerator.reduce(sums, "sum")  # type: ignore[no-any-return]


def _prompts(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Prompts padded at the left, [B, P], and the numbers of their rows, [B]."""
    ids, mask = left_padded([example["prompt_ids"] for example in examples], torch.device("cpu"))
    return {"input_ids": ids, "attention_mask": mask, "number": torch.tensor([one["number"] for one in examples])}


def _frozen_copy(model: Any) -> Any:
    """The start model, as the reference: a copy, or none for an adapter, which gets a frozen twin called `ref`."""
    if not isinstance(model, PeftModel):
        return copy.deepcopy(model).eval().requires_grad_(False)
    model.add_adapter("ref", model.peft_config["default"])
    set_peft_model_state_dict(model, get_peft_model_state_dict(model, adapter_name="default"), adapter_name="ref")
    return None


def _without_dropout(model: Any) -> None:
    """The policy that learns is the one that answered. (A strategy's own dropout is refused by the config.)"""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def _interval(name: str, values: Tensor) -> dict[str, float]:
    """Mean of [rows] and the ends of its 95 % interval by the normal law."""
    mean, half = float(values.mean()), SURE * float(values.std(correction=min(1, len(values) - 1))) / len(values) ** 0.5
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
