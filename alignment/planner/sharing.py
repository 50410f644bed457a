"""Who holds what of a model in training: weights, gradients and optimizer states over the workers, by ZeRO stage, and
what a process needs beside its tensors: on its GPU, in host memory, in /dev/shm and on disk.

Trained weights are float32 with or without ZeRO (training/sharding.py), so ZeRO's (arXiv:1910.02054, 5) partitions are
of 4 + 4 + 8 bytes, and of a float32 copy that DeepSpeed steps on, instead of 2 + 2 + 12.
"""

from __future__ import annotations

from dataclasses import dataclass

from alignment.config.sharding import ZERO

FLOAT32 = 4
GIB = 2**30
BUCKET = 500_000_000
"""Elements of DeepSpeed 0.19's `reduce_bucket_size`, whose buffer is there in every backward pass, whatever the model
(runtime/zero/stage_1_and_2.py `_fill_param_grad_accum_attribute`, stage3.py); float32 here."""
LIVE = 1_000_000_000
"""Elements of `stage3_max_live_parameters`: gathered weights that ZeRO-3 keeps for use again."""
CONTEXT = 1 * GIB
"""Of a GPU, before the first tensor: context, kernels and cuBLAS's workspace. Hugging Face measured 1.3 GB when all
kernels were loaded at once ("Model training anatomy"); since CUDA 11.7 they are loaded when used. An assumption."""
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
class Held:
    """Bytes that one worker holds between passes, and buffers that a backward pass adds; `host`: in host memory."""

    weights: float
    gradients: float
    optimizer: float
    buffers: float = 0.0
    host: float = 0.0


def held(
    trained: int, frozen: float, optimizer: float, *, sharding: str = "none", workers: int = 1, bucket: int = BUCKET
) -> Held:
    """Of one worker.

    Args:
        trained: weights that are trained, in float32.
        frozen: bytes of those that are not.
        optimizer: bytes of its states for a trained weight.
    """
    stage, share = ZERO.get(sharding, 0), 1 / workers
    whole = trained * FLOAT32
    if not stage:  # DistributedDataParallel copies gradients into its buckets
        return Held(whole + frozen, whole, trained * optimizer, whole if workers > 1 else 0.0)
    stepped = (whole * 2 + trained * optimizer) * share  # DeepSpeed's float32 copy, its gradient, the states
    if stage < 3:
        return Held(whole + frozen, whole if stage == 1 else whole * share, stepped, bucket * FLOAT32)
    live = min(LIVE * FLOAT32, whole + frozen)
    buffers = 2 * bucket * FLOAT32 + live  # communication overlaps by default: two buckets
    if sharding == "zero3-offload":
        return Held(0.0, 0.0, 0.0, buffers, host=(2 * whole + frozen) * share + stepped)
    return Held((whole + frozen) * share, whole * share, stepped, buffers)


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
