"""Log-probabilities of completions under a policy, and reward scores at the last real token.

Completions of one prompt share its prefill: the prompt's keys and values are computed once and handed to each. Ids
come from `templates.encode_*`; what a template puts before an answer is not measured. Batches are sorted by length and
cut by a token budget; results come in the order of the items. Knows no rows, files or selection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from alignment.errors import ModelError
from alignment.inference.engine import left_padded, positions
from alignment.inference.requests import Item
from alignment.templates import encode_answer, encode_completion

Forward = Callable[..., Tensor]
"""Model inputs as keywords -> [rows, queries, features]."""
LOGIT_ROWS = 512
"""Positions whose log-softmax over the vocabulary is taken at once, in float32."""


@dataclass(frozen=True)
class _Pair:
    """One item as ids: `before` is shared by items of one prompt, `segment` is the item's own. Neither is empty."""

    item: int
    before: tuple[int, ...]
    segment: list[int]

    @property
    def length(self) -> int:
        return len(self.before) + len(self.segment)


def log_probs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], batch_tokens: int = 8192,
    context_length: int | None = None,
) -> list[tuple[float, int]]:
    """Sum of the log-probabilities of each completion's tokens, end token included, given its prompt.

    Args:
        batch_tokens: tokens of prompts and completions, padding included, in one batch at most (but one item always).
        context_length: tokens that the model can tell the places of.

    Returns:
        (sum in nats, number of tokens) per item; the sum is a float32 computation, and NaN for a longer item.
    """
    pairs = []
    for index, (prompt, completion) in enumerate(items):
        before, said = encode_answer(tokenizer, prompt, completion)
        if len(before) < 2:
            raise ModelError("a prompt of less than two tokens cannot be shared between completions",
                             where=f"item {index}", found=before)
        # The last prompt token goes with the completion: what predicts the first completion token stands there.
        pairs.append(_Pair(index, tuple(before[:-1]), [before[-1], *said]))
    results = [(math.nan, len(pair.segment) - 1) for pair in pairs]
    pairs = _within(pairs, context_length)

    def forward(**inputs: object) -> Tensor:
        return model(**inputs).logits  # type: ignore[no-any-return]

    with torch.inference_mode():
        for batch in _batches(pairs, batch_tokens):
            inputs = [pair.segment[:-1] for pair in batch]
            for pair, logits in zip(batch, _run(model, forward, batch, inputs), strict=True):
                targets = torch.tensor(pair.segment[1:], device=logits.device)
                results[pair.item] = (_sum_log_probs(logits, targets), len(targets))
    return results


def continuations(
    model: PreTrainedModel, pairs: Sequence[tuple[list[int], list[int]]], batch_tokens: int = 8192
) -> list[tuple[float, bool]]:
    """How likely ids are that follow other ids, neither empty: the sum of their log-probabilities in nats, and whether
    each is the likeliest in its place. Contexts that are equal are read once.

    Args:
        batch_tokens: as for `log_probs`.
    """
    # The last token goes with the continuation: what predicts its first token stands there.
    all_ = [_Pair(index, tuple(before[:-1]), [before[-1], *said]) for index, (before, said) in enumerate(pairs)]
    results = [(math.nan, False)] * len(all_)

    def forward(**inputs: object) -> Tensor:
        return model(**inputs).logits  # type: ignore[no-any-return]

    with torch.inference_mode():
        for batch in _batches([pair for pair in all_ if pair.before], batch_tokens):
            _told(results, batch, _run(model, forward, batch, [pair.segment[:-1] for pair in batch]))
        for batch in _batches([pair for pair in all_ if not pair.before], batch_tokens):
            _told(results, batch, _whole(model, forward, [pair.segment[:-1] for pair in batch]))
    return results


def _told(results: list[tuple[float, bool]], batch: Sequence[_Pair], outputs: Sequence[Tensor]) -> None:
    for pair, logits in zip(batch, outputs, strict=True):
        targets = torch.tensor(pair.segment[1:], device=logits.device)
        results[pair.item] = _sum_log_probs(logits, targets), bool((logits.argmax(-1) == targets).all())


def _whole(model: PreTrainedModel, forward: Forward, inputs: Sequence[list[int]]) -> list[Tensor]:
    """Outputs at all positions of `inputs`, which follow nothing: padded at the right, where no token looks."""
    width = max(map(len, inputs))
    padded = torch.tensor([own + [0] * (width - len(own)) for own in inputs], device=model.device)
    mask = torch.tensor([[1] * len(own) + [0] * (width - len(own)) for own in inputs], device=model.device)
    outputs = forward(input_ids=padded, attention_mask=mask, use_cache=False)
    return [outputs[index, : len(own)] for index, own in enumerate(inputs)]


