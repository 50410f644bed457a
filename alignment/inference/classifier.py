"""Scores of an imported reward model: the one number of a sequence classifier, as its maker's head gives it.

Reads a pair of texts (prompt, answer) by the model's own tokenizer, or a conversation by its chat template, with every
token in one pass, since an encoder looks both ways and has no cache to share. Reward models of train stages are read by
scoring.py, which knows their head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from alignment.inference.embedded import _Embedded
from alignment.inference.embedding import plain_tokenizer
from alignment.inference.loading import input_to_float32, load_tokenizer, weights_of
from alignment.inference.requests import Item
from alignment.records import Message
from alignment.templates import encode_completion

BATCH_TOKENS = 8192
"""Tokens of one batch, padding included."""


def as_text(prompt: Sequence[Message]) -> str:
    """A conversation as the first text of a pair: what each turn says, a line each."""
    return "\n".join(str(turn["content"]) for turn in prompt)


class ClassifierScorer(_Embedded[Any]):
    """A sequence classifier with one label; pads at the right."""

    side = "right"

    @property
    def reads(self) -> str:
        """`pair` or `conversation`, as the import settled it."""
        return str(self.artifact.manifest.facts["reads"])

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        folder = self.artifact.path() / "model"
        return plain_tokenizer(folder) if self.reads == "pair" else load_tokenizer(folder, side="right")

    def score(self, items: Sequence[Item]) -> list[float]:
        model = self._ready()
        encoded = [self._encoded(*item) for item in items]
        results = [math.nan] * len(items)
        limit = self.context_length
        order = sorted((at for at, one in enumerate(encoded) if limit is None or len(one["input_ids"]) <= limit),
                       key=lambda at: -len(encoded[at]["input_ids"]))
        while order:
            many = max(1, BATCH_TOKENS // max(1, len(encoded[order[0]]["input_ids"])))
            batch, order = order[:many], order[many:]
            for at, score in zip(batch, self._run(model, [encoded[at] for at in batch]), strict=True):
                results[at] = score
        return results

    def _encoded(self, prompt: list[Message], answer: str) -> dict[str, list[int]]:
        if self.reads == "conversation":
            before, said = encode_completion(self.tokenizer, prompt, answer)
            return {"input_ids": [*before, *said], "attention_mask": [1] * (len(before) + len(said))}
        made: Any = self.tokenizer(as_text(prompt), answer, truncation=False)
        return {key: list(made[key]) for key in ("input_ids", "attention_mask", "token_type_ids") if key in made}

    def _run(self, model: Any, encoded: Sequence[dict[str, list[int]]]) -> list[float]:
        tokenizer: Any = self.tokenizer
        batch = tokenizer.pad({key: [one[key] for one in encoded] for key in encoded[0]}, padding=True,
                              return_tensors="pt")
        with torch.inference_mode():
            logits = model(**{key: value.to(model.device) for key, value in batch.items()}).logits
        return [float(value) for value in logits[:, 0].float().tolist()]

    def _made(self, placement: dict[str, Any]) -> Any:
        """The backbone in the stage's dtype; the layer that gives the number in float32, as it is stored:
        three digits of a score are too few to rank rows by."""
        folder = self.artifact.path() / "model"
        model: Any = weights_of(AutoModelForSequenceClassification, folder, "auto")
        heads = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear) and layer.out_features == 1]
        kept = {id(weight) for layer in heads for weight in layer.parameters()}
        for weight in model.parameters():
            weight.data = weight.data.to(torch.float32 if id(weight) in kept else placement["dtype"])
        for layer in heads:
            layer.register_forward_pre_hook(input_to_float32)
        return model.to(placement["device"]).eval()
