"""A KV cache and an attention for decoding many rows at once, both through transformers' own interfaces.

What costs time when a small model decodes a large batch is copying keys and values. transformers' cache copies all
of them at every step to append one, and its attention copies them once more per query head where heads share keys.
Here the room is allocated once, and query heads that share keys go as one block of queries (the same sums).
Layers that are not plain attention (sliding windows, states) stay transformers' own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

GROUPED = "kubealign_grouped"


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values [rows, heads, length, size] as views of tensors with room for `capacity` tokens.

    The prompts come first, as they are; `batch_select_indices` then copies them into the room, each prompt to all
    the rows that continue it. Later selections drop rows.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self._rooms: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._rooms is None:
            return super().update(key_states, value_states)  # type: ignore[no-any-return]
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[:, :, start:end] = states
        self.keys, self.values = (room[:, :, :end] for room in self._rooms)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        def roomy(states: Tensor) -> Tensor:
            room = states.new_empty(len(indices), states.shape[1], self.capacity, states.shape[3])
            room[:, :, : states.shape[2]] = states[indices]
            return room

        length = self.get_seq_length()
        self._rooms = roomy(self.keys), roomy(self.values)
        self.keys, self.values = (room[:, :, :length] for room in self._rooms)


def roomy_cache(model: PreTrainedModel, capacity: int) -> DynamicCache:
    """An empty cache for at most `capacity` tokens a row, prompt and padding included."""
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


@contextmanager
def grouped_attention(model: PreTrainedModel) -> Iterator[None]:
    """While the block runs, a model on sdpa decodes without copying keys for each query head."""
    before = model.config._attn_implementation
    if before != "sdpa":  # eager and flash kernels were asked for, or are all that the model has
        yield
        return
    model.set_attn_implementation(GROUPED)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """sdpa's contract: query [rows, heads, queries, size] -> [rows, queries, heads, size].

    With one query per row, the heads of one key head become that key head's queries; anything else is sdpa's.
    """
    rows, heads, queries, size = query.shape
    if queries > 1 or heads == key.shape[1] or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    grouped = query.view(rows, key.shape[1], heads // key.shape[1], size)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling"))
    return out.reshape(rows, 1, heads, value.shape[-1]), None


AttentionInterface.register(GROUPED, _attend)
AttentionMaskInterface.register(GROUPED, sdpa_mask)
