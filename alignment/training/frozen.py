"""A second model beside the one that is trained: a reference of another stage, or a teacher. Never changed or saved.

Held to the same ids: log-probabilities of two models compare only where both read and spell the same tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel

from alignment.artifacts import Artifact
from alignment.config import TrainBase
from alignment.errors import ModelError
from alignment.inference.info import template_of
from alignment.inference.loading import load_policy, load_tokenizer


def load_frozen(stage: TrainBase, start: Artifact, frozen: Artifact, dtype: torch.dtype) -> Any:
    """The model, with its adapter (if it has one) on, as the trained one computes: frozen weights in `dtype`, adapters
    in float32; a reference of a full training is in float32 as that is.

    Raises:
        ModelError: its tokenizer or chat template is not that of the start model.
    """
    assert stage.frozen is not None
    check_same_tokens(start, frozen, f"stage {stage.name}, {stage.frozen.place[0]}")
    model = load_policy(frozen, dtype=torch.float32 if stage.frozen_in_float32 else dtype, device="cpu", merge=False)
    # TRL takes a plain model here; the layers of an adapter stay in it.
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    return model.requires_grad_(False).eval()


def check_same_tokens(start: Artifact, frozen: Artifact, where: str) -> None:
    """Raise ModelError unless both models have the same ids for the same text."""
    one, other = template_of(start), template_of(frozen)
    if one["hash"] != other["hash"]:
        raise ModelError("the two models have different chat templates, so they read different tokens", where=where,
                         found=f"template {other['name']}", expected=f"template {one['name']}, as `model` has",
                         hint="import both with the same `template`")
    vocabularies = [load_tokenizer(artifact.path() / "model", side="right").get_vocab() for artifact in (start, frozen)]
    if vocabularies[0] != vocabularies[1]:
        odd = sorted(token for token in vocabularies[0].keys() | vocabularies[1].keys()
                     if vocabularies[0].get(token) != vocabularies[1].get(token))
        raise ModelError("the two models have different vocabularies, so the same id is another token", where=where,
                         found=f"{len(odd)} tokens apart, such as {odd[0]!r}", expected="the vocabulary of `model`")
