"""How a method trains: one file each, named as in the run file, with one METHOD.

Losses and the loop are TRL's; a method says which trainer, which columns it gets, and what is kept of the end. It does
not load models, save, resume or count rows: `fit` does, for all methods alike.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from alignment.artifacts import Artifact
from alignment.config import TrainBase
from alignment.context import StageContext
from alignment.training.prepare import MakesColumns
from alignment.training.proof import prove_loss


def no_facts(stage: Any, trainer: Any, start: Artifact) -> dict[str, Any]:
    """Nothing beyond what every method has."""
    return {}


def no_extras(context: StageContext) -> dict[str, Any]:
    """Nothing beyond what every trainer gets."""
    return {}


def own_logits(trainer: Any, dtype: Any, where: str) -> None:
    """Nothing to prove: the loss is taken from the model's own logits."""


@dataclass(frozen=True)
class Method:
    """What differs between methods; everything else is shared.

    Attributes:
        trainer: TRL's trainer class with our guards.
        config: TRL's config class for it.
        columns: (record, tokenizer, stage, prepared) -> the steps (`alignment.templates.steps`) to token columns of a
            row or of several, or to why the record cannot serve; counts supervised tokens and lengths in `prepared`,
            after its texts are encoded: many rows' are in one batch.
        arguments: stage -> TRL arguments that follow from the stage's own keys.
        facts: (stage, trainer, start, or the artifact of the stage's `frozen` model) -> what else the manifest should
            say, after training.
        final_metrics: keys of the last evaluation (and training log) that go into the manifest's metrics.
        frozen_as: the trainer's argument for the stage's `frozen` model.
        prove: (trainer, dtype of the frozen weights, where) raises where what is learned from is not the model's own;
            of policies, before the first step.
        extras: context -> what its trainer is made with beyond what every trainer gets.
        best: of an evaluation the key that `checkpoints.final: best` goes by, and whether more of it is better.
    """

    trainer: type[Any]
    config: type[Any]
    columns: MakesColumns
    arguments: Callable[[Any], dict[str, Any]]
    final_metrics: tuple[str, ...]
    facts: Callable[[Any, Any, Artifact], dict[str, Any]] = no_facts
    frozen_as: str = "ref_model"
    prove: Callable[[Any, Any, str], None] = prove_loss
    extras: Callable[[StageContext], dict[str, Any]] = no_extras
    best: tuple[str, bool] = ("loss", False)


def method_of(stage: TrainBase) -> Method:
    """The METHOD of a stage's method, from the file of its name."""
    method: Method = importlib.import_module(f"{__name__}.{stage.method}").METHOD
    return method
