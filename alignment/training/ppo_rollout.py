"""What PPO looks at: answers of the policy to prompts, and what a model says of each of their tokens.

Answers are drawn by the decode loop that sampling uses, from the row's id and the step alone, so they depend neither on
the batch nor on the number of workers, and a resumed stage draws the same. Knows no rewards and no losses.

Shapes: B answers, P tokens of the longest prompt, T of the longest answer (its stop token included), H hidden, V
vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alignment.inference.engine import Engine, left_padded, positions
from alignment.inference.requests import Completion, Draw
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


class Said(NamedTuple):
    """What a model says of answers: log-probabilities, values and (without a gradient) entropies, each [B, T]."""

    log_probs: Tensor
    values: Tensor
    entropy: Tensor


@dataclass
class Answers:
    """Prompts with one answer each.

    Attributes:
        rows: numbers of the rows that they answer.
        tokens: [B, T] ids of the answers, stop tokens included, 0 where they have ended.
        mask: [B, T], 1 where an answer has a token.
        finished: [B], whether it ended by a stop token.
        sampled: [B, T] log-probabilities as they were when drawn.
    """

    rows: list[int]
    prompts: list[list[int]]
    completions: list[Completion]
    tokens: Tensor
    mask: Tensor
    finished: Tensor
    sampled: Tensor

    @property
    def texts(self) -> list[str]:
        return [completion.text for completion in self.completions]

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


def answered(
    model: Any, tokenizer: Any, rows: list[int], prompts: list[list[int]], draws: list[Draw]
) -> Answers:
    """The model's answers, one to each prompt.

    Args:
        model: without wrappers, in eval mode; an adapter stands on it as it is.
        prompts: token ids of each.

    Raises:
        ModelError: it gives logits that are not finite.
    """
    made = Engine(model, tokenizer).continued(prompts, [(draw,) for draw in draws], log_probs=True)
    completions = [one for (one,) in made]
    device = model.device
    said = [[*one.ids, *([one.stop] if one.stop is not None else [])] for one in completions]
    width = max(map(len, said))
    return Answers(
        rows, prompts, completions,
        tokens=torch.tensor([ids + [0] * (width - len(ids)) for ids in said], device=device),
        mask=torch.tensor([[1.0] * len(ids) + [0.0] * (width - len(ids)) for ids in said], device=device),
        finished=torch.tensor([one.finished for one in completions], device=device),
        sampled=torch.tensor([[*(one.log_probs or ()), *[0.0] * (width - len(ids))]
                              for one, ids in zip(completions, said, strict=True)], device=device),
    )


def draw(seed: int, when: str, row: str, temperature: float, max_new_tokens: int) -> Draw:
    """How the answer to one row is drawn, from the run's seed, the occasion and the row's id."""
    return Draw(temperature=temperature, max_new_tokens=max_new_tokens,
                seed=random.Random(f"{seed}/ppo/{when}/{row}").getrandbits(62))


def said_by(model: Any, bare: Any, head: ValueHead, inputs: dict[str, Tensor], width: int, temperature: float) -> Said:
    """What the model says of the last `width` tokens of each row of `inputs`.

    Args:
        model: as it is called, perhaps wrapped for several workers.
        bare: the same without wrappers, whose output head is looked at.
    """
    with _hidden(bare) as seen:
        logits = model(**inputs, use_cache=False, logits_to_keep=width + 1).logits[:, -width - 1:-1]
    log_probs = token_log_probs(logits, inputs["input_ids"][:, -width:], temperature)
    with torch.no_grad():
        spread = entropy(logits, temperature)
    return Said(log_probs, head(seen[0][:, -width - 1:-1]), spread)


@contextmanager
def _hidden(model: Any) -> Iterator[list[Tensor]]:
    """The last hidden states, as the output head gets them; models keep those of every layer when asked for one."""
    seen: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        hook.remove()
