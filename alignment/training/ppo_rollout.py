"""What PPO looks at: answers as tensors, what a model and the value head say of each token, the frozen start model.

Draws no answers; knows no rewards and no losses.

Shapes: B answers, P tokens of the longest prompt, T of the longest answer (its stop token included), H hidden, V
vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from alignment.errors import StageError
from alignment.inference.engine import left_padded, positions
from alignment.inference.requests import Completion
from alignment.training.ppo_loss import entropy, token_log_probs


class ValueHead(torch.nn.Module):
    """What is still to be earned, from the policy's last hidden states: [B, T, H] -> [B, T], in float32.

    One layer on the policy's own backbone, so that a critic costs no second model: H + 1 parameters beside adapters and
    beside full weights alike. States are taken as they are, without a gradient into the backbone: what the policy
    learns comes from the surrogate alone, and a critic that is still wrong can blur advantages but not the policy's
    weights. They are normalised and scaled by 1 / sqrt(H), so that one learning rate fits models of all sizes; it
    begins at 0.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.score = torch.nn.Linear(hidden, 1)
        torch.nn.init.zeros_(self.score.weight)
        torch.nn.init.zeros_(self.score.bias)

    def forward(self, states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            states = torch.nn.functional.layer_norm(states.detach().float(), states.shape[-1:])
            return self.score(states / states.shape[-1] ** 0.5).squeeze(-1)  # type: ignore[no-any-return]

    def take_up(self, file: Path, where: str) -> None:
        """Go on from a checkpoint's head. Raises StageError where it is gone, damaged or of another policy."""
        found: object = "no such file"
        try:
            kept = load_file(file) if file.exists() else {}
            found = {name: list(value.shape) for name, value in kept.items()} or found
            self.load_state_dict(kept)
        except (SafetensorError, RuntimeError) as error:
            raise StageError(
                f"the value head of a checkpoint does not fit the policy: {file}", where=where,
                found=str(error) if isinstance(error, SafetensorError) else found,
                expected=str({name: list(value.shape) for name, value in self.state_dict().items()}),
                hint=f"rm -r {file.parent}, then run again: it goes on from the checkpoint before") from error


class Said(NamedTuple):
    """What a model says of answers: log-probabilities, values and entropies (0 where a gradient is asked for), each
    [B, T]."""

    log_probs: Tensor
    values: Tensor
    entropy: Tensor


@dataclass
class Answers:
    """Prompts with one answer each.

    Attributes:
        ids: of the rows that they answer.
        tokens: [B, T] ids of the answers, stop tokens included, 0 where they have ended.
        mask: [B, T], 1 where an answer has a token.
        finished: [B], whether it ended by a stop token.
        sampled: [B, T] log-probabilities as they were when drawn.
    """

    ids: list[str]
    prompts: list[list[int]]
    completions: list[Completion]
    tokens: Tensor
    mask: Tensor
    finished: Tensor
    sampled: Tensor

    @classmethod
    def of(
        cls, ids: list[str], prompts: list[list[int]], completions: list[Completion], device: torch.device
    ) -> Answers:
        """Completions, which say how likely their tokens were, as tensors."""
        width = max(len(one.tokens) for one in completions)

        def padded(rows: list[list[Any]], filled: float) -> Tensor:
            return torch.tensor([row + [filled] * (width - len(row)) for row in rows], device=device)

        return cls(ids, prompts, completions, tokens=padded([one.tokens for one in completions], 0),
                   mask=padded([[1.0] * len(one.tokens) for one in completions], 0.0),
                   finished=torch.tensor([one.finished for one in completions], device=device),
                   sampled=padded([list(one.log_probs or ()) for one in completions], 0.0))

    def width(self, chosen: list[int]) -> int:
        """Tokens of the longest of some answers."""
        return int(self.mask[chosen].sum(-1).max())

    def inputs(self, chosen: list[int]) -> dict[str, Tensor]:
        """Model inputs of some answers, prompts padded at the left and answers at the right: [B, P + T] of these."""
        width = self.width(chosen)
        ids, attention = left_padded([self.prompts[i] for i in chosen], self.mask.device)
        attention = torch.cat([attention, self.mask[chosen, :width].long()], 1)
        return {"input_ids": torch.cat([ids, self.tokens[chosen, :width]], 1), "attention_mask": attention,
                "position_ids": positions(attention)}


@dataclass
class Rollout:
    """Answers and what is to be learned of them: old log-probabilities, old values, advantages, returns, all [B, T]."""

    answers: Answers
    old: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


def said_by(model: Any, bare: Any, head: ValueHead, inputs: dict[str, Tensor], width: int, temperature: float) -> Said:
    """What the model says of the last `width` tokens of each row of `inputs`.

    Args:
        model: as it is called, perhaps wrapped for several workers.
        bare: the same without wrappers, whose output head is looked at.
    """
    with _hidden(bare) as seen:
        logits = model(**inputs, use_cache=False, logits_to_keep=width + 1).logits[:, -width - 1:-1]
    log_probs = token_log_probs(logits, inputs["input_ids"][:, -width:], temperature)
    # Four times the logits are held either way: here, or with what a gradient needs.
    spread = torch.zeros_like(log_probs) if torch.is_grad_enabled() else entropy(logits, temperature)
    return Said(log_probs, head(seen[0][:, -width - 1:-1]), spread)


@torch.no_grad()
def said_of(model: Any, head: ValueHead, answers: Answers, at_once: int, temperature: float) -> Said:
    """What a bare model says of answers, so many rows at a time, without gradients; [B, T] each, 0 at padding."""
    made = [torch.zeros_like(answers.mask) for _ in Said._fields]
    for start in range(0, len(answers.ids), at_once):
        chosen = list(range(start, min(start + at_once, len(answers.ids))))
        width = answers.width(chosen)
        said = said_by(model, model, head, answers.inputs(chosen), width, temperature)
        for whole, part in zip(made, said, strict=True):
            whole[chosen, :width] = part.masked_fill(answers.mask[chosen, :width] == 0, 0.0)
    return Said(*made)


@contextmanager
def _hidden(model: Any) -> Iterator[list[Tensor]]:
    """The last hidden states, as the output head gets them; models keep those of every layer when asked for one."""
    seen: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        hook.remove()


def frozen_copy(model: Any) -> Any:
    """The start model, as the reference: a copy, or none for an adapter, which gets a frozen twin called `ref`."""
    if not isinstance(model, PeftModel):
        return copy.deepcopy(model).eval().requires_grad_(False)
    model.add_adapter("ref", model.peft_config["default"])
    set_peft_model_state_dict(model, get_peft_model_state_dict(model, adapter_name="default"), adapter_name="ref")
    return None


def without_dropout(model: Any) -> None:
    """The policy that learns is the one that answered. (A strategy's own dropout is refused by the config.)"""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
