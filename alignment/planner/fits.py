"""Whether a training fits the GPUs that are named, and if not what it needs and what the nearest is that would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alignment.config import Full, Lora, QLora, Run, TrainBase
from alignment.config.cards import GIB, Cards
from alignment.config.sharding import ZERO
from alignment.errors import ConfigError
from alignment.planner.auto import SHARDINGS, device_of
from alignment.planner.estimate import Memory
from alignment.planner.need import least_rows, memory_of
from alignment.planner.sizes import ModelSize

SHORTEST = 64
"""Tokens of a row, where rows are not known: what does not fit with these fits with none."""
PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "cache", "buffers", "overhead")


def misfit(
    run: Run, stage: TrainBase, size: ModelSize | None, cards: Cards | None, length: int = SHORTEST
) -> ConfigError | None:
    """What is wrong where a stage of one row (or as many as its method needs) is more than a GPU has; None where it
    fits, or where that is not known.

    Args:
        length: of the longest row.
    """
    if size is None or cards is None or cards.card is None:
        return None
    sharding = "none" if run.compute.sharding == "auto" else run.compute.sharding
    needed = _needed(stage, size, cards, sharding, length, run.compute.deepspeed)
    if needed.total <= cards.card.memory:
        return None
    nearest = next((f"{words}: {memory.total / GIB:.1f} GiB" for words, memory in _others(run, stage, size, cards,
                    sharding, length) if memory.total <= cards.card.memory), None)
    return ConfigError(
        f"strategy {stage.strategy.kind} does not fit {cards}",
        found=f"{needed.total / GIB:.1f} GiB: {in_parts(needed)}",
        expected=f"at most {cards.card.memory_gib:.1f} GiB on each GPU",
        hint="nothing fits: a larger GPU, more of them, or a smaller model" if nearest is None else
        f"the nearest that fits is {nearest}")


def in_parts(memory: Memory) -> str:
    """`weights 15.0, activations 1.2` in GiB, the largest first."""
    parts = sorted(((getattr(memory, name), name) for name in PARTS), reverse=True)
    return ", ".join(f"{name} {amount / GIB:.1f}" for amount, name in parts if amount >= 0.05 * GIB)


def _needed(
    stage: TrainBase, size: ModelSize, cards: Cards, sharding: str, length: int, options: Mapping[str, Any] | None
) -> Memory:
    device = device_of(cards, sharding, options)
    return memory_of(stage, size, device, rows=least_rows(stage, device), length=min(length, stage.longest))


def _others(
    run: Run, stage: TrainBase, size: ModelSize, cards: Cards, sharding: str, length: int
) -> Iterator[tuple[str, Memory]]:
    """What could be said instead, with what it needs: more sharding first, then fewer weights that are trained."""
    if cards.number > 1:
        for other in (*SHARDINGS[1:], "zero3-offload"):
            if ZERO[other] > ZERO.get(sharding, 0) or other == "zero3-offload" != sharding:
                yield f"sharding: {other}", _needed(stage, size, cards, other, length, run.compute.deepspeed)
    adapter = stage.adapter
    shape = {} if adapter is None else {"r": adapter.r, "alpha": adapter.alpha, "targets": adapter.targets}
    for kind, made in (("lora", Lora), ("qlora", QLora)):
        if isinstance(stage.strategy, Full) or (kind == "qlora" and adapter is not None and not adapter.quantised):
            other_stage = stage.model_copy(update={"strategy": made.model_validate({"kind": kind, **shape})})
            yield f"strategy: {{kind: {kind}}}", _needed(other_stage, size, cards, sharding, length,
                                                         run.compute.deepspeed)
