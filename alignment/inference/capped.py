"""Attention whose scores are capped (Gemma 2: softcap * tanh(score / softcap)), through transformers' own interface.

PyTorch's sdpa knows no cap, and transformers 5.19, whose default it is, leaves the cap out without a word: the model
that is then trained and measured is not its maker's. Scores here are those of transformers' eager attention; they are
computed a block of queries at a time, and again in the backward pass, so that as little is kept as with sdpa.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

CAPPED = "kubealign_capped"
BLOCK = 256
"""Queries whose scores are computed at once."""


def with_caps(model: PreTrainedModel) -> None:
    """Have a model compute the cap that its config asks for, where the attention that it would use leaves it out."""
    config = model.config
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) and config._attn_implementation == "sdpa":
        model.set_attn_implementation(CAPPED)


def _attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, softcap: float | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' contract: query [rows, heads, queries, size], mask [rows, 1, queries, keys] of 0 and the least
    number -> [rows, queries, heads, size]."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask is None:  # never with `eager_mask`, whose sums would be wrong without it
        raise ValueError("capped attention needs a mask")

    def block(start: int) -> Tensor:
        end = start + BLOCK
        given = (query[:, :, start:end], key, value, attention_mask[:, :, start:end], scale, softcap, dropout)
        if not torch.is_grad_enabled():
            return _of(*given)
        out: Tensor = checkpoint(_of, *given, use_reentrant=False)
        return out

    return torch.cat([block(start) for start in range(0, query.shape[2], BLOCK)], 1), None


def _of(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, softcap: float | None, dropout: float
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    scores = query @ repeat_kv(key, groups).transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    shares = (scores + mask).softmax(-1, dtype=torch.float32).to(query.dtype)
    shares = torch.nn.functional.dropout(shares, dropout)
    out: Tensor = (shares @ repeat_kv(value, groups)).transpose(1, 2)
    return out


AttentionInterface.register(CAPPED, _attend)
AttentionMaskInterface.register(CAPPED, eager_mask)
