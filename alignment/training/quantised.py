"""A base in four bits for training: bitsandbytes's kernels over weights that inference/nf4.py quantised.

Quantises in place, and says how much of a model it was. Makes no adapter. What is computed over such a base elsewhere
(evaluation, sampling, a merge) is computed over the same weights in full precision: inference/nf4.py.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment.errors import ModelError
from alignment.inference import nf4
from alignment.inference.adapters import with_adapter
from alignment.inference.loading import in_dtype, score_in_float32, weights_of
from alignment.training.proof import TOKENS, tokens_of

ROWS = 4
"""The first rows, whose first tokens are compared."""


def in_four_bits(model: Any, dtype: torch.dtype, device: str, where: str) -> dict[str, Any]:
    """Quantise the linear layers of a model as it is stored; all else is in `dtype` then.

    Args:
        dtype: what the layers compute in.
        device: where to quantise; the layers lie where they lay.

    Returns:
        Facts: how the base is quantised, how many weights are and how many there are.

    Raises:
        ModelError: bitsandbytes cannot be used here, gives other weights back, or there is nothing to quantise.
    """
    classes = _bitsandbytes(device, where)
    parameters = sum(one.numel() for one in model.parameters())
    layers, quantised = list(nf4.quantised_layers(model)), 0
    if not layers:
        raise ModelError("no linear layer of this architecture can be quantised", where=f"{where}, strategy.kind",
                         found=model.config.model_type, expected="a model of linear layers", hint="strategy lora")
    for name, module in layers:
        weight = nf4.quantised_layer(module, device)
        quantised += weight.shape.numel()
        model.set_submodule(name, _layer(classes, module, weight, dtype, name, where))
    in_dtype(model, dtype).requires_grad_(False)
    if device == "cpu":  # the optimizer's state is where it would be paged to; every step is the same
        warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
    return {"quantisation": nf4.NAME, "quantised_parameters": quantised, "base_parameters": parameters}


def _layer(
    classes: tuple[Any, Any], module: Any, weight: nf4.Nf4, dtype: torch.dtype, name: str, where: str
) -> Any:
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Params4bit

    (linear4bit, quant_state), device, place = classes, weight.packed.device, module.weight.device
    scales = quant_state(absmax=weight.groups, blocksize=nf4.GROUP, code=nf4.scale_levels().to(device),
                         dtype=torch.float32)
    state = quant_state(absmax=weight.scales, shape=weight.shape, dtype=torch.float32, blocksize=nf4.BLOCK,
                        code=torch.tensor(nf4.LEVELS, device=device), quant_type="nf4", offset=weight.offset,
                        state2=scales)
    if not torch.allclose(dequantize_4bit(weight.packed, state), nf4.dequantise(weight), rtol=1e-6, atol=1e-9):
        # Seen of 0.50.2 on CPUs with AVX512 where a row is a multiple of 16 weights and none of 64.
        raise ModelError("bitsandbytes gives other weights back than were quantised, on this machine", where=where,
                         found=f"layer {name} of {' x '.join(map(str, weight.shape))}",
                         expected=f"layers whose inputs are a multiple of {nf4.BLOCK}", hint="strategy lora")
    state.dtype = dtype
    state.to(place)  # before it is a parameter's, which PyTorch may move without it
    layer = linear4bit(weight.shape[1], weight.shape[0], module.bias is not None, dtype, quant_type="nf4",
                       device="meta")
    layer.weight = Params4bit(weight.packed.to(place), requires_grad=False, quant_state=state, blocksize=nf4.BLOCK,
                              quant_type="nf4", bnb_quantized=True, module=layer)
    layer.quant_state, layer.bias = state, module.bias
    # On some CPUs it would compute evaluations in bfloat16 whatever its type, and training after them has no gradients.
    layer.support_avx512bf16_for_cpu = False
    layer.compute_type_is_set = True
    return layer


def base_difference(
    makes: str, base: Path, adapter: Path, rows: Dataset, device: str, pad_token_id: int
) -> dict[str, float]:
    """How far an adapter's model is from the same adapter over the base as it is stored: what nothing would say where
    somebody loads it over that.

    Computed on the CPU, in the type that the base is stored in: the trained model may fill the GPU.

    Args:
        makes: policy or reward.
        base: model folder with the full weights.
        adapter: model folder of the adapter.
        rows: token columns; the first tokens of the first rows are compared.
        device: where to quantise.

    Returns:
        Mean absolute difference of a token's log-probability, or of a score, and of how many.
    """
    if makes == "reward":
        model = weights_of(AutoModelForSequenceClassification, base, "auto", {"score.weight"}, num_labels=1,
                           pad_token_id=pad_token_id)
    else:
        model = weights_of(AutoModelForCausalLM, base, "auto")
    layers = list(nf4.quantised_layers(model))
    adapted = with_adapter(model, adapter).eval()
    if makes == "reward":
        score_in_float32(adapted)
    ids = [torch.tensor([tokens_of(row)[:TOKENS]]) for row in rows.take(min(ROWS, len(rows)))]
    stored = [_said(adapted, makes, one) for one in ids]
    nf4.round_weights(layers, model.dtype, device)
    apart = torch.cat([(_said(adapted, makes, one) - before).abs() for one, before in zip(ids, stored, strict=True)])
    return {"score" if makes == "reward" else "nats_per_token": float(apart.mean()), "of": len(apart)}


def _said(model: Any, makes: str, ids: torch.Tensor) -> torch.Tensor:
    """[T - 1] log-probabilities of the tokens [1, T] after the first, or the score [1]."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.float()
    if makes == "reward":
        return logits.reshape(-1)
    return logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)


def count(model: Any) -> int:
    """Weights of a model, those that are packed counted as what they stand for."""
    states = ((one, getattr(one, "quant_state", None)) for one in model.parameters())
    return sum(one.numel() if state is None else state.shape.numel() for one, state in states)


def _bitsandbytes(device: str, where: str) -> tuple[Any, Any]:
    """Its Linear4bit and QuantState, where they can be used on `device`."""
    place, expected = f"{where}, strategy.kind", "bitsandbytes, built for this machine"
    try:
        from bitsandbytes.cextension import BNB_BACKEND, ErrorHandlerMockBNBNativeLibrary, lib
        from bitsandbytes.functional import QuantState
        from bitsandbytes.nn.modules import Linear4bit
    except ImportError as error:
        raise ModelError(f"a base in four bits needs the package bitsandbytes: {error}", where=place, found="qlora",
                         expected=expected, hint="install bitsandbytes, or strategy lora") from error
    if device != "cpu" and (isinstance(lib, ErrorHandlerMockBNBNativeLibrary) or not lib.compiled_with_cuda):
        version = torch.version.cuda or torch.version.hip
        raise ModelError("the installed bitsandbytes has no library for this machine", where=place,
                         found=f"backend {BNB_BACKEND}, torch {torch.__version__} for "
                               f"{'CPUs' if version is None else version}, device {device}",
                         expected=expected,
                         hint="`python -m bitsandbytes` says what it looked for; or strategy lora")
    return Linear4bit, QuantState
