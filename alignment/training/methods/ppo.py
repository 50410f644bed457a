"""Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347); the reference is the start model.

Prompts alone are read; answers are the policy's own. The trainer is ours (training/ppo.py), as TRL has none since 1.13.
"""

from __future__ import annotations

from typing import Any

from trl.trainer.base_config import _BaseConfig

from alignment import templates
from alignment.artifacts import Artifact
from alignment.config.stages.online import Ppo
from alignment.context import StageContext
from alignment.data.projections import to_prompt
from alignment.inference.generator import open_scorer
from alignment.records import Record
from alignment.rewards.parts import Judge, RewardSum
from alignment.training.guards import Guarded
from alignment.training.methods import Method
from alignment.training.ppo import PpoTrainer
from alignment.training.prepare import Columns, Prepared, cut_prompt


class GuardedPpo(Guarded, PpoTrainer):
    """Our PPO trainer."""


def columns(record: Record, tokenizer: Any, stage: Ppo, prepared: Prepared) -> Columns | str:
    """prompt_ids, [P], and the record's number; room for an answer of max_new_tokens is left within max_length."""
    prompt = to_prompt(record)
    if isinstance(prompt, str):
        return prompt
    ids = cut_prompt(templates.encode_prompt(tokenizer, prompt), stage.max_new_tokens, stage, prepared)
    prepared.supervised += stage.max_new_tokens  # at most
    prepared.lengths.append(len(ids) + stage.max_new_tokens)
    return {"prompt_ids": ids, "number": len(prepared.records)}


def arguments(stage: Ppo) -> dict[str, Any]:
    """Nothing: what PPO has of its own the trainer gets as the stage."""
    return {}


def extras(context: StageContext, prepared: Prepared, held: Prepared | None) -> dict[str, Any]:
    """The stage, its reward, and the records that answers are judged by."""
    stage = context.stage_as(Ppo)
    models = {name: _judge(context, part.model) for name, part in stage.reward.parts.items() if part.model is not None}
    return {"stage": stage, "reward": RewardSum(stage.reward, models, f"stage {stage.name}"),
            "records": prepared.records, "held": held.records if held else ()}


def _judge(context: StageContext, model: str) -> Judge:
    scorer = open_scorer(context, model)
    return lambda records, answers: scorer.score([(record.prompt, answer) for record, answer in
                                                  zip(records, answers, strict=True)])


def facts(stage: Ppo, trainer: Any, start: Artifact) -> dict[str, Any]:
    """Which reference, and how it was had."""
    how = "frozen copy of the start adapter" if stage.adapter is not None else "frozen copy of the start model"
    return {"reference": {"artifact": start.key, "how": how}}


METHOD = Method(GuardedPpo, _BaseConfig, columns, arguments, (
    "loss", "reward", "kl", "entropy", "value_loss", "completions/mean_length"), facts, extras, fused=False)
