"""NF4 with double quantisation (Dettmers et al. 2023, arXiv:2305.14314): weights -> four bits -> weights.

In plain tensor operations whose every result is exact or correctly rounded and independent of order, so that the same
weights come out of a CPU and a GPU, of one thread and of many: who evaluates an adapter has the base that it was
trained over, to the bit, and needs no bitsandbytes. Its layout is bitsandbytes's, whose kernels train over it
(training/quantised.py). bitsandbytes's own quantisation takes a mean in whatever order the machine adds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from transformers.pytorch_utils import Conv1D

BLOCK, GROUP = 64, 256
"""Weights that share a scale; scales that share a scale."""
NAME = "nf4-double"
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
"""The sixteen values, quantiles of a normal distribution (appendix E of the paper)."""
_PART = 1 << 16
"""Blocks that are computed at once, so that a large layer needs no several copies in float32."""


class Nf4(NamedTuple):
    """A quantised weight, in bitsandbytes's layout.

    Attributes:
        packed: [(numel + 1) / 2, 1] uint8, two values each, the first in the upper four bits.
        scales: [numel / BLOCK] uint8, places in `scale_levels`.
        groups: [numel / BLOCK / GROUP] float32, what the values of `scale_levels` are multiplied by.
        offset: [] float32, the mean scale, which is taken off before scales are quantised.
        shape: of the weight: [out, in].
    """

    packed: torch.Tensor
    scales: torch.Tensor
    groups: torch.Tensor
    offset: torch.Tensor
    shape: torch.Size


def quantise(weight: torch.Tensor) -> Nf4:
    """Quantise a weight, as it is stored: rounded to another type before, it would be another base.

    Args:
        weight: [out, in], of any floating type; finite.
    """
    flat = weight.detach().reshape(-1)
    levels = torch.tensor(LEVELS, device=flat.device)
    borders = (levels[1:] + levels[:-1]) / 2
    packed, scales = [], []
    for part in torch.split(flat, BLOCK * _PART):
        blocks = _padded(part.float(), BLOCK)
        scale = blocks.abs().amax(1)
        places = torch.bucketize(blocks / _not_zero(scale)[:, None], borders, out_int32=True).to(torch.uint8)
        packed.append((places[:, ::2] << 4 | places[:, 1::2]).reshape(-1))
        scales.append(scale)
    scale = torch.cat(scales)
    offset = _mean(scale)
    apart = _padded(scale - offset, GROUP)
    groups = apart.abs().amax(1)
    levels = scale_levels().to(flat.device)
    borders = (levels[1:] + levels[:-1]) / 2
    small = torch.bucketize(apart / _not_zero(groups)[:, None], borders, out_int32=True).to(torch.uint8)
    return Nf4(torch.cat(packed)[:(flat.numel() + 1) // 2, None], small.reshape(-1)[:len(scale)].contiguous(), groups,
               offset, weight.shape)


def dequantise(weight: Nf4) -> torch.Tensor:
    """The weight that the four bits stand for: float32, [out, in]."""
    device, count = weight.packed.device, weight.shape.numel()
    levels, of_scales = torch.tensor(LEVELS, device=device), scale_levels().to(device)
    scale = (of_scales[_padded(weight.scales, GROUP).int()] * weight.groups[:, None]).reshape(-1)[:len(weight.scales)]
    scale = scale + weight.offset
    flat = torch.empty(count, device=device)
    parts = zip(torch.split(weight.packed[:, 0], BLOCK * _PART // 2), torch.split(scale, _PART),
                torch.split(flat, BLOCK * _PART), strict=True)
    for packed, of_part, out in parts:
        places = torch.stack([packed >> 4, packed & 15], 1).reshape(-1).int()
        out.copy_((levels[_padded(places, BLOCK)] * of_part[:, None]).reshape(-1)[:len(out)])
    return flat.reshape(weight.shape)


def quantised_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """The linear layers that are quantised, by their dotted names: all but the output head and a reward model's.

    Embeddings, norms and experts that are one parameter are no linear layers. The same layers as transformers with a
    BitsAndBytesConfig.
    """
    heads = (model.get_output_embeddings(), getattr(model, "score", None))
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, module in model.named_modules():
        if (type(module) is torch.nn.Linear or isinstance(module, Conv1D)) and not any(
                module is head for head in heads) and not kept.intersection(name.split(".")):
            yield name, module


def quantised_layer(module: Any, device: str | torch.device) -> Nf4:
    """A layer's weight, quantised on `device` as [out, in] (Conv1D has it the other way round)."""
    weight = module.weight.to(device)
    return quantise(weight.T if isinstance(module, Conv1D) else weight)


def round_weights(layers: Iterable[tuple[str, Any]], dtype: torch.dtype, device: str | torch.device = "cpu") -> None:
    """Put in place of each layer's weight what its four bits stand for.

    Args:
        layers: those of `quantised_layers`, with weights as they are stored.
        dtype: of the weights then.
        device: where to compute; the result is the same everywhere, and lies where the weight lay.
    """
    for _, module in layers:
        rounded = dequantise(quantised_layer(module, device)).to(module.weight.device, dtype)
        module.weight = torch.nn.Parameter(rounded.T.contiguous() if isinstance(module, Conv1D) else rounded,
                                           requires_grad=False)


@cache
def scale_levels() -> torch.Tensor:
    """[256] float32: the eight-bit type of the scales, seven decades with ever more values (arXiv:1511.04561; as
    bitsandbytes's dynamic map)."""
    values = [0.0, 1.0]
    for decade in range(7):
        steps = 1 << decade
        edges = [0.1 + 0.9 * step / steps for step in range(steps + 1)]
        for low, high in pairwise(edges):
            value = 10.0 ** (decade - 6) * (low + high) / 2
            values += [value, -value]
    return torch.tensor(sorted(values))


def _padded(values: torch.Tensor, count: int) -> torch.Tensor:
    """[n] -> [ceil(n / count), count], zeros at the end."""
    return torch.nn.functional.pad(values, (0, -len(values) % count)).view(-1, count)


def _not_zero(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, 1.0, scale)


def _mean(scale: torch.Tensor) -> torch.Tensor:
    """The mean, [] float32, whatever the order of the sum: in whole numbers of 2^-40 of the greatest."""
    most = scale.max().double()
    whole = (scale.double() / torch.where(most == 0, 1.0, most) * 2.0 ** 40).round().long().sum()
    return (whole.double() / (2.0 ** 40 * len(scale)) * most).float()
