"""Who holds what of a model in training: weights, gradients and optimizer states over the workers, by ZeRO stage, and
what a process needs beside its tensors: on its GPU, in host memory, in /dev/shm and on disk.

Trained weights are float32 with or without ZeRO (training/sharding.py), so ZeRO's (arXiv:1910.02054, 5) partitions are
of 4 + 4 + 8 bytes, and of a float32 copy that DeepSpeed steps on, instead of 2 + 2 + 12.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignment.config.sharding import ZERO

FLOAT32 = 4
GIB = 2**30
BUCKET, LIVE, PERSISTENT = 500_000_000, 1_000_000_000, 100_000
"""DeepSpeed 0.19's defaults of `reduce_bucket_size`, `stage3_max_live_parameters` and
`stage3_param_persistence_threshold` (runtime/zero/config.py), in elements."""
CONTEXT = 1 * GIB
"""Of a GPU, before the first tensor: context, kernels and cuBLAS's workspace. Hugging Face measured 1.3 GB when all
kernels were loaded at once ("Model training anatomy"); since CUDA 11.7 they are loaded when used. An assumption, which
with the next but one meets LLaMA-Factory's peaks on an A100 (docs/planner.md)."""
NCCL = GIB // 2
"""Of a GPU with neighbours: NCCL's channels and buffers. An assumption."""
FRAGMENTATION = 0.05
"""Of what is allocated and freed in each step, for holes between blocks (torch's allocator rounds to 2 MiB and keeps
segments of 20 MiB and more: torch/csrc CUDACachingAllocator). An assumption."""
LIBRARIES = 3 * GIB
"""Host memory of one process with torch, transformers, TRL, PEFT and DeepSpeed loaded."""
NCCL_SHM = GIB
"""/dev/shm for NCCL between the ranks of a machine."""


@dataclass(frozen=True)
class Zero:
    """What of DeepSpeed's options a worker's memory depends on. `allgather_bucket_size` is not among them: torch
    gathers partitions in place (runtime/utils.py `all_gather_dp_groups`).

    Attributes:
        bucket: elements of a buffer for gradients, float32, that is there in every backward pass, whatever the model
            (runtime/zero/stage_1_and_2.py `setup_buckets`, stage3.py).
        buckets: how many: two where communication overlaps, by default in ZeRO-3 alone.
        live: elements of gathered weights that ZeRO-3 keeps for use again; a layer's own are always gathered.
        persistent: elements up to which ZeRO-3 keeps a weight whole on every worker.
        optimizer_away, weights_away: states, and weights, wait in host memory.
    """

    bucket: int = BUCKET
    buckets: int = 1
    live: int = LIVE
    persistent: int = PERSISTENT
    optimizer_away: bool = False
    weights_away: bool = False


def zero_of(sharding: str, options: Mapping[str, Any] | None, hidden: int) -> Zero:
    """Of `compute.sharding` and `compute.deepspeed`; `auto` as transformers fills it in (integrations/deepspeed.py
    `trainer_config_finalize`).

    Args:
        hidden: the model's width.
    """
    given = (options or {}).get("zero_optimization")
    given = given if isinstance(given, Mapping) else {}
    away = {"device": "cpu"} if sharding == "zero3-offload" else {}

    def number(key: str, default: int, auto: int) -> int:
        value = given.get(key, default)
        return auto if value == "auto" else int(value)

    def elsewhere(key: str) -> bool:
        said = given.get(key, away)
        return isinstance(said, Mapping) and said.get("device", "none") != "none"

    overlap = given.get("overlap_comm")
    return Zero(
        number("reduce_bucket_size", BUCKET, hidden * hidden),
        2 if (ZERO.get(sharding) == 3 if overlap in (None, "auto") else overlap) else 1,
        number("stage3_max_live_parameters", LIVE, LIVE),
        number("stage3_param_persistence_threshold", PERSISTENT, 10 * hidden),
        elsewhere("offload_optimizer"), elsewhere("offload_param"))


@dataclass(frozen=True)
class Held:
    """Bytes that one worker holds between passes, and buffers that a backward pass adds; `host`: in host memory."""

    weights: float
    gradients: float
    optimizer: float
    buffers: float = 0.0
    host: float = 0.0


def held(
    trained: int, frozen: float, optimizer: float, *, sharding: str = "none", workers: int = 1,
    zero: Zero | None = None, largest: int = 0, kept: float = 0.0,
) -> Held:
    """Of one worker.

    Args:
        trained: weights that are trained, in float32.
        frozen: bytes of those that are not.
        optimizer: bytes of its states for a trained weight.
        zero: DeepSpeed's options, where they are not its own defaults.
        largest: elements of the largest module's weights, which ZeRO-3 gathers whatever `live` says.
        kept: bytes of the weights that ZeRO-3 keeps whole (`persistent`).
    """
    zero = zero or zero_of(sharding, None, 0)
    stage, share = ZERO.get(sharding, 0), 1 / workers
    whole = trained * FLOAT32
    if not stage:  # DistributedDataParallel copies gradients into its buckets
        return Held(whole + frozen, whole, trained * optimizer, whole if workers > 1 else 0.0)
    stepped = (whole * 2 + trained * optimizer) * share  # DeepSpeed's float32 copy, its gradient, the states
    here, away = (0.0, stepped) if zero.optimizer_away else (stepped, 0.0)
    buffers = float(zero.buckets * zero.bucket * FLOAT32)
    if stage < 3:
        return Held(whole + frozen, whole if stage == 1 else whole * share, here, buffers, host=away)
    buffers += min(max(zero.live, largest) * FLOAT32, whole + frozen)
    weights, gradients = (whole + frozen) * share, whole * share
    kept = min(kept, whole + frozen)
    weights += kept * (1 - share)
    if zero.weights_away:
        weights, away = kept, away + weights
    if zero.optimizer_away:  # and gradients, as they come
        gradients, away = 0.0, away + gradients
    return Held(weights, gradients, here, buffers, host=away)


@dataclass(frozen=True)
class Beside:
    """Bytes beside a worker's tensors on its device: host memory of a worker, /dev/shm of a machine, disk."""

    host: int
    shm: int
    disk: int


def beside(
    trained: int, frozen: float, optimizer: float, *, keep: int, on_gpu: bool, workers: int = 1,
    offloaded: float = 0.0, best: bool = False,
) -> Beside:
    """What a training takes beside its device.

    A worker builds the model whole in host memory, in the types that it will have. A checkpoint has the trained weights
    and the optimizer's states; one more than `keep` is there while it is written. What is published has the weights
    once more (twice with `final: best`).

    Args:
        offloaded: bytes that ZeRO keeps in host memory.
    """
    state = trained * FLOAT32
    published = state * (2 if best else 1)
    return Beside(
        host=round(LIBRARIES + (state + frozen if on_gpu else 0) + offloaded),
        shm=NCCL_SHM if on_gpu and workers > 1 else 0,
        disk=round((keep + 1) * (state + trained * optimizer) + published),
    )


def overhead(passing: float, *, on_gpu: bool, workers: int = 1) -> int:
    """Bytes of a GPU that no tensor has: context, NCCL, and holes between blocks of what comes and goes."""
    if not on_gpu:
        return 0
    return round(CONTEXT + (NCCL if workers > 1 else 0) + FRAGMENTATION * passing)
