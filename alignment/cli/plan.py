"""`plan`: what each stage will need, as a table, before anything is started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from alignment.cli.options import Here, Overrides, ProfileName, RunFile, as_typed, load
from alignment.cli.probes import kept_probes, say_corrected, say_probed
from alignment.cli.show import count, duration, memory, prose, say, table

if TYPE_CHECKING:
    from alignment.artifacts import Artifact
    from alignment.config import Compute, Profile, Run
    from alignment.config.cards import Cards
    from alignment.planner import StagePlan

COLUMNS = ("stage", "what", "parameters", "rows", "tokens", "memory", "time", "state")
SPARE = ("parameters", "tokens", "what", "rows", "memory")
PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "cache", "buffers", "overhead",
         "probed")


def plan(
    file: RunFile,
    profile: ProfileName = None,
    gpus: Annotated[
        str | None,
        typer.Option("--gpus", metavar="8xH100|4090|none", help="Plan for such GPUs (files of configs/hardware/), "
                                                                "whatever this machine or the profile has."),
    ] = None,
    here: Here = False,
    overrides: Overrides = None,
) -> None:
    """Rows, tokens, estimated memory and time of every stage, and what `auto` chose."""
    run, loaded = load(file, overrides, profile, resolve=False, here=here)
    from alignment import pipeline
    from alignment.planner import measure_rates, rates_of
    from alignment.planner import plan as make_plan

    remote = loaded is not None and loaded.cluster is not None
    as_loaded, (run, cards) = run, _placed(run, loaded, gpus)
    rates = measure_rates() if cards is None or cards.card is None else rates_of(cards)
    # A cluster's storage is not asked: planning works before there is a cluster.
    elsewhere = remote or gpus is not None
    found: dict[str, Artifact | None] = {
        stage.name: None for stage in run.stages} if elsewhere else pipeline.status(run)
    in_store = run.model_copy(update={"store": as_loaded.store}) if remote else run
    plans = make_plan(run, found, rates, cards, kept_probes(in_store, loaded if remote and gpus is None else None))
    table(COLUMNS, [_row(item) for item in plans], right=COLUMNS[2:-1], spare=SPARE)
    for item in plans:
        if item.looked is not None:
            say(f"{item.name}: lengths of {item.looked[0]:,.0f} of {item.looked[1]:,.0f} rows"
                + (", and their number by what these are" if item.rows_about else ""))
    _say_memory(plans, cards)
    _say_elsewhere(plans, on_gpu=cards is not None and cards.card is not None)
    _say_served(run, loaded)
    for stage in run.stages:
        if (said := stage.defaulted()) is not None:
            say(f"{stage.name}: {said}")
    misfits = _say_misfits(run, plans, cards)
    say_corrected(plans)
    if gpus is None:
        say_probed(in_store, loaded if remote else None)
    left = [item for item in plans if item.artifact is None]
    unknown = [item.name for item in left if item.size is None and item.needs_model]
    say("\nas if nothing were finished yet; kubealign status says what is" if elsewhere else
        f"\n{len(plans) - len(left)} of {len(plans)} stages finished")
    prose(f"time and memory not known before the model is imported: {', '.join(unknown)}; of a hub's model its "
          "config.json is enough: hf download REPO config.json" if unknown else
          f"about {duration(sum(item.seconds or 0.0 for item in left))} to go")
    prose(_assumed(cards, rates.flops, rates.bandwidth))
    if cards is not None and gpus is not None:
        if misfits:
            return  # which `run` would refuse
        asked = _asking_for(as_loaded.compute if loaded is None else loaded.compute, run.compute)
        say(f"\non a machine {'without a GPU' if cards.card is None else f'with {cards}'}:")
        say(f"  kubealign run {as_typed(file, profile, None, None, [*(overrides or ()), *asked], here=here)}")
        return
    say(f"\n  kubealign {'submit' if remote else 'run'} {as_typed(file, profile, None, None, overrides, here=here)}")


def _asking_for(loaded: Compute, planned: Compute) -> list[str]:
    """Overrides with which a run computes on what was planned for."""
    from alignment.config.yaml_text import dump

    keys = ("device", "workers", "gpus_per_worker", "gpu")
    return ["compute." + dump({key: getattr(planned, key)}).strip().replace(": ", "=") for key in keys
            if getattr(planned, key) != getattr(loaded, key)]


def _placed(run: Run, profile: Profile | None, gpus: str | None) -> tuple[Run, Cards | None]:
    """The run with nothing left to `auto`, and the GPUs that are planned for; None where they are not known."""
    from alignment.config.cards import parse_cards
    from alignment.planner import on_cards
    from alignment.planner.auto import hardware_of, resolved

    if gpus is not None:
        cards = parse_cards(gpus)
        # Not as the profile's pods would compute it: their dtypes are settled by their own GPUs.
        run = on_cards(run if profile is None else profile.here().applied(run), cards)
        return resolved(run, None, lambda stage: cards)[0], cards
    run, profile = resolved(run, profile)
    hardware = hardware_of(run, profile)
    cards_of = [found for stage in run.stages if stage.on_workers
                and (found := hardware(stage)) is not None and found.card is not None]
    run = run if profile is None else profile.applied(run)
    return run, cards_of[0] if cards_of else None


def _assumed(cards: Cards | None, flops: float, bandwidth: float) -> str:
    """What the estimates rest on."""
    ends = ("answers at full length; loading libraries and models comes on top (10 to 30 s a stage).")
    if cards is None or cards.card is None:
        return (f"Estimates, marked ~. Time: on this machine's CPU at {flops / 1e9:.0f} GFLOP/s (float32) and "
                f"{bandwidth / 1e9:.0f} GB/s, measured just now, {ends} Memory: tensors alone; libraries take 0.5 to "
                "3 GB more in each process.")
    from alignment.planner.plan import MFU, READ

    return (f"Estimates, marked ~. Time: on {cards}, at {MFU:.0%} of {cards.card.bf16_tflops:g} TFLOP/s and {READ:.0%} "
            f"of {cards.card.bandwidth_gbs:g} GB/s, {ends} Formulas and assumptions: docs/planner.md.")


def _say_memory(plans: list[StagePlan], cards: Cards | None) -> None:
    by_part = [_memory(item) for item in plans if item.memory is not None]
    if not by_part:
        return
    on = "" if cards is None or cards.card is None else (
        f", of {cards.card.memory_gib:.1f} GiB on {cards.card.description}")
    say(f"\nmemory per worker{on}")
    parts = [part for part in PARTS if any(item.memory is not None and getattr(item.memory, part) for item in plans)]
    table(("stage", *parts, "in all"), [[row[0], *(row[1 + PARTS.index(part)] for part in parts), row[-1]]
                                        for row in by_part], right=(*parts, "in all"), spare=parts[::-1])


def _say_elsewhere(plans: list[StagePlan], *, on_gpu: bool) -> None:
    trained = [(item, item.beside) for item in plans if item.beside is not None and item.artifact is None]
    if not trained:
        return
    held = "host memory (libraries, and the model as it is loaded)" if on_gpu else (
        "more host memory, for libraries alone: what is above lies in host memory too")
    shared = "for each machine /dev/shm, " if any(found.shm for _, found in trained) else ""
    say(f"\nbeside it: for each worker {held}; {shared}disk for checkpoints and what is published")
    columns = {"host a worker" if on_gpu else "+ host a worker": "host", "shm a machine": "shm", "disk": "disk"}
    parts = [name for name, part in columns.items() if any(getattr(found, part) for _, found in trained)]
    rows = [[item.name, *(memory(amount) if (amount := getattr(found, columns[name])) else "" for name in parts),
             str(item.micro_batch)] for item, found in trained]
    table(("stage", *parts, "rows a pass"), rows, right=(*parts, "rows a pass"), spare=parts)


def _say_served(run: Run, profile: Profile | None) -> None:
    """What serves the run's models afterwards: pods, and the memory of one replica."""
    from alignment.planner.serving import LIBRARIES, served_memory, short_of

    if run.serve is None:
        return
    from alignment.config import served

    cluster = None if profile is None else profile.cluster
    pod = None if cluster is None else cluster.serve.worker or cluster.worker
    number = f"{run.serve.replicas}" + (f" to {run.serve.max_replicas}" if run.serve.max_replicas else "")
    say(f"\nserved afterwards: {', '.join(served(run))}; replicas: {number}, the most that one takes")
    found = served_memory(run, on_gpu=pod is not None and bool(pod.gpus))
    parts = [part for part in PARTS if found is not None and getattr(found, part)]
    table((*parts, "libraries", "in all", "pod"), [[
        *(memory(getattr(found, part)) for part in parts), memory(LIBRARIES),
        "" if found is None else f"~{memory(found.total + LIBRARIES)}",
        "" if pod is None else f"{pod.memory}, {pod.cpu} cores" + (f", {pod.gpus} GPUs" if pod.gpus else "")]],
        right=(*parts, "libraries", "in all", "pod"), spare=parts[::-1])
    if profile is not None and (short := short_of(run, profile)) is not None:
        prose(f"! {short}")


