"""`strategy: {kind: auto}` and `sharding: auto`, resolved Run -> Run before keys are made: what is learned depends on
the first, so every machine that looks at the run has to see the same.

The rule. On a CPU: lora. On one GPU: full, else lora, where they leave two fifths of it free, else qlora where it fits
at all. On several: full, else lora, else qlora, each with the least sharding that fits (none, zero1, zero2, zero3), and
full with zero3-offload last. Stages that hand a model on to each other get one kind, as an adapter is continued only by
one of its own kind. Of a stage the default micro-batch counts (8 rows at most) at its max_length, never its rows: so
the choice is the same before and after the data is there. Chooses nothing that the run file says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from alignment.config import AnyStage, Compute, Full, Lora, Profile, QLora, Run, TrainBase, as_train
from alignment.config.arithmetic import settled
from alignment.config.cards import GIB, Cards, known_cards, load_card
from alignment.config.hardware import Native, device_here, gpu_here
from alignment.config.stages.strategies import Auto
from alignment.errors import ConfigError
from alignment.planner.context_length import fitted, of_stage
from alignment.planner.estimate import Memory
from alignment.planner.model_sizes import of_stage as size_of_stage
from alignment.planner.need import Device, least_rows, memory_of
from alignment.planner.sizes import ModelSize

LEFT = 0.6
"""Of one GPU, at most, where `auto` takes more than qlora: rows are longer than they were, an evaluation or a second
model to score with comes on top, and the choice is made once."""
SHARDINGS = ("none", "zero1", "zero2", "zero3")
Hardware = Callable[[AnyStage], Cards | None]
"""Stage -> the GPUs that compute it together; None where that is not known."""


def resolved(run: Run, profile: Profile | None = None, hardware: Hardware | None = None) -> tuple[Run, Profile | None]:
    """The run in which no strategy is `auto`, and its profile, one of which has the sharding that was chosen.

    Args:
        hardware: instead of that of the profile or of this machine.

    Raises:
        ConfigErrors, ConfigError: a GPU or a model that `auto` needs to know is not known, or nothing fits.
    """
    open_ = bool(undecided(run))
    compute = run.compute if profile is None else profile.compute
    if not open_ and not (compute.sharding == "auto" and compute.gpu is not None):
        return run, profile
    hardware = hardware or hardware_of(run, profile)
    executed = _arithmetic(run if profile is None else profile.applied(run), hardware)
    chosen: dict[str, tuple[str, str, str]] = {}
    shardings = []
    for chain in _chains(executed):
        found = _choose(executed, chain, hardware, compute.sharding)
        chosen |= {stage.name: found for stage in chain if _is_auto(stage)}
        shardings.append(found[1])
    stages = tuple(_as_chosen(stage, *chosen[stage.name][::2]) if stage.name in chosen else stage
                   for stage in run.stages)
    run = run.model_copy(update={"stages": stages})
    order = (*SHARDINGS, "zero3-offload")
    sharding = max(shardings, key=order.index, default="none")
    if compute.sharding != "auto" or sharding == "none":
        return run, profile
    compute = compute.model_copy(update={"sharding": sharding})
    if profile is None:
        return run.model_copy(update={"compute": compute}), None
    return run, profile.model_copy(update={"compute": compute})


def undecided(run: Run) -> list[str]:
    """Names of the stages whose strategy is still `auto`."""
    return [stage.name for stage in run.stages if _is_auto(stage)]


def hardware_of(run: Run, profile: Profile | None) -> Hardware:
    """The GPUs of each stage: of a profile's pods, or of this machine and its Ray workers."""
    compute = run.compute if profile is None else profile.compute

    def of(stage: AnyStage) -> Cards | None:
        if profile is not None and profile.cluster is not None:
            workers, pod = profile.workers_of(stage), profile.pod_of(stage)
            count = round(workers * compute.gpus_per_worker) if workers else pod.gpus
            if compute.device == "cpu" or not count:
                return Cards("none", None, 0)
        else:
            workers = compute.workers if stage.on_workers else 0
            count = max(1, round(workers * compute.gpus_per_worker))
            if device_here(compute) == "cpu":
                return Cards("none", None, 0)
        if compute.gpu is not None:
            return Cards(compute.gpu.lower(), load_card(compute.gpu), count)
        return None if profile is not None and profile.cluster is not None else _seen(count)

    return of


