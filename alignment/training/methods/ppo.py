"""Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347); the reference is the start model.

The trainer is ours (training/ppo.py), as TRL has none since 1.13.
"""

from __future__ import annotations

from typing import Any

from trl.trainer.base_config import _BaseConfig

from alignment.artifacts import Artifact
from alignment.config.stages.online import Ppo
from alignment.context import StageContext
from alignment.training import online
from alignment.training.guards import Guarded
from alignment.training.methods import Method, own_logits
from alignment.training.ppo import PpoTrainer


class GuardedPpo(Guarded, PpoTrainer):  # type: ignore[misc]
    """Our PPO trainer."""

    def tokens_of(self, inputs: Any) -> int:
        return 0  # counted where they are drawn


def arguments(stage: Ppo) -> dict[str, Any]:
    """Held-out prompts are answered before the first step too; what PPO has of its own it reads from the stage."""
    return {"eval_on_start": stage.eval_rows is not None}


def extras(context: StageContext) -> dict[str, Any]:
    """The stage, beside its reward, gate and seed."""
    return {**online.extras(context), "stage": context.stage_as(Ppo)}


def facts(stage: Ppo, trainer: Any, start: Artifact) -> dict[str, Any]:
    """Which reference, and how it was had."""
    how = "frozen copy of the start adapter" if trainer.ref_model is None else "frozen copy of the start weights"
    return {"reference": {"artifact": start.key, "how": how}}


METHOD = Method(GuardedPpo, _BaseConfig, online.columns, arguments, (*online.FINAL, "value_loss"), facts, extras=extras,
                best=("reward", True), prove=own_logits)
