"""A model folder of whole weights -> one GGUF file, for models built as Llama, Mistral, Qwen2 and Qwen3 are.

Names of tensors and the layout of the file are the `gguf` package's (llama.cpp's own); what a family needs beyond
names is here: Llama's query and key rows in llama.cpp's order, Llama 3's factors of frequencies. What is not known is
refused. Tensors are written one by one, in the memory of one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import (
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    RopeScalingType,
    get_tensor_name_map,
)
from gguf.quants import quant_shape_to_byte_shape, quantize
from safetensors import safe_open

from alignment.config.stages.export import GgufType
from alignment.errors import ModelError
from alignment.export.gguf_tokenizer import write_tokenizer
from alignment.progress import console


class Family(NamedTuple):
    """How a model type goes into a file.

    Attributes:
        permuted: whether rows of queries and keys are put into llama.cpp's order of rotary pairs.
    """

    arch: MODEL_ARCH
    permuted: bool


FAMILIES = {
    "llama": Family(MODEL_ARCH.LLAMA, True), "mistral": Family(MODEL_ARCH.LLAMA, True),
    "qwen2": Family(MODEL_ARCH.QWEN2, False), "qwen3": Family(MODEL_ARCH.QWEN3, False),
}
"""`model_type` of a config.json -> its family."""
_TYPES: dict[GgufType, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}


def write_gguf(folder: Path, tokenizer: Any, file: Path, kind: GgufType, name: str, licence: str | None) -> int:
    """Convert a model folder.

    Args:
        file: to write.
        kind: type of the matrices; vectors are float32, and matrices whose rows Q8_0 cannot divide float16.
        name, licence: what the file says of itself.

    Returns:
        Matrices that are float16 for that reason.

    Raises:
        ModelError: a family, positions or a tokenizer that are not known here.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = family_of(config, str(folder / "config.json"))
    writer = GGUFWriter(file, MODEL_ARCH_NAMES[family.arch])
    writer.add_name(name)
    if licence is not None:
        writer.add_license(licence)
    writer.add_file_type(int(_TYPES[kind][1]))
    if kind == "q8_0":
        writer.add_quantization_version(2)
    rows = _write_shape(writer, config)
    write_tokenizer(writer, tokenizer, folder, rows)
    tensors = list(_tensors(folder, config, family, kind))
    if (factors := _factors(config)) is not None:
        tensors.insert(0, _Tensor("rope_freqs.weight", None, "", GGMLQuantizationType.F32, factors.shape, 0))
    for tensor in tensors:
        shape = quant_shape_to_byte_shape(tensor.shape, tensor.type) if _packed(tensor.type) else tensor.shape
        dtype = np.dtype(np.uint8) if _packed(tensor.type) else np.dtype(
            np.float16 if tensor.type == GGMLQuantizationType.F16 else np.float32)
        writer.add_tensor_info(tensor.name, shape, dtype, math.prod(shape) * dtype.itemsize, raw_dtype=tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(factors if tensor.file is None else quantize(_read(tensor), tensor.type))
    writer.close()
    coarser = sum(kind == "q8_0" and tensor.type == GGMLQuantizationType.F16 for tensor in tensors)
    if coarser:
        console.print(f"! GGUF: {coarser} matrices are float16 in the q8_0 file: their rows are no multiple of 32")
    return int(coarser)


def family_of(config: dict[str, Any], where: str) -> Family:
    """Raises ModelError for a model type, or positions, that this converter does not know."""
    known = config.get("model_type")
    if known not in FAMILIES:
        raise _unknown("a model of this type", known, f"one of {', '.join(FAMILIES)}", where)
    rope = config.get("rope_parameters") or {}
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear", "llama3") or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise _unknown("rotary positions of this kind", rope, "default, linear or llama3", where)
    if config.get("use_sliding_window") or (config.get("sliding_window") is not None and known == "mistral"):
        raise _unknown("attention over a sliding window", config.get("sliding_window"), "attention over everything",
                       where)
    if config.get("hidden_act", "silu") != "silu" or config.get("mlp_bias"):
        raise _unknown("this form of feed-forward layers", f"hidden_act {config.get('hidden_act')}, mlp_bias "
                       f"{config.get('mlp_bias')}", "silu without biases", where)
    return FAMILIES[known]


class _Tensor(NamedTuple):
    """A tensor to write: its name, the safetensors file and name it is read by, its type and shape there; `heads` whose
    rows are put in order, 0 for none."""

    name: str
    file: Path | None
    source: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    heads: int


def _tensors(folder: Path, config: dict[str, Any], family: Family, kind: GgufType) -> Iterator[_Tensor]:
    names = get_tensor_name_map(family.arch, config["num_hidden_layers"])
    heads = config["num_attention_heads"]
    queries_and_keys = {"q_proj": heads, "k_proj": config.get("num_key_value_heads") or heads}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for source in sorted(tensors.keys()):
                if source == "lm_head.weight" and config.get("tie_word_embeddings"):
                    continue
                name = names.get_name(source, try_suffixes=(".weight", ".bias"))
                if name is None:
                    raise _unknown("a tensor of this name", source, "those of the family", str(file))
                shape = tuple(tensors.get_slice(source).get_shape())
                last = source.split(".")[-2]
                yield _Tensor(name, file, source, _type_of(shape, kind), shape,
                              queries_and_keys.get(last, 0) if family.permuted else 0)


def _type_of(shape: tuple[int, ...], kind: GgufType) -> GGMLQuantizationType:
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    if kind == "q8_0" and shape[-1] % 32:
        return GGMLQuantizationType.F16
    return _TYPES[kind][0]


def _packed(kind: GGMLQuantizationType) -> bool:
    return kind in (GGMLQuantizationType.Q8_0, GGMLQuantizationType.BF16)


def _read(tensor: _Tensor) -> Any:
    """float32; Llama's rows of a head go from [first halves, second halves] of the rotary pairs to pairs."""
    with safe_open(tensor.file, framework="pt") as tensors:
        found = tensors.get_tensor(tensor.source).to(torch.float32).numpy()
    if tensor.heads:
        split = found.reshape(tensor.heads, 2, found.shape[0] // tensor.heads // 2, *found.shape[1:])
        found = np.ascontiguousarray(split.swapaxes(1, 2).reshape(found.shape))
    return found


def _write_shape(writer: GGUFWriter, config: dict[str, Any]) -> int:
    """The numbers of the config; gives rows of the embedding."""
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    return int(config["vocab_size"])


def _factors(config: dict[str, Any]) -> Any:
    """What Llama 3's scaling divides each frequency by, [head_dim / 2] float32; None without it. As
    transformers.modeling_rope_utils computes them."""
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") != "llama3":
        return None
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    low, high, old = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    wavelengths = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, head, 2, dtype=np.float64) / head)
    smooth = (old / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / rope["factor"] + smooth)
    factors = np.where(wavelengths < old / high, 1.0, np.where(wavelengths > old / low, rope["factor"], between))
    return factors.astype(np.float32)


def _unknown(what: str, found: object, expected: str, where: str) -> ModelError:
    return ModelError(f"GGUF: {what} is not known to this converter", where=where, found=found, expected=expected,
                      hint="export safetensors, and convert that folder with llama.cpp's convert_hf_to_gguf.py")