def _seen(count: int) -> Cards | None:
    """GPUs of this machine, where their kind is known; their memory is what the driver says."""
    seen = gpu_here()
    if seen is None:
        return None
    product = seen[0].replace(" ", "-")
    for name in known_cards():
        card = load_card(name)
        if product in card.products:
            return Cards(name, card.model_copy(update={"memory_gib": min(card.memory_gib, seen[1] / GIB)}), count)
    return None


def unlike(compute: Compute) -> tuple[str, int, int] | None:
    """Where `compute.gpu` names another GPU than this machine's first: the name of that, its bytes, those of the named
    one. None where they are alike, or one of them is not known."""
    seen = gpu_here() if compute.gpu is not None and device_here(compute) == "cuda" else None
    if seen is None or compute.gpu is None or compute.address is not None or os.environ.get("RAY_ADDRESS"):
        return None
    card = load_card(compute.gpu)
    alike = seen[0].replace(" ", "-") in card.products and seen[1] >= card.memory  # ECC and MIG take some of it
    return None if alike else (*seen, card.memory)


def device_of(cards: Cards, sharding: str = "none", options: Mapping[str, Any] | None = None) -> Device:
    """What the estimate needs to know of so many GPUs, and of `compute.deepspeed`."""
    return Device(cards.card is not None, max(1, cards.number), sharding, options)


def most_memory(run: Run, stage: TrainBase, size: ModelSize, device: Device, *, least: bool = False) -> Memory:
    """Of a stage at its max_length, with the rows of a forward pass that it asks for, or the fewest that it allows."""
    rows = least_rows(stage, device) if least else max(1, stage.micro_batch(device.workers))
    limited = as_train(fitted(stage, lambda name: of_stage(run, name))) or stage
    second = None if stage.frozen is None else size_of_stage(run, run.stage(stage.frozen.stage))
    return memory_of(stage, size, device, rows=rows, length=limited.longest, second=second)


def _choose(run: Run, chain: list[TrainBase], hardware: Hardware, asked: str) -> tuple[str, str, str]:
    """(kind, sharding, why) for stages that hand a model on to each other; their own kind where they say one."""
    auto = [stage for stage in chain if _is_auto(stage)]
    cards = [hardware(stage) for stage in chain]
    if any(one is not None and one.card is None for one in cards):
        return "lora", "none", _without_gpu(run.compute, chain)
    where = f"stage {chain[0].name}, strategy"
    if None in cards:
        raise ConfigError("auto does not know the GPU", where=where, found="auto",
                          expected="lora, qlora or full; or compute.gpu, the GPU's name",
                          hint=f"compute: {{gpu: NAME}} in the profile or the run file; known are "
                               f"{', '.join(known_cards())}")
    sizes = [size_of_stage(run, stage) for stage in chain]
    if None in sizes:
        if not auto:
            return "", "none", ""
        raise ConfigError(
            "auto does not know how large the model is before it is imported", where=where, found="auto",
            expected="lora, qlora or full",
            hint="where it is a hub's, `hf download REPO config.json` is enough to know it")
    seen = [one for one in cards if one is not None]
    first = seen[0]
    for kind, sharding in _candidates(auto, first, asked):
        needed = max((_needed(run, stage, kind, size, cards_of, sharding, least=kind == "qlora")
                      for stage, size, cards_of in zip(chain, sizes, seen, strict=True) if size is not None),
                     key=lambda pair: pair[1].total / pair[0])
        card, memory = needed
        share = LEFT if first.number == 1 and kind in ("full", "lora") and auto else 1.0
        if memory.total <= share * card:
            return kind, sharding, _why(kind, sharding, first, memory, card)
    if not auto:
        return "", "none", ""  # the check says what does not fit
    raise ConfigError(f"no strategy fits {first}", where=where, found="auto",
                      expected=f"at most {needed[0] / GIB:.1f} GiB on each GPU; {kind} needs "
                               f"{needed[1].total / GIB:.1f}",
                      hint="a larger GPU, a smaller model, or a lower max_length")


