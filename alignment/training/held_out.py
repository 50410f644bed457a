"""Online methods' evaluation: held-out prompts answered greedily, judged, and compared with the start prompt by prompt.

The start's rewards stand in the trainer's history, which travels in checkpoints, so that a resumed stage compares with
the same. Also how the policy answers while it trains, for evaluations
and steps alike. Does not judge: the trainer's reward does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from trl.models.utils import unwrap_model_for_generation

from alignment.inference.engine import Engine
from alignment.inference.requests import Completion, Draw
from alignment.records import Record
from alignment.rewards import Judged, RewardSum

HELD_OUT = "held_out"
"""Key of the line of a trainer's history with the rewards of the start on eval_rows; it travels in checkpoints."""
_NORMAL = 1.96


class HeldOut:
    """Mixin before a trainer that has `reward`, and sizes of answers and batches."""

    args: Any
    model: Any
    model_wrapped: Any
    processing_class: Any
    state: Any
    control: Any
    accelerator: Any
    autocast: torch.dtype | None
    reward: RewardSum
    max_new_tokens: int
    answers_at_once: int
    """On this worker."""

    def _arithmetic(self) -> AbstractContextManager[None]:
        """That of the forward passes which are learned from: accelerate leaves DeepSpeed's to it."""
        if self.autocast is None:
            return self.accelerator.autocast()  # type: ignore[no-any-return]
        return torch.autocast(self.args.device.type, self.autocast)

    @contextmanager
    def _engine(self) -> Iterator[Engine]:
        """The policy as it is now, to answer with. Where its weights are shared out, all ranks come here together: each
        has all of them until it leaves, and answers at its own pace."""
        training = self.model.training
        with unwrap_model_for_generation(
            self.model_wrapped, self.accelerator,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        ) as policy:
            policy.eval()
            whole = policy.get_base_model() if isinstance(policy, PeftModel) else policy
            try:
                with self._arithmetic():
                    yield Engine(whole, self.processing_class)
            finally:
                self.model.train(training)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> Any:
        if skip_scheduler and self.state.global_step:  # before the first step, and not again after a resume
            return {}
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)  # type: ignore[misc]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Every held-out prompt answered once, greedily, and judged.

        Returns:
            eval_reward with its 95% interval (normal, over prompts), its gain over the start (paired by prompt), and
            the means of parts, lengths and cut answers.
        """
        rows: Any = self.eval_dataset  # type: ignore[attr-defined]
        own = list(range(self.accelerator.process_index, len(rows), self.accelerator.num_processes))
        found = [rows[index] for index in own]
        records = [Record.from_json(row["record"]) for row in found]
        greedy = Draw(temperature=0.0, max_new_tokens=self.max_new_tokens)
        said: list[Completion] = []
        with self._engine() as engine:
            for start in range(0, len(found), self.answers_at_once):
                prompts = [row["prompt"] for row in found[start:start + self.answers_at_once]]
                said += [one for (one,) in engine.continued(prompts, [(greedy,)] * len(prompts))]
        judged = self.reward.judge(records, [one.text for one in said])
        metrics = self._held_out(gather_object(list(_lines(own, said, judged))))
        training = self.model.training
        self.model.eval()  # TRL reads from it what the line is about
        self.log(dict(metrics))  # type: ignore[attr-defined]
        self.model.train(training)
        self.control = self.callback_handler.on_evaluate(  # type: ignore[attr-defined]
            self.args, self.state, self.control, metrics)
        return metrics

    def _held_out(self, lines: list[tuple[int, float, dict[str, float], int, bool]]) -> dict[str, float]:
        lines.sort(key=lambda line: line[0])
        rewards = [reward for _, reward, *_ in lines]
        at_start = next((entry[HELD_OUT] for entry in self.state.log_history if HELD_OUT in entry), None)
        if at_start is None:
            self.state.log_history.append({"step": self.state.global_step, HELD_OUT: rewards})
            at_start = rewards
        return {
            **_interval("eval_reward", rewards),
            **_interval("eval_reward_gain", [now - then for now, then in zip(rewards, at_start, strict=True)]),
            **{f"eval_rewards/{name}/mean": _mean([parts[name] for _, _, parts, *_ in lines])
               for name in self.reward.weights},
            "eval_completions/mean_length": _mean([float(length) for *_, length, _ in lines]),
            "eval_completions/clipped_ratio": _mean([float(not finished) for *_, finished in lines]),
        }


def _lines(own: Sequence[int], said: Sequence[Completion], judged: Judged) -> Iterator[
        tuple[int, float, dict[str, float], int, bool]]:
    """(row, reward, its parts, tokens, whether it ended) of each answer."""
    for place, (row, one) in enumerate(zip(own, said, strict=True)):
        parts: Mapping[str, list[float]] = judged.parts
        yield (row, judged.total[place], {name: values[place] for name, values in parts.items()}, len(one.tokens),
               one.finished)


def _interval(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean and the ends of its 95% interval."""
    mean = _mean(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1) / len(values))
    return {name: mean, f"{name}_low": mean - _NORMAL * spread, f"{name}_high": mean + _NORMAL * spread}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
