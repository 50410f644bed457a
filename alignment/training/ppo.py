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
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.utils import use_adapter

from alignment.config import Sampling
from alignment.config.stages.online import Ppo
from alignment.errors import ModelError, StageError
from alignment.inference.draws import draws
from alignment.records import Record
from alignment.rewards import Judged, RewardSum
from alignment.training import ppo_loss
from alignment.training.gates import Gate, prove_start
from alignment.training.held_out import HeldOut
from alignment.training.ppo_rollout import (
    Answers,
    Rollout,
    Said,
    ValueHead,
    frozen_copy,
    said_by,
    said_of,
    without_dropout,
)
from alignment.training.ranks import first_to_fail
from alignment.training.sharding import beside, is_shared_out

FILE = "ppo.safetensors"
"""The value head, beside a checkpoint's weights."""
OPTIMIZER = "ppo_optimizer.pt"
"""Its optimizer's states."""
NO_KL = 1e-4
"""The policy is its own reference before the first update, to rounding."""
WATCHED = ("policy_loss", "value_loss", "clip_fraction", "value_clip_fraction", "approx_kl")
"""What is logged of the updates, in the order in which compute_loss adds it up."""


class PpoTrainer(HeldOut, _BaseTrainer):  # type: ignore[misc]
    """See the module.

    Args:
        args: per_device_train_batch_size are the rows of one forward pass; times gradient_accumulation_steps, those of
            one step on this worker.
        train_dataset: columns prompt, record and row, as online.py makes them.
        reward: what judges answers.
        gate: asked of every log line.
        seed: the run's.
    """

    optimizer: Any

    def __init__(
        self, *, model: Any, args: Any, stage: Ppo, reward: RewardSum, gate: Gate, seed: int, **given: Any
    ) -> None:
        self.stage, self.reward, self.gate, self.seed = stage, reward, gate, seed
        self.rows_at_once, args = args.per_device_train_batch_size, copy.copy(args)
        args.per_device_train_batch_size *= args.gradient_accumulation_steps
        args.gradient_accumulation_steps = 1
        self.max_new_tokens, self.answers_at_once = stage.max_new_tokens, args.per_device_train_batch_size
        without_dropout(model)
        self.ref_model = frozen_copy(model)
        self.head = ValueHead(model.get_output_embeddings().weight.shape[-1])
        self._metrics: dict[str, list[float]] = defaultdict(list)
        super().__init__(model=model, args=args, data_collator=_as_they_are, **given)
        self.head.to(self.accelerator.device)
        if self.ref_model is not None:
            self.ref_model = beside(self, self.ref_model)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self.add_callback(self.gate)  # after the one that writes the line down
        return super().train(*args, **kwargs)

    # --- one step ---------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: list[dict[str, Any]], num_items_in_batch: Any = None) -> Tensor:
        """Answer, judge, learn; the policy's gradients of the last update are left to transformers' loop."""
        rollout = self._rollout(model, inputs)
        self.tokens_here += sum(len(one["prompt"]) for one in inputs) + int(rollout.answers.mask.sum())
        self._set_rate_of_head()
        loss = self._learn(model, rollout)
        self.head_optimizer.step()
        return loss

    def _rollout(self, model: Any, rows: list[dict[str, Any]]) -> Rollout:
        stage, bare = self.stage, self.accelerator.unwrap_model(model)
        model.eval()
        records = [Record.from_json(row["record"]) for row in rows]
        answers = self._answers(records, [row["prompt"] for row in rows])
        judged = self.reward.judge(records, [one.text for one in answers.completions])
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
        count, losses = len(rollout.answers.ids), []
        self._sums = torch.zeros(len(WATCHED), device=self.accelerator.device)
        updates = [chosen for epoch in range(self.stage.ppo_epochs)
                   for chosen in torch.chunk(self._order(count, epoch), self.stage.minibatches)]
        for index, chosen in enumerate(updates):
            self.optimizer.zero_grad()
            self.head_optimizer.zero_grad()
            tokens = self._over_all(rollout.answers.mask[chosen].sum())
            losses.append(torch.zeros((), device=tokens.device))
            passes = torch.split(chosen, self.rows_at_once)
            for number, part in enumerate(passes):
                one = part.tolist()
                with self._adding_up(model, last=number == len(passes) - 1):
                    with self.compute_loss_context_manager():
                        loss = self.compute_loss(model, {**rollout.answers.inputs(one), "rollout": rollout,
                                                         "chosen": one, "tokens": tokens})
                    self._check(loss, [rollout.answers.ids[row] for row in one])
                    self.accelerator.backward(loss, **({"scale_wrt_gas": False} if is_shared_out(self) else {}))
                losses[-1] += loss.detach()
            for weight in self.head.parameters():  # which no wrapper shares out
                weight.grad = self.accelerator.reduce(weight.grad, "mean")
            if index < len(updates) - 1:
                self.head_optimizer.step()
                if self.args.max_grad_norm > 0 and not is_shared_out(self):
                    self._clip_grad_norm(model)
                self.optimizer.step()
        self._log_later(dict(zip(WATCHED, self._sums / len(updates), strict=True)))
        return torch.stack(losses).mean()

    def _adding_up(self, model: Any, *, last: bool) -> AbstractContextManager[None]:
        """A pass whose gradients are added to those of the passes before it; those of the last one are shared among the
        workers, by DeepSpeed with the optimizer's step, as it clips and steps at the end of a backward pass."""
        if is_shared_out(self):
            self.accelerator.gradient_state._set_sync_gradients(last)
            return nullcontext()
        return nullcontext() if last else self.accelerator.no_sync(model)

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

    def _check(self, loss: Tensor, rows: list[str]) -> None:
        if not bool(loss.isfinite()):
            step = self.state.global_step + 1
            raise first_to_fail(step, StageError(
                "the loss is not finite", found=float(loss.detach()), where=f"step {step}, rows {rows}",
                hint="lower the learning rate, or look at these rows"))

    def _order(self, count: int, epoch: int) -> Tensor:
        """A shuffle of the answers, the same in a resumed run, [count]."""
        seed = (self.args.seed * 1_000_003 + self.state.global_step) * 1_009 + epoch
        return torch.randperm(count, generator=torch.Generator().manual_seed(seed % 2**63))

    # --- what models say ----------------------------------------------------------------------------------------

    def _answers(self, records: list[Record], prompts: list[list[int]]) -> Answers:
        """An answer to each prompt, drawn from the run's seed, the step and the row's id alone."""
        sampling = Sampling(temperature=self.stage.temperature, max_new_tokens=self.max_new_tokens)
        wanted = [draws(record.id, self.seed, 1, sampling, model=f"step {self.state.global_step}")
                  for record in records]
        ids = [record.id for record in records]
        try:
            with self._engine() as engine:
                said = [one for (one,) in engine.continued(prompts, wanted, log_probs=True)]
        except ModelError as error:
            raise StageError(f"the policy cannot answer: {error.problem}", found=error.found, hint=error.hint,
                             where=f"step {self.state.global_step + 1}, rows {ids}") from error
        return Answers.of(ids, prompts, said, self.accelerator.device)

    def _said(self, model: Any, answers: Answers) -> Said:
        with self._arithmetic():
            return said_of(model, self.head, answers, self.rows_at_once, self.stage.temperature)

    def _reference(self, bare: Any, answers: Answers) -> Tensor:
        """Log-probabilities of the answers under the start model, [B, T]."""
        if self.ref_model is not None:
            return self._said(self.ref_model, answers).log_probs
        with use_adapter(bare, "ref"):
            return self._said(bare, answers).log_probs

    # --- what is logged -----------------------------------------------------------------------------------------

    def _note(self, answers: Answers, judged: Judged, rewards: Tensor, kl: Tensor, own: Said) -> None:
        """The step's numbers, means over all workers; the first step's KL is held to 0."""
        mask, spread = answers.mask, (own.log_probs - answers.sampled).abs()
        means = {
            "reward": rewards.mean(), "kl": self._of_tokens(kl, mask),
            "entropy": self._of_tokens(own.entropy, mask), "completions/mean_length": mask.sum(-1).mean(),
            "completions/clipped_ratio": 1 - answers.finished.float().mean(),
            "sampling/logp_difference": self._of_tokens(spread, mask),
            **{f"rewards/{name}/mean": torch.tensor(part, device=mask.device).mean()
               for name, part in judged.parts.items()},
        }
        every = self.accelerator.gather(rewards)
        self._log_later({**means, "reward_std": every.std(correction=min(1, len(every) - 1))})
        if self.state.global_step == 0:  # by size: what differs both ways must not cancel out
            apart = self.accelerator.reduce(self._of_tokens(kl.abs(), mask), "mean")
            prove_start(float(apart), f"{self.gate.where}, step 0", NO_KL)

    def _of_tokens(self, values: Tensor, mask: Tensor) -> Tensor:
        """This worker's part of the mean over the tokens of all, [], of which the mean over workers is that: they may
        have answers of different lengths."""
        share: Tensor = (values * mask).sum() * self.args.world_size / self._over_all(mask.sum())
        return share

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

    # --- what transformers asks ---------------------------------------------------------------------------------

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["prompt", "record"]

    def create_optimizer(self, model: Any = None) -> Any:
        """The policy's, and AdamW for the value head alone: DeepSpeed steps what is the model's, and nothing beside."""
        args = self.args
        self.head_optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=self.stage.value_learning_rate, betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon, weight_decay=0.0, fused=True)
        return super().create_optimizer(model)

    def _set_rate_of_head(self) -> None:
        """Its own learning rate, under the policy's schedule."""
        schedule: Any = self.lr_scheduler
        now = schedule.lr_lambdas[0](schedule.last_epoch)
        for group in self.head_optimizer.param_groups:
            group["lr"] = self.stage.value_learning_rate * now

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
            save_file(self.head.state_dict(), folder / FILE)
            torch.save(self.head_optimizer.state_dict(), folder / OPTIMIZER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:  # not with the weights, which DeepSpeed loads by itself
            self.head.take_up(Path(checkpoint, FILE), self.gate.where)
            if not (kept := Path(checkpoint, OPTIMIZER)).exists():
                raise StageError(
                    "a checkpoint is without the optimizer of its value head, as those of earlier versions are",
                    where=self.gate.where, found=checkpoint, expected=f"{OPTIMIZER} in it",
                    hint=f"rm -r {Path(checkpoint).parent}, then run again: the stage begins anew")
            self.head_optimizer.load_state_dict(torch.load(kept, weights_only=True))

    def _over_all(self, sums: Tensor) -> Tensor:
        return self.accelerator.reduce(sums, "sum")  # type: ignore[no-any-return]


def _as_they_are(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return examples
