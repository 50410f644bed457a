"""What a model of any architecture is made of, counted on torch's meta device: `python -m alignment.inference.meta_size
< config.json`, one line of JSON to stdout. Holds no weight. For families without a formula in planner/sizes.py.

Dense decoders alone: everything of a layer that the planner counts with is in its linear layers, attention and norms.
Where a layer holds weights elsewhere (a mixture's experts, a state space) the answer is why not. Runs no code of the
model's own (`trust_remote_code`).
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

_APART = 0.01
"""Of a layer's weights, at most, that are in no linear layer (norms and their like)."""

_ACTIVATION = ("hidden_act", "hidden_activation", "activation_function", "activation")
_FUSED = ("silu", "swish", "gelu", "gelu_pytorch_tanh", "relu", "relu2")
"""Activations that keep no more than their input and one value like it; others are written out in many operators."""


class Unknown(ValueError):
    """Why a model cannot be counted, as a sentence's end."""


def measured(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the planner's ModelSize from config.json's content.

    Raises:
        Unknown: the architecture is none of transformers', or no dense decoder.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
        try:
            made = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(made, trust_remote_code=False)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, OSError) as error:
            first = str(error).splitlines()[0]
            raise Unknown(f"transformers makes no causal language model of it ({first})") from error
    text = made.get_text_config()
    if not getattr(model, "_supports_sdpa", False):
        raise Unknown("its attention knows no sdpa, so it keeps the scores of all pairs of tokens")
    activation = next((str(said) for key in _ACTIVATION if (said := getattr(text, key, None)) is not None), "")
    if activation not in _FUSED:
        raise Unknown(f"its activation {activation} keeps more of a forward pass than is counted")
    count, hidden, heads = (getattr(text, key, None) for key in
                            ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    if not count or not hidden or not heads:
        raise Unknown("its config names no layers, width or attention heads")
    layers = next((part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == count), None)
    if layers is None:
        raise Unknown("its layers are not found in the model")
    linear = _alike([_linear(layer) for layer in layers])
    ends = [width for width, height in linear if height == hidden]
    if not ends:
        raise Unknown("no linear layer of a layer ends in the model's width")
    kv_heads = getattr(text, "num_key_value_heads", None) or getattr(text, "num_kv_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or hidden // heads
    inner, kv = heads * head_dim, kv_heads * head_dim
    norms = _norms(layers[0], hidden)
    whole, first = model.get_output_embeddings(), model.get_input_embeddings()
    return {
        "parameters": sum(one.numel() for one in model.parameters()), "layers": count, "hidden": hidden, "heads": heads,
        "kv_heads": kv_heads, "head_dim": head_dim, "intermediate": max(ends), "vocab": first.weight.shape[0],
        "tied": whole is not None and whole.weight is first.weight,
        "fused": (hidden, inner + 2 * kv) in linear,
        "norms": norms["wide"], "head_norms": norms["heads"] > 0,
        "capped": getattr(text, "final_logit_softcapping", None) is not None, "linear": linear,
    }


def _linear(layer: nn.Module) -> list[tuple[int, int]]:
    """(in, out) of a layer's linear layers; Conv1D is GPT-2's."""
    found, inside = [], 0
    for part in layer.modules():
        if isinstance(part, nn.Linear):
            found.append((part.in_features, part.out_features))
        elif isinstance(part, Conv1D):
            found.append((part.weight.shape[0], part.weight.shape[1]))
        else:
            continue
        inside += sum(one.numel() for one in part.parameters())
    whole = sum(one.numel() for one in layer.parameters())
    if not found or whole - inside > _APART * whole:
        raise Unknown("a layer holds weights outside its linear layers, as a mixture of experts or a state space does")
    return found


def _alike(layers: list[list[tuple[int, int]]]) -> list[tuple[int, int]]:
    """The linear layers of each layer, if all have the same."""
    if len({tuple(sorted(layer)) for layer in layers}) > 1:
        raise Unknown("its layers are unlike one another")
    return layers[0]


def _norms(layer: nn.Module, hidden: int) -> Counter[str]:
    """Norms of the model's width, and of heads. One without weights counts as wide."""
    found: Counter[str] = Counter()
    for part in layer.modules():
        if "Norm" in type(part).__name__:
            weight = getattr(part, "weight", None)
            found["wide" if weight is None or weight.numel() == hidden else "heads"] += 1
    return found


def main() -> None:
    """Count the model of the config on stdin; {"unknown": WHY} where that cannot be."""
    try:
        print(json.dumps(measured(json.load(sys.stdin))))
    except Unknown as error:
        print(json.dumps({"unknown": str(error)}))


if __name__ == "__main__":
    main()
