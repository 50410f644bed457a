"""How large a model is, read from config.json, safetensors headers or a GGUF header; no weights are loaded.

Knows the dense decoders of `FAMILIES` to the last weight (tests hold it to transformers' classes). For any other
architecture the answer is None, never a guess; counting.py counts those.
"""

from __future__ import annotations

import functools
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
class Family:
    """What sets an architecture apart, and what its config class takes for keys that config.json leaves out.

    Attributes:
        norms: RMS norms of the model's width in each layer.
        head_norms: whether query and key have norms of one head's width.
        qkv_bias: biases of query, key and value; None where `attention_bias` says so, of the output projection too.
        fused: one layer for query, key and value, and one for gate and up (so LoRA has fewer, wider adapters).
        head_dim: None is hidden size over heads.
        capped: the last logits go through a tanh.
    """

    norms: int = 2
    head_norms: bool = False
    qkv_bias: bool | None = None
    fused: bool = False
    tied: bool = False
    kv_heads: int | None = None
    head_dim: int | None = None
    capped: bool = False


FAMILIES = {
    "llama": Family(),
    "mistral": Family(qkv_bias=False, kv_heads=8),
    "qwen2": Family(qkv_bias=True, kv_heads=32),
    "qwen3": Family(head_norms=True, kv_heads=32, head_dim=128),
    "gemma": Family(tied=True, kv_heads=16, head_dim=256),
    "gemma2": Family(norms=4, tied=True, kv_heads=4, head_dim=256, capped=True),
    "gemma3_text": Family(norms=4, head_norms=True, tied=True, kv_heads=4, head_dim=256),
    "phi3": Family(qkv_bias=False, fused=True),
}
"""`model_type` -> its family: Llama 2 and 3 and SmolLM, Mistral, Qwen2 and 2.5, Qwen3, Gemma 1 to 3 (text), Phi-3 and
Phi-4. Read in transformers 5.19's modeling files."""


@dataclass(frozen=True)
class ModelSize:
    """Shape of a decoder.

    Attributes:
        parameters: all weights, an output head that shares the embedding counted once.
        heads, kv_heads, head_dim: of the attention; kv_heads < heads is grouped-query attention.
        intermediate: width of the gated feed-forward layer.
        tied: whether the output head is the embedding.
        fused: query, key and value are one linear layer, gate and up another.
        norms, head_norms, capped: as in `Family`.
        linear: (in, out) of a layer's linear layers, where they were counted; else they are a gated decoder's.
    """

    parameters: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool = False
    fused: bool = False
    norms: int = 2
    head_norms: bool = False
    capped: bool = False
    linear: tuple[tuple[int, int], ...] = ()

    @property
    def inner(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of all key heads."""
        return self.kv_heads * self.head_dim

    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of a layer's linear layers."""
        if self.linear:
            return self.linear
        first = ((self.hidden, self.inner + 2 * self.kv),) if self.fused else (
            (self.hidden, self.inner), (self.hidden, self.kv), (self.hidden, self.kv))
        gates = ((self.hidden, 2 * self.intermediate),) if self.fused else ((self.hidden, self.intermediate),) * 2
        return (*first, (self.inner, self.hidden), *gates, (self.intermediate, self.hidden))

    @property
    def linear_parameters(self) -> int:
        """Weights of all linear layers but the head, without biases: those that NF4 quantises."""
        return self.layers * sum(width * height for width, height in self.shapes())

    def lora_parameters(self, rank: int) -> int:
        """Weights of adapters on every linear layer but the head: r (in + out) each (arXiv:2106.09685, 4.1)."""
        return rank * self.layers * sum(width + height for width, height in self.shapes())

    @property
    def head_parameters(self) -> int:
        """Weights of an output head of its own; 0 where it is the embedding."""
        return 0 if self.tied else self.vocab * self.hidden


def size_from_config(config: Mapping[str, Any]) -> ModelSize | None:
    """Size of a dense decoder of `FAMILIES` from its config.json, or None for another architecture."""
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    mixture = any(config.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts"))
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None or mixture or not all(isinstance(config.get(key), int) for key in needed):
        return None
    hidden, layers, heads, intermediate, vocab = (int(config[key]) for key in needed)
    kv_heads = int(config.get("num_key_value_heads") or family.kv_heads or heads)
    head_dim = int(config.get("head_dim") or family.head_dim or hidden // heads)
    tied = bool(config.get("tie_word_embeddings", family.tied))
    size = ModelSize(0, layers, hidden, heads, kv_heads, head_dim, intermediate, vocab, tied, family.fused,
                     family.norms, family.head_norms, family.capped)
    said = bool(config.get("attention_bias")) if family.qkv_bias is None else False
    biases = (size.inner + 2 * size.kv) * (said or family.qkv_bias is True) + hidden * said
    if config.get("model_type") == "llama" and config.get("mlp_bias"):
        biases += 2 * intermediate + hidden
    norms = family.norms * hidden + 2 * head_dim * family.head_norms
    total = vocab * hidden + size.head_parameters + size.linear_parameters + layers * (biases + norms) + hidden
    return replace(size, parameters=total)


def safetensors_parameters(file: Path) -> int:
    """Sum of all tensor sizes. Raises ModelError when it is no such file."""
    try:
        return sum(map(math.prod, tensor_shapes(file).values()))
    except (OSError, ValueError, struct.error) as error:
        raise ModelError(f"not a safetensors file: {error}", where=str(file)) from error


def size_of_gguf(file: Path) -> ModelSize | None:
    """Size from a GGUF file's header; None where the `gguf` package is not installed (it is in the train extra)."""
    try:
        seen = file.stat()
    except OSError as error:
        raise ModelError(f"not a GGUF file: {error}", where=str(file)) from error
    return _size_of_gguf(file, seen.st_mtime_ns, seen.st_size)


# The reader takes seconds over a vocabulary's strings, and each stage of a run asks.
@functools.lru_cache(maxsize=16)
def _size_of_gguf(file: Path, changed: int, size: int) -> ModelSize | None:
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
