"""Before the first step: what TRL learns from is what the model says.

TRL multiplies hidden states by the output head's weight itself, a piece at a time, and applies the scales and caps that
it knows. A model with one that it does not know would be trained on another loss than it is measured by, unsaid.
"""

from __future__ import annotations

from typing import Any

import torch

from alignment.errors import ModelError

TOKENS = 64
"""Of the first row, that are compared."""
NEAR = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""Mean difference of log-probabilities that rounding explains, in nats. A head without its scale or cap is far off."""


def prove_loss(trainer: Any, dtype: torch.dtype, where: str) -> None:
    """Compare TRL's log-probabilities of the first row with those of the model's own logits.

    Args:
        dtype: of the frozen weights.

    Raises:
        ModelError: they differ: TRL does not know how this architecture gets from hidden states to logits.
    """
    row = trainer.train_dataset[0]
    given = row.get("input_ids") or row.get("prompt") or [
        *row["prompt_ids"], *(row.get("chosen_ids") or row["completion_ids"])]
    model, was_training = trainer.model, trainer.model.training
    ids = torch.tensor([given[:TOKENS]], device=next(model.parameters()).device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        learned = model(**inputs, labels=ids, fused_lm_head=True).log_probs.float()
        logits = model(**inputs).logits[:, :-1].float() / getattr(trainer, "temperature", 1.0)
        said = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    model.train(was_training)
    apart = float((learned - said).abs().mean())
    if not apart <= NEAR[dtype]:
        raise ModelError(
            "the loss that would be learned from is not the model's own: TRL does not know how this architecture gets "
            "from its last hidden states to logits", where=where,
            found=f"{model.config.model_type}: log-probabilities {apart:.3g} nats apart",
            expected=f"at most {NEAR[dtype]:g}", hint="another base model")