def _candidates(auto: list[TrainBase], cards: Cards, asked: str) -> Iterator[tuple[str, str]]:
    kinds: tuple[str, ...] = ("full", "lora", "qlora") if auto else ("",)
    if auto and any(getattr(stage, "reference", None) == "adapter" for stage in auto):
        kinds = ("lora", "qlora")
    open_ = cards.number > 1 and asked == "auto"
    shardings = SHARDINGS if open_ else ("none" if asked == "auto" else asked,)
    for kind in kinds:
        yield from ((kind, sharding) for sharding in shardings)
    if open_ and kinds[0] != "lora":
        yield kinds[0], "zero3-offload"


def _needed(
    run: Run, stage: TrainBase, kind: str, size: ModelSize, cards: Cards, sharding: str, *, least: bool
) -> tuple[int, Memory]:
    """Bytes of the GPU, and what the stage needs of it."""
    assert cards.card is not None
    made = _as_chosen(stage, kind, None) if kind and _is_auto(stage) else stage
    device = device_of(cards, sharding, run.compute.deepspeed)
    return cards.card.memory, most_memory(run, made, size, device, least=least)


def _why(kind: str, sharding: str, cards: Cards, memory: Memory, card: int) -> str:
    shared = "" if sharding == "none" else f" with {sharding}"
    return f"{kind}{shared}, chosen by auto: {memory.total / GIB:.1f} GiB of {card / GIB:.1f} on {cards}"


def _without_gpu(compute: Compute, chain: list[TrainBase]) -> str:
    named = "" if compute.gpu is None else f", though compute.gpu says {compute.gpu}"
    dtypes = " and ".join(dict.fromkeys(str(stage.arithmetic) for stage in chain))
    return f"lora, chosen by auto: no GPU{named}, so an adapter on the CPU in {dtypes}"


def _as_chosen(stage: AnyStage, kind: str, why: str | None) -> TrainBase:
    made = as_train(stage)
    assert made is not None
    assert isinstance(made.strategy, Auto)
    if kind == "full":
        return made.model_copy(update={"strategy": Full(kind="full", why=why)})
    keys = made.strategy.model_dump() | {"kind": kind, "why": why}
    strategy = Lora.model_validate(keys) if kind == "lora" else QLora.model_validate(keys)
    return made.model_copy(update={"strategy": strategy})


def _is_auto(stage: AnyStage) -> bool:
    made = as_train(stage)
    return made is not None and isinstance(made.strategy, Auto)


def _chains(run: Run) -> list[list[TrainBase]]:
    """Train stages, those together that have a model from one another."""
    chains: list[list[TrainBase]] = []
    for stage in run.stages:
        made = as_train(stage)
        if made is None:
            continue
        starts = {made.model, *run.stage(made.model).stands_for}
        before = next((chain for chain in chains if starts & {one.name for one in chain}), None)
        if before is None:
            chains.append([made])
        else:
            before.append(made)
    return chains


def _arithmetic(run: Run, hardware: Hardware) -> Run:
    """The run with dtypes as the hardware has them, for estimates alone."""
    def native(stage: AnyStage) -> Native:
        cards = hardware(stage)
        return None if cards is None or cards.card is None else "gpu"

    return settled(run, native)
