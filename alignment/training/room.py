"""Whether a forward and backward pass of so many rows fits this worker's memory, by the planner's estimate.

For stages whose `micro_batch_size` is left out. Measures nothing: rows of the greatest length are assumed.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from alignment.artifacts import Artifact
from alignment.config import Compute, TrainBase
from alignment.inference.info import base_folder
from alignment.planner import memory
from alignment.planner.counting import size_of_folder
from alignment.planner.need import Device, beside_bytes, has_room, memory_of
from alignment.progress import console
from alignment.training.checkpoints import everywhere


def room_for(
    stage: TrainBase, start: Artifact, device: str, dtype: torch.dtype, length: int,
    compute: Compute | None = None, frozen: Artifact | None = None,
) -> Callable[[int], bool]:
    """Whether so many rows fit on every rank; to be asked on all of them alike, with the weights in memory.

    Args:
        length: of the longest row, in tokens.
        compute: says how the model is shared out.
        frozen: of a second model, which is not in memory yet.
    """
    size, on_gpu = size_of_folder(base_folder(start)), device != "cpu"
    second = None if frozen is None else size_of_folder(base_folder(frozen))
    if size is None and stage.micro_batch_size is None and os.environ.get("RANK", "0") == "0":
        console.print(f"  {stage.name}: the planner does not know the size of this model, so rows per forward pass are "
                      "not held against the memory; micro_batch_size says how many")
    computed = stage.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})

    def fits(rows: int) -> bool:
        if size is None:  # no estimate without the model's sizes
            return True
        worker = Device(on_gpu, _workers()) if compute is None else Device(
            on_gpu, _workers(), compute.sharding, compute.deepspeed)
        needed = memory_of(computed, size, worker, rows=rows, length=length)
        free = torch.cuda.mem_get_info()[0] if on_gpu else memory.free_memory() / _neighbours()
        return everywhere(has_room(needed, free - beside_bytes(computed, second, worker)))

    return fits


def _workers() -> int:
    return max(1, int(os.environ.get("WORLD_SIZE", "1")))


def _neighbours() -> int:
    """Workers on this machine, which share its memory."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
