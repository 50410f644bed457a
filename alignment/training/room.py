"""Whether a forward and backward pass of so many rows fits this worker's memory, by the planner's estimate.

For stages whose `micro_batch_size` is left out. Measures nothing: rows of the greatest length are assumed.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from alignment.artifacts import Artifact
from alignment.config import TrainBase
from alignment.inference.info import base_folder
from alignment.planner import estimate, memory
from alignment.planner.sizes import size_of_folder
from alignment.training.checkpoints import everywhere

SHARE = 0.8
"""Of the memory that is free; the rest is for what an estimate does not know."""


def room_for(
    stage: TrainBase, start: Artifact, device: str, dtype: torch.dtype, length: int, frozen: Artifact | None = None
) -> Callable[[int], bool]:
    """Whether so many rows fit on every rank; to be asked on all of them alike, with the weights in memory.

    Args:
        length: of the longest row, in tokens.
        frozen: of a second model, which is not in memory yet.
    """
    size, adapter = size_of_folder(base_folder(start)), stage.adapter
    on_gpu = device != "cpu"
    second = None if frozen is None else size_of_folder(base_folder(frozen))
    beside = 0 if second is None else second.parameters * (4 if stage.frozen_in_float32 else dtype.itemsize)

    def fits(rows: int) -> bool:
        if size is None:  # no estimate without the model's sizes
            return True
        needed = estimate.train_memory(
            size, lora_rank=adapter.r if adapter else None, frozen_bytes=dtype.itemsize,
            sequences=rows * stage.sequences, length=length, head=stage.makes == "policy",
            checkpointing=bool(stage.trl.get("gradient_checkpointing", on_gpu)),
            reference=stage.reference_mode == "adapter", whole_logits=stage.whole_logits)
        free = torch.cuda.mem_get_info()[0] if on_gpu else memory.free_memory() / _neighbours()
        return everywhere(needed.total - needed.weights + beside <= SHARE * free)

    return fits


def _neighbours() -> int:
    """Workers on this machine, which share its memory."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
