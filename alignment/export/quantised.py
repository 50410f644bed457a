"""A model folder of whole weights -> the same in four bits (NF4 with double quantisation), as bitsandbytes keeps them,
or in eight (FP8), as vLLM reads them.

Quantised are merged weights, after the adapter was folded in; what that loses is measured by who calls (compare.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from alignment.errors import ModelError
from alignment.export.folder import old_positions, rewrite, write_tokenizer
from alignment.inference.loading import in_dtype, weights_of

_FP8_STEP = 16
"""Rows and columns that FP8 kernels take at a time."""


def write_nf4(whole: Path, folder: Path, tokenizer: Any, device: str, shard_bytes: int) -> None:
    """Quantise the linear layers but the output head; loads with plain transformers where bitsandbytes is.

    Raises:
        ModelError: the libraries refuse the model.
    """
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                bnb_4bit_compute_dtype=torch.bfloat16)
    try:
        model = AutoModelForCausalLM.from_pretrained(whole, quantization_config=config, local_files_only=True,
                                                     use_safetensors=True, device_map={"": device})
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, max_shard_size=shard_bytes)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(f"the model cannot be quantised: {type(error).__name__}: {error}", where=str(whole),
                         expected="linear layers that bitsandbytes takes") from error
    rewrite(folder / "config.json", lambda found: old_positions(found, str(folder / "config.json")))
    write_tokenizer(tokenizer, folder)


def load_nf4(folder: Path, dtype: torch.dtype, device: str) -> Any:
    """As others load it, then with what the four bits stand for in `dtype`: which kernel multiplies them is the
    machine's (on some CPUs one that computes in bfloat16)."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=dtype,
                                                      device_map={"": device})
    return in_dtype(model.dequantize(), dtype).to(device).eval()


def write_fp8(whole: Path, folder: Path, tokenizer: Any, shard_bytes: int) -> None:
    """Quantise the linear layers but the output head to FP8 (e4m3): each row of weights by a scale of its own, each
    token's activations by theirs as they come. It is llm-compressor's FP8_DYNAMIC, which needs no texts, made by the
    library that it, vLLM and transformers share.

    Raises:
        ModelError: not all matrices are linear layers, or one has a side that FP8 kernels do not take.
    """
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams

    model = weights_of(AutoModelForCausalLM, whole, "auto")
    head = model.get_output_embeddings()
    layers = _linear_layers(model, str(whole))
    ignored = [name for name, layer in layers.items() if layer is head]
    apply_quantization_config(model, QuantizationConfig(
        config_groups={"group_0": preset_name_to_scheme("FP8_DYNAMIC", ["Linear"])}, ignore=ignored))
    for layer in (layer for name, layer in layers.items() if name not in ignored):
        least, most = torch.aminmax(layer.weight.detach(), dim=1, keepdim=True)
        layer.weight_scale.data.copy_(calculate_qparams(least, most, layer.quantization_scheme.weights)[0])
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size=shard_bytes)
    compressor.update_config(str(folder))
    rewrite(folder / "config.json", lambda found: old_positions(found, str(folder / "config.json")))
    write_tokenizer(tokenizer, folder)


def load_fp8(folder: Path, dtype: torch.dtype, device: str) -> Any:
    """As others load it; transformers computes in `dtype` with what the eight bits stand for, activations rounded as
    FP8 kernels round them."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=dtype,
                                                      device_map={"": device})
    return model.eval()


def _linear_layers(model: Any, where: str) -> dict[str, Any]:
    """Name -> layer. Raises ModelError where FP8 would leave a matrix out, or where no kernel would take one."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            for matrix in (own for own, value in module.named_parameters(recurse=False) if value.dim() > 1):
                raise ModelError("fp8: a matrix is no linear layer", where=where, found=f"{name}.{matrix}",
                                 expected="a model whose matrices are linear layers (no experts, no Conv1D)",
                                 hint="export safetensors, and quantise them with llm-compressor")
    for name, layer in layers.items():
        if layer is not head and any(side % _FP8_STEP for side in layer.weight.shape):
            raise ModelError("fp8: a layer has a side that FP8 kernels do not take", where=where,
                             found=f"{name}: {' x '.join(map(str, layer.weight.shape))}",
                             expected=f"multiples of {_FP8_STEP}")
    return layers
