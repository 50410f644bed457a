"""How large a model is, read from config.json, safetensors headers or a GGUF header; no weights are loaded.

Knows dense decoders of the Llama shape (Llama, Mistral, Qwen2/3, SmolLM, Gemma). For any other shape the answer
is None, never a guess.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignment.config import TinyModel
from alignment.data.model_files import tensor_shapes
from alignment.errors import ModelError


@dataclass(frozen=True)
class ModelSize:
    """Shape of a decoder.

    Attributes:
        parameters: all weights, an output head that shares the embedding counted once.
        heads, kv_heads, head_dim: of the attention; kv_heads < heads is grouped-query attention.
        intermediate: width of the gated feed-forward layer.
    """

    parameters: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int

    @property
    def linear_parameters(self) -> int:
        """Weights of every linear layer but the head."""
        inner, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return self.layers * self.hidden * (2 * inner + 2 * kv + 3 * self.intermediate)

    def lora_parameters(self, rank: int) -> int:
        """Weights of adapters on every linear layer but the head: r (in + out) each (arXiv:2106.09685, 4.1)."""
        inner, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * (self.hidden + inner) + 2 * (self.hidden + kv)
        feed_forward = 3 * (self.hidden + self.intermediate)
        return rank * self.layers * (attention + feed_forward)


def size_from_config(config: Mapping[str, Any]) -> ModelSize | None:
    """Size of a Llama-shaped dense decoder from its config.json, or None for another architecture."""
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    mixture = any(config.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts"))
    if mixture or not all(isinstance(config.get(key), int) for key in needed):
        return None
    hidden, layers, heads, intermediate, vocab = (int(config[key]) for key in needed)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    head_dim = int(config.get("head_dim") or hidden // heads)
    inner, kv = heads * head_dim, kv_heads * head_dim
    attention = 2 * hidden * inner + 2 * hidden * kv
    if config.get("model_type") == "qwen2":  # its query, key and value have biases that config.json does not mention
        attention += inner + 2 * kv
    norms = 2 * hidden + (2 * head_dim if config.get("model_type") == "qwen3" else 0)
    embeddings = vocab * hidden * (1 if config.get("tie_word_embeddings") else 2)
    total = embeddings + layers * (attention + 3 * hidden * intermediate + norms) + hidden
    return ModelSize(total, layers, hidden, heads, kv_heads, head_dim, intermediate, vocab)


def size_of_folder(folder: Path) -> ModelSize | None:
    """Size of a model folder; the parameter count is the safetensors headers' where there are any.

    Raises:
        ModelError: config.json or a safetensors header cannot be read.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"the model's config.json cannot be read: {error}", where=str(path)) from error
    size = size_from_config(config)
    counted = sum(_safetensors_parameters(file) for file in sorted(folder.glob("*.safetensors")))
    return replace(size, parameters=counted) if size is not None and counted else size


def _safetensors_parameters(file: Path) -> int:
    """Sum of all tensor sizes."""
    try:
        return sum(map(math.prod, tensor_shapes(file).values()))
    except (OSError, ValueError, struct.error) as error:
        raise ModelError(f"not a safetensors file: {error}", where=str(file)) from error


def size_of_gguf(file: Path) -> ModelSize | None:
    """Size from a GGUF file's header; None where the `gguf` package is not installed (it is in the train extra)."""
    try:
        from gguf import GGUFReader
    except ImportError:
        return None
    try:
        reader = GGUFReader(file)
    except (OSError, ValueError) as error:
        raise ModelError(f"not a GGUF file: {error}", where=str(file)) from error

    def value(key: str, default: int = 0) -> int:
        field = reader.fields.get(f"{architecture}.{key}")
        return default if field is None else int(field.contents())

    architecture = str(reader.fields["general.architecture"].contents())
    hidden, heads = value("embedding_length"), value("attention.head_count")
    if not hidden or not heads:
        return None
    tokens = reader.fields.get("tokenizer.ggml.tokens")
    vocab = value("vocab_size", len(tokens.data) if tokens is not None else 0)
    return ModelSize(
        parameters=sum(int(tensor.n_elements) for tensor in reader.tensors),
        layers=value("block_count"), hidden=hidden, heads=heads,
        kv_heads=value("attention.head_count_kv", heads),
        head_dim=value("attention.key_length", hidden // heads),
        intermediate=value("feed_forward_length"), vocab=vocab,
    )


def size_of_tiny(tiny: TinyModel) -> ModelSize | None:
    """Size of the model that an import stage with `source: tiny` will make."""
    return size_from_config({
        "model_type": "llama", "hidden_size": tiny.hidden_size, "num_hidden_layers": tiny.layers,
        "num_attention_heads": tiny.heads, "num_key_value_heads": tiny.heads,
        "intermediate_size": 4 * tiny.hidden_size, "vocab_size": tiny.vocab_size, "tie_word_embeddings": False,
    })