class RewardScorer:
    """Scores answers with a reward model: the scalar head at the answer's end token.

    Args:
        model: a sequence classifier with one label, in eval mode, on its device.
        tokenizer: of the same model folder.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context_length: int | None = None
    ) -> None:
        self.model, self.tokenizer, self.context_length = model, tokenizer, context_length

    def score(self, items: Sequence[Item], batch_tokens: int = 8192) -> list[float]:
        """One score per item, in order. NaN, of the model or for an item that is longer than its context length, is
        returned as NaN: what it means is the caller's to decide."""
        pairs = []
        for index, (prompt, completion) in enumerate(items):
            before, said = encode_completion(self.tokenizer, prompt, completion)
            if not before:
                raise ModelError("a prompt without tokens cannot be scored", where=f"item {index}")
            pairs.append(_Pair(index, tuple(before), said))
        results = [math.nan] * len(pairs)
        pairs = _within(pairs, self.context_length)
        backbone = getattr(self.model, self.model.base_model_prefix)

        def forward(**inputs: object) -> Tensor:
            return backbone(**inputs).last_hidden_state  # type: ignore[no-any-return]

        with torch.inference_mode():
            for batch in _batches(pairs, batch_tokens):
                states = _run(self.model, forward, batch, [pair.segment for pair in batch])
                scores = self.model.score(torch.stack([own[-1] for own in states])).float().squeeze(-1)
                for pair, score in zip(batch, scores.tolist(), strict=True):
                    results[pair.item] = score
        return results


def _within(pairs: list[_Pair], context_length: int | None) -> list[_Pair]:
    return [pair for pair in pairs if context_length is None or pair.length <= context_length]


def _batches(pairs: Sequence[_Pair], batch_tokens: int) -> Iterator[list[_Pair]]:
    """Pairs with equal prompts together, similar lengths together, padded size within the budget."""
    longest: dict[tuple[int, ...], int] = {}
    for pair in pairs:
        longest[pair.before] = max(longest.get(pair.before, 0), pair.length)
    ordered = sorted(pairs, key=lambda pair: (-longest[pair.before], pair.before, pair.item))
    batch: list[_Pair] = []
    before = segment = 0
    for pair in ordered:
        before, segment = max(before, len(pair.before)), max(segment, len(pair.segment))
        if batch and (before + segment) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch, before, segment = [], len(pair.before), len(pair.segment)
        batch.append(pair)
    if batch:
        yield batch


def _run(model: PreTrainedModel, forward: Forward, batch: Sequence[_Pair], inputs: Sequence[list[int]]) -> list[Tensor]:
    """Outputs at the positions of `inputs`, each following its `before`: one [length, features] per item."""
    prompts = list(dict.fromkeys(pair.before for pair in batch))
    place = {prompt: index for index, prompt in enumerate(prompts)}
    ids, mask = left_padded(prompts, model.device)
    cache = DynamicCache(config=model.config)
    backbone = getattr(model, model.base_model_prefix)
    backbone(input_ids=ids, attention_mask=mask, position_ids=positions(mask), past_key_values=cache, use_cache=True)
    owner = torch.tensor([place[pair.before] for pair in batch], device=model.device)
    if len(batch) > len(prompts) or owner.tolist() != list(range(len(prompts))):
        cache.batch_select_indices(owner)
    width = max(map(len, inputs))
    # Padding at the right: causal attention never looks there, so it needs no mask of its own.
    padded = torch.tensor([own + [0] * (width - len(own)) for own in inputs], device=model.device)
    mask = torch.cat([mask[owner], mask.new_ones(len(batch), width)], 1)
    outputs = forward(
        input_ids=padded, attention_mask=mask, position_ids=positions(mask)[:, -width:], past_key_values=cache,
        use_cache=True,
    )
    return [outputs[index, : len(own)] for index, own in enumerate(inputs)]


def _sum_log_probs(logits: Tensor, targets: Tensor) -> float:
    """Log-probability of `targets` [length] under `logits` [length, vocabulary], a few rows of float32 at a time."""
    sums = [
        -torch.nn.functional.cross_entropy(some.float(), wanted, reduction="sum")
        for some, wanted in zip(torch.split(logits, LOGIT_ROWS), torch.split(targets, LOGIT_ROWS), strict=True)
    ]
    return float(torch.stack(sums).sum())
