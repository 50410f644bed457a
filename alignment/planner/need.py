"""What one train stage needs on a worker, from its config, its model's size and the device: the one place where a
stage's keys become the numbers that estimate.py takes. The plan, `auto`, checks and training ask the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from alignment.config import TrainBase
from alignment.config.cards import Cards
from alignment.config.sharding import zero_stage
from alignment.planner import estimate, sharing
from alignment.planner.estimate import Memory
from alignment.planner.sizes import ModelSize

SHARE = 0.8
"""Of the memory that is free beside weights; the rest is for what an estimate does not know."""


@dataclass(frozen=True)
class Device:
    """What a worker computes on.

    Attributes:
        workers: that train together, each with such a device.
        options: DeepSpeed's, as `compute.deepspeed` has them.
    """

    on_gpu: bool
    workers: int = 1
    sharding: str = "none"
    options: Mapping[str, Any] | None = None

    def zero(self, size: ModelSize) -> sharing.Zero:
        """What of the options a model's memory depends on."""
        return sharing.zero_of(self.sharding, self.options, size.hidden)


def memory_of(
    stage: TrainBase, size: ModelSize, device: Device, *, rows: int, length: int, second: ModelSize | None = None
) -> Memory:
    """Of one worker at its highest moment; an upper bound where answers are drawn, since what they keep is freed then.

    Args:
        rows: of one forward pass.
        length: of the longest row, in tokens.
        second: of the stage's `frozen` model, where it has one.
    """
    adapter, value = stage.adapter, value_bytes(stage.arithmetic)
    memory = estimate.train_memory(
        size, lora_rank=None if adapter is None else adapter.r, frozen_bytes=value,
        sequences=rows * stage.sequences, length=stage.longest if getattr(stage, "packing", False) else length,
        head=stage.makes == "policy", checkpointing=checkpoints(stage, device.on_gpu),
        reference=stage.reference_mode == "adapter", quantised=adapter is not None and adapter.quantised is not None,
        optimizer=optimizer_bytes(stage), accumulated=stage.batch_size > rows * device.workers,
        sharding=device.sharding, workers=device.workers, zero=device.zero(size), autocast=device.on_gpu,
        on_gpu=device.on_gpu)
    copies = beside_bytes(stage, second, device) + stage.scorers * size.parameters * value
    copies += _shared(size.parameters * estimate.FLOAT32, device) if stage.keeps_start else 0
    logits, cache = memory.logits, 0
    if stage.whole_logits:  # themselves, their log-probabilities (of chosen ones and all), and a gradient
        held = rows * stage.sequences * (stage.drawn or length) * size.vocab * estimate.FLOAT32
        logits = max(logits, 4 * held)
    if stage.drawn:
        cache = estimate.generate_memory(size, weight_bytes=value, length=length, on_gpu=device.on_gpu,
                                         sequences=-(-stage.batch_size // device.workers)).cache
        if zero_stage(device.sharding) == 3:  # a worker answers with all weights, of which it has a share
            cache += round(sum(_whole(stage, size)) - memory.weights)
    return replace(memory, weights=memory.weights + copies, logits=logits, cache=cache)


def beside_bytes(stage: TrainBase, second: ModelSize | None, device: Device) -> int:
    """Weights of the stage's `frozen` model, as a worker holds them."""
    if second is None:
        return 0
    value = estimate.FLOAT32 if stage.frozen_in_float32 else value_bytes(stage.arithmetic)
    return _shared(second.parameters * value, device)


def _shared(weights: int, device: Device) -> int:
    """A worker's bytes of a frozen model's: ZeRO-3 shares it out as well, what shares out less leaves it whole."""
    return -(-weights // device.workers) if zero_stage(device.sharding) == 3 else weights


def _whole(stage: TrainBase, size: ModelSize) -> tuple[float, float]:
    """Bytes of all weights: those that are trained, in float32, and those that are not."""
    adapter = stage.adapter
    trained, frozen = estimate.states(
        size, lora_rank=None if adapter is None else adapter.r, frozen_bytes=value_bytes(stage.arithmetic),
        head=stage.makes == "policy", reference=stage.reference_mode == "adapter",
        quantised=adapter is not None and adapter.quantised is not None)
    return trained * estimate.FLOAT32, frozen


def beside(
    stage: TrainBase, size: ModelSize, device: Device, second: ModelSize | None = None
) -> sharing.Beside:
    """Host memory of a worker, /dev/shm of a machine and disk of a training."""
    whole, frozen = _whole(stage, size)
    trained = round(whole / estimate.FLOAT32)
    moved = sharing.held(trained, frozen, optimizer_bytes(stage), sharding=device.sharding, workers=device.workers,
                         zero=device.zero(size))
    # Built whole as well, in each worker's host memory, before they are moved or shared out.
    copies = beside_bytes(stage, second, Device(device.on_gpu)) + (whole if stage.keeps_start else 0)
    return sharing.beside(trained, frozen + copies, optimizer_bytes(stage), keep=stage.checkpoints.keep,
                          on_gpu=device.on_gpu, workers=device.workers, offloaded=moved.host,
                          best=stage.checkpoints.final == "best")


def checkpoints(stage: TrainBase, on_gpu: bool) -> bool:
    """Whether activations are computed again: on GPUs, where the stage does not say otherwise."""
    return bool(stage.trl.get("gradient_checkpointing", on_gpu))


def value_bytes(arithmetic: str | None) -> int:
    """Bytes of a value in a stage's dtype."""
    return estimate.FLOAT32 if arithmetic == "float32" else estimate.BFLOAT16


def optimizer_bytes(stage: TrainBase) -> float:
    """Bytes of the optimizer's states for a trained weight."""
    name = str(stage.trl.get("optim", stage.by_strategy.get("optim", "")))
    return estimate.ADAM_8BIT if "8bit" in name else estimate.ADAM


def has_room(memory: Memory, free: float) -> bool:
    """Whether what is needed beside the weights, which lie there already, leaves `1 - SHARE` of what is free."""
    return memory.total - memory.weights - min(memory.overhead, sharing.CONTEXT) <= SHARE * free


def fitting_rows(
    stage: TrainBase, size: ModelSize, device: Device, cards: Cards, length: int, second: ModelSize | None = None
) -> int:
    """Rows of one forward pass, as training on such a card will choose them (training/room.py)."""
    def fits(rows: int) -> bool:
        if cards.card is None:
            return True
        memory = memory_of(stage, size, device, rows=rows, length=length, second=second)
        return has_room(memory, cards.card.memory - memory.weights - sharing.CONTEXT)

    return max(1, stage.micro_batch(device.workers, fits))


def least_rows(stage: TrainBase, device: Device) -> int:
    """The fewest rows of one forward pass that the stage lets training choose."""
    return max(1, stage.micro_batch(device.workers, lambda rows: False))
