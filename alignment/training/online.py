"""What online methods share: prompts as columns, the reward of a stage, and TRL's group trainers under our engine.

TRL's losses, advantages and batches stay; what they are fed is ours. Prompts are ids of `templates`, answers come from
`inference.engine` with the stops that serving uses, each drawn with a number of its own (seed, step, row, index), so
that a resumed run draws what an uninterrupted one would have; rewards read the answer as it is decoded everywhere. The
reference is the stage's start: a frozen copy of its adapter, or of its weights. (TRL would load what the model's config
names: the base, where the start was merged from an adapter.) Does not place models or choose batches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from peft import PeftModel
from trl.trainer.utils import RepeatSampler, add_fused_lm_head

from alignment import templates
from alignment.artifacts import Artifact
from alignment.config import Sampling
from alignment.config.stages.online import Online
from alignment.context import StageContext
from alignment.data.projections import to_prompt
from alignment.errors import DataError
from alignment.inference.draws import draws
from alignment.inference.generator import Scorer, open_scorer
from alignment.inference.requests import Draw
from alignment.records import Record
from alignment.rewards import Judge, RewardSum, lacking
from alignment.templates import Encoding
from alignment.training.gates import LOGGED, Gate, prove_start
from alignment.training.guards import Guarded
from alignment.training.held_out import HeldOut
from alignment.training.prepare import Columns, Prepared, cut_prompt
from alignment.training.sharding import beside, still_whole

FINAL = ("loss", "reward", "reward_low", "reward_high", "reward_gain", "reward_gain_low", "reward_gain_high", "kl",
         "entropy", "completions/mean_length")
"""Keys that go into the manifest."""


def columns(record: Record, tokenizer: Any, stage: Online, prepared: Prepared) -> Encoding[Columns | str]:
    """prompt, its ids [T], and the record as JSON, for functions that judge answers to it."""
    asked = to_prompt(record)
    if isinstance(asked, str):
        return asked
    for function in stage.functions:
        if lacks := lacking(function, asked):
            return f"no {', '.join(lacks)}, which {function} needs"
    ids = yield from templates.prompting(tokenizer, asked.prompt)
    prompt = cut_prompt(ids, stage.max_new_tokens, stage, prepared)
    if len(prompt) < 2:
        return "a prompt of less than two tokens"
    prepared.supervised += stage.max_new_tokens * stage.num_generations
    prepared.lengths.append(len(prompt) + stage.max_new_tokens)
    return {"prompt": prompt, "record": asked.to_json()}


def reward_of(context: StageContext, stage: Online) -> RewardSum:
    """The stage's reward; its models are loaded when they are first asked, and stay.

    Raises:
        ConfigError: a function cannot be found, an endpoint's key is not set.
    """
    models = {name: _judged_by(open_scorer(context, part.model))
              for name, part in stage.reward.parts.items() if part.model is not None}
    return RewardSum(stage.reward, models, f"stage {stage.name}")


def _judged_by(scorer: Scorer) -> Judge:
    def judge(records: Sequence[Record], answers: Sequence[str]) -> list[float]:
        with still_whole():  # the model is loaded here, at first
            return scorer.score([(record.prompt, answer) for record, answer in zip(records, answers, strict=True)])

    return judge


def arguments(stage: Online) -> dict[str, Any]:
    """The stage's keys under TRL's names. Held-out prompts are answered before the first step too."""
    return {
        "num_generations": stage.num_generations, "num_generations_eval": 1, "temperature": stage.temperature,
        "max_completion_length": stage.max_new_tokens, "eval_on_start": stage.eval_rows is not None,
        "reward_weights": [part.weight for part in stage.reward.parts.values()],
    }


def extras(context: StageContext) -> dict[str, Any]:
    """What the trainers below are made with, beside what every trainer is."""
    stage = context.stage_as(Online)
    return {"reward": reward_of(context, stage), "gate": Gate(stage.gates, f"stage {stage.name}"),
            "seed": context.run.seed}


def facts(stage: Online, trainer: Any, start: Artifact) -> dict[str, Any]:
    """Which reference, and how it is had."""
    if not stage.beta:
        return {"reference": {"artifact": None, "how": "none, as beta is 0"}}
    how = "frozen copy of the start weights" if trainer.ref_model is not None else "frozen copy of the start adapter"
    return {"reference": {"artifact": start.key, "how": how}, "beta": stage.beta}


class OnlineTrainer(HeldOut, Guarded):
    """Mixin before TRL's GRPO and RLOO trainers.

    Args:
        reward: what judges answers.
        gate: asked of every log line.
        seed: the run's.
        args: TRL's config of the method.
    """

    args: Any
    model: Any
    state: Any
    control: Any
    accelerator: Any
    _metrics: dict[str, dict[str, list[float]]]

    def __init__(self, *, model: Any, args: Any, reward: RewardSum, gate: Gate, seed: int, **given: Any) -> None:
        self.reward, self.gate, self.seed, beta = reward, gate, seed, args.beta
        frozen = None if isinstance(model, PeftModel) or not beta else _frozen(model)
        if frozen is not None:
            args.beta = 0.0  # TRL would load a reference of its own
        super().__init__(model=model, args=args, reward_funcs=list(self._functions()), **given)  # type: ignore[call-arg]
        if frozen is not None:
            self.beta = args.beta = beta
            add_fused_lm_head(frozen, temperature=args.temperature)
            self.ref_model = beside(self, frozen)
        self.tokenizer = given["processing_class"]
        self.eos_token_ids = templates.stop_ids(self.tokenizer)
        self.max_new_tokens: int = args.max_completion_length
        self.answers_at_once = max(1, args.generation_batch_size // self.accelerator.num_processes)
        self.prompts_per_step: int = args.generation_batch_size // args.num_generations
        if len(given["train_dataset"]) < self.prompts_per_step:
            raise DataError("there are fewer prompts than one step asks", where=gate.where,
                            found=len(given["train_dataset"]), expected=f"{self.prompts_per_step} or more",
                            hint="lower batch_size, which counts answers, or raise num_generations")

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self.add_callback(self.gate)  # type: ignore[attr-defined]  # after the one that writes the line down
        return super().train(*args, **kwargs)  # type: ignore[misc]

    def rows_of_epoch(self) -> int:
        """Answers of one pass; what does not fill a step is left to the next one, which is shuffled anew."""
        rows: int = super().rows_of_epoch()
        return (rows // self.prompts_per_step) * self.prompts_per_step * int(self.args.num_generations)

    def tokens_of(self, inputs: Any) -> int:
        return 0  # counted where they are drawn

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return _Prompts(super()._get_train_sampler(dataset), self.seed,  # type: ignore[misc]
                        lambda: int(self.state.epoch or 0.0))

    # --- answers ---

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """They are ids already."""
        return prompts, None, {}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._asked = [Record.from_json(one["record"]) for one in inputs]
        made: dict[str, Any] = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        drawn = torch.zeros_like(made["completion_ids"], dtype=torch.float32)
        for row, values in zip(drawn, self._drawn, strict=True):
            row[:len(values)] = torch.tensor(values)
        self._drawn_at = self.state.global_step
        return made | {"drawn_logps": drawn}

    def _answers(self, prompts: list[list[int]]) -> list[list[int]]:
        """Ids of an answer to each of the prompts, its stop token last where there is one.

        A prompt stands in a row num_generations times, over all ranks together.
        """
        size, first = self.args.num_generations, self.accelerator.process_index * len(prompts)
        sampling = Sampling(temperature=self.args.temperature, max_new_tokens=self.args.max_completion_length)
        asked: list[list[int]] = []
        wanted: list[tuple[Draw, ...]] = []
        for _, group in groupby(range(len(prompts)), key=lambda index: (first + index) // size):
            own = list(group)
            every = draws(self._asked[own[0]].id, self.seed, size, sampling, model=f"step {self.state.global_step}")
            asked.append(prompts[own[0]])
            wanted.append(tuple(every[(first + index) % size] for index in own))
        with self._engine() as engine:
            said = [one for own in engine.continued(asked, wanted, log_probs=True) for one in own]
        self._drawn = [one.log_probs or () for one in said]
        ids = [one.tokens for one in said]
        self.tokens_here += sum(map(len, prompts)) + sum(map(len, ids))
        return ids

    def _functions(self) -> Iterator[Callable[..., list[float]]]:
        """One function per part, as TRL takes them: called after it, so that its curve is `rewards/PART/mean`."""
        for name in self.reward.weights:
            def judge(completion_ids: list[list[int]], *, part: str = name, **_: Any) -> list[float]:
                return self.reward.part(part, self._asked, [self._text(ids) for ids in completion_ids])

            judge.__name__ = name
            yield judge

    def _text(self, ids: list[int]) -> str:
        finished = bool(ids) and ids[-1] in self.eos_token_ids
        return templates.decode_answer(self.tokenizer, ids[:-1] if finished else ids, finished=finished)

    # --- what is learned is what was said ---

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        with self._arithmetic():  # TRL asks its reference past DeepSpeed's
            made = super()._get_per_token_logps_and_entropies(*args, **kwargs)  # type: ignore[misc]
        if kwargs.get("compute_entropy"):  # the pass that is learned from
            self._learned = made[0].detach()
        return made

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        loss: torch.Tensor = super()._compute_loss(model, inputs)  # type: ignore[misc]
        if self.state.global_step == self._drawn_at:  # else the policy has moved on since
            mask = inputs["completion_mask"]
            apart = ((self._learned - inputs["drawn_logps"]).abs() * mask).sum()
            total, count = self.accelerator.reduce(torch.stack([apart, mask.sum().float()]), reduction="sum")
            self._metrics["train"][LOGGED["mismatch"]].append(float(total / count.clamp(min=1.0)))
        if self.state.global_step == 0 and self._metrics["train"].get("kl"):
            prove_start(self._metrics["train"]["kl"][-1], f"{self.gate.where}, step 0")
        return loss


class _Prompts(RepeatSampler):  # type: ignore[misc]
    """TRL's order of prompts, drawn from seed and epoch: its own goes on from a generator that a resumed run begins
    anew.

    Args:
        epoch: passes that are over.
    """

    def __init__(self, of: RepeatSampler, seed: int, epoch: Callable[[], int]) -> None:
        super().__init__(of.data_source, of.mini_repeat_count, of.batch_size, of.repeat_count, of.shuffle, seed)
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed + 1_000_003 * self.epoch())
        yield from super().__iter__()


def _frozen(model: Any) -> Any:
    """A copy of full weights that nothing trains."""
    return copy.deepcopy(model).eval().requires_grad_(False)