def _say_misfits(run: Run, plans: list[StagePlan], cards: Cards | None) -> bool:
    """Say which stages do not fit; whether there are any."""
    from alignment.config import as_train
    from alignment.planner.fits import misfit

    found = []
    for item in plans:
        stage = as_train(run.stage(item.name))
        if stage is not None and not stage.micro_batch(run.compute.workers):
            found.append(f"{item.name}: batch_size {stage.batch_size} cannot be shared out over "
                         f"{run.compute.workers} GPUs")
        if stage is None or cards is None or cards.card is None or item.memory is None:
            continue
        error = misfit(run, stage, item.size, cards, length=item.length or stage.longest)
        if error is not None:
            found.append(f"{item.name}: {error.problem}: {error.found}; {error.expected}. {error.hint}")
        elif item.probed is not None and item.memory.total > cards.card.memory:
            found.append(f"{item.name}: {memory(item.memory.total)}, by what a probe measured, is more than "
                         f"{cards.card.memory_gib:.1f} GiB on {cards}")
    for text in found:
        prose(f"! {text}")
    return bool(found)


def _row(item: StagePlan) -> list[str]:
    return [
        item.name, item.what, "" if item.size is None else count(item.size.parameters),
        "" if item.rows is None else (
            "~" if item.rows_about else "" if item.rows_known else "<= ") + count(item.rows),
        "" if item.tokens is None else ("" if item.counted else "~") + count(item.tokens),
        "" if item.memory is None else "~" + memory(item.memory.total),
        "" if item.seconds is None else ("" if item.artifact else "~") + duration(item.seconds),
        "finished" if item.artifact is not None else "to do",
    ]


def _memory(item: StagePlan) -> list[str]:
    assert item.memory is not None
    parts = [getattr(item.memory, name) for name in PARTS]
    return [item.name, *(("-" if part < 0 else "") + memory(abs(part)) if part else "" for part in parts),
            memory(item.memory.total)]
