"""An exported form held against the model that was trained: KL, the likeliest tokens, greedy answers, on the same ids.

The trained model is the one that everything else of the run computes with: base, adapter beside it, four bits where it
was trained over four. Its log-probabilities are kept once, in host memory, and each form is compared with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from alignment import templates
from alignment.config import Export
from alignment.config.stages.export import ROWS, TOKENS
from alignment.context import StageContext
from alignment.errors import DataError, ModelError, StageError
from alignment.records import Message

POSITIONS = 2048
"""Positions of all rows, at most, whose log-probabilities over the vocabulary are kept."""
ANSWERS, ANSWER = 4, 16
"""Prompts that are answered greedily, and tokens of each answer."""
PROMPTS = (
    "What is the capital of France?", "Write one sentence about the sea.", "List three colours.",
    "Explain in two sentences why the sky is blue.", "Translate into German: Good morning, how are you?",
    "What is 17 + 25?", "Nenne drei Tiere, die im Wald leben.", "用一句话介绍长城。",
)
"""What is compared where no rows are named."""


@dataclass(frozen=True)
class Texts:
    """What is compared, as ids.

    Attributes:
        rows: whole conversations; prompts: what is answered greedily.
        source: STAGE/SPLIT, or `built-in prompts`; left_out: rows that the template or the tokens refuse.
    """

    rows: list[list[int]]
    prompts: list[list[int]]
    source: str
    left_out: int


@dataclass(frozen=True)
class Trained:
    """What the trained model says of the texts: of each row the positions looked at and their log-probabilities
    [positions, vocabulary] in float32; of each prompt its greedy answer."""

    texts: Texts
    places: list[list[int]]
    log_probs: list[torch.Tensor]
    answers: list[list[int]]


@dataclass(frozen=True)
class Compared:
    """A form against the trained model: mean KL(trained || form) in nats and share of equal likeliest tokens, over all
    positions; share of greedy tokens that are the same, up to the first that is not."""

    kl: float
    top1: float
    greedy: float
    positions: int

    def held_to(self, bounds: tuple[float, float], form: str, stage: Export) -> Compared:
        """Itself, where it keeps the bounds; raises StageError with the numbers where it does not."""
        most, least = bounds
        if not (self.kl <= most and self.top1 >= least):  # NaN fails
            raise StageError(
                f"{form} is not the model that was trained", where=f"stage {stage.name}",
                found=f"KL {self.kl:.3g} nats per token, top-1 agreement {self.top1:.4f}, greedy {self.greedy:.2f}, "
                      f"over {self.positions} positions",
                expected=f"KL at most {most:g}, top-1 agreement at least {least:g}",
                hint="merged into another base than it was trained over (merge_into), or stored too coarsely (weights)?"
                     " max_kl and min_top1 are the bounds")
        return self


def texts_of(context: StageContext, stage: Export, tokenizer: Any) -> Texts:
    """The ids to compare on. Raises DataError where no row can be read."""
    length = min(stage.max_tokens or TOKENS, context.inputs[stage.model].manifest.facts.get("context_length") or TOKENS)
    if stage.rows is None:
        chats: list[list[Message]] = [[{"role": "user", "content": text}] for text in PROMPTS]
        source = "built-in prompts"
    else:
        records = context.rows(stage.rows)
        count = min(context.run.scaled(stage.take) or ROWS, len(records))
        chosen = [records[index * len(records) // count] for index in range(count)]
        chats, source = [record.conversation() for record in chosen], stage.rows
    rows, prompts, reasons = [], [], []
    for turns in chats:
        try:
            prompt, whole = _encoded(tokenizer, turns)
        except (DataError, ModelError) as error:
            reasons.append(str(error.problem))
            continue
        rows.append(whole[:length])
        if len(prompt) + ANSWER <= length:
            prompts.append(prompt)
    if not rows:
        raise DataError("no row can be compared", where=f"stage {stage.name}, rows {stage.rows}", found=reasons[:3],
                        expected="rows that the model's template renders")
    return Texts(rows, prompts[:ANSWERS], source, len(reasons))


def _encoded(tokenizer: Any, turns: list[Message]) -> tuple[list[int], list[int]]:
    """Ids of the prompt, and of all turns."""
    last = turns[-1]
    if last["role"] == "assistant" and len(turns) > 1:
        prompt, said = templates.encode_completion(tokenizer, turns[:-1], last)
        return prompt, prompt + said
    ids = templates.encode_prompt(tokenizer, turns)
    return ids, ids


def measured(model: Any, texts: Texts, tokenizer: Any) -> Trained:
    """What the trained model says. Prompts without an answer are continued by its own, which is compared too."""
    answers = [_answer(model, prompt, tokenizer) for prompt in texts.prompts]
    rows = [row + answers[texts.prompts.index(row)] if row in texts.prompts else row for row in texts.rows]
    step = -(-sum(map(len, rows)) // POSITIONS)
    places = [list(range(len(row) - 1, -1, -step))[::-1] for row in rows]
    log_probs = [torch.log_softmax(_logits(model, row)[own].float(), -1).cpu()
                 for row, own in zip(rows, places, strict=True)]
    return Trained(Texts(rows, texts.prompts, texts.source, texts.left_out), places, log_probs, answers)


def compared(model: Any, trained: Trained, tokenizer: Any, where: str) -> Compared:
    """A form, loaded, against the trained model.

    Raises:
        ModelError: it has another vocabulary.
    """
    kl = top1 = 0.0
    count = 0
    for row, own, ours in zip(trained.texts.rows, trained.places, trained.log_probs, strict=True):
        theirs = torch.log_softmax(_logits(model, row)[own].float(), -1).cpu()
        if theirs.shape != ours.shape:
            raise ModelError("the exported model has another vocabulary", where=where, found=theirs.shape[-1],
                             expected=str(ours.shape[-1]))
        kl += float((ours.exp() * (ours - theirs)).sum(-1).double().sum())
        top1 += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        count += len(own)
    said = [_answer(model, prompt, tokenizer) for prompt in trained.texts.prompts]
    return Compared(max(0.0, kl / count), top1 / count, _same(trained.answers, said), count)


def _same(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    """Share of tokens that are the same, up to the first of each answer that is not."""
    equal = 0
    for one, other in zip(ours, theirs, strict=True):
        for here, there in zip(one, other, strict=False):
            if here != there:
                break
            equal += 1
    longest = sum(max(len(one), len(other)) for one, other in zip(ours, theirs, strict=True))
    return equal / longest if longest else 1.0


def _logits(model: Any, row: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0]
        return logits


def _answer(model: Any, prompt: list[int], tokenizer: Any) -> list[int]:
    """Greedy tokens after a prompt, the end token included."""
    ids = torch.tensor([prompt], device=model.device)
    with torch.inference_mode():
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1,
                              max_new_tokens=ANSWER, pad_token_id=tokenizer.pad_token_id,
                              eos_token_id=templates.stop_ids(tokenizer), repetition_penalty=1.0)
    said: list[int] = made[0, len(prompt):].tolist()
    return said
