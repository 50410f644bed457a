"""`plan`: what each stage will need, as a table, before anything is started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignment.cli.options import Overrides, ProfileName, RunFile, as_typed, load
from alignment.cli.show import count, duration, memory, prose, say, table

if TYPE_CHECKING:
    from alignment.artifacts import Artifact
    from alignment.planner import StagePlan

COLUMNS = ("stage", "what", "parameters", "rows", "tokens", "memory", "time", "state")
SPARE = ("parameters", "tokens", "what", "rows", "memory")
PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "cache")


def plan(file: RunFile, profile: ProfileName = None, overrides: Overrides = None) -> None:
    """Rows, tokens, estimated memory and time of every stage."""
    run, loaded = load(file, overrides, profile)
    from alignment import pipeline
    from alignment.planner import measure_rates
    from alignment.planner import plan as make_plan

    rates = measure_rates()
    remote = loaded is not None and loaded.cluster is not None
    run = run if loaded is None else loaded.applied(run)
    # A cluster's storage is not asked: planning works before there is a cluster.
    found: dict[str, Artifact | None] = {stage.name: None for stage in run.stages} if remote else pipeline.status(run)
    plans = make_plan(run, found, rates)
    table(COLUMNS, [_row(item) for item in plans], right=COLUMNS[2:-1], spare=SPARE)
    by_part = [_memory(item) for item in plans if item.memory is not None]
    if by_part:
        say("\nmemory per worker")
        table(("stage", *PARTS, "in all"), by_part, right=(*PARTS, "in all"), spare=PARTS[::-1])
    left = [item for item in plans if item.artifact is None]
    unknown = [item.name for item in left if item.size is None and item.needs_model]
    for stage in run.stages:
        if (said := stage.defaulted()) is not None:
            say(f"{stage.name}: {said}")
    say("\nas if nothing were finished yet; kubealign status says what is" if remote else
        f"\n{len(plans) - len(left)} of {len(plans)} stages finished")
    prose(f"time and memory not known before the model is imported: {', '.join(unknown)}" if unknown else
          f"about {duration(sum(item.seconds or 0.0 for item in left))} to go")
    prose(f"Estimates, marked ~. Time: on this machine's CPU at {rates.flops / 1e9:.0f} GFLOP/s (float32) and "
          f"{rates.bandwidth / 1e9:.0f} GB/s, measured just now, answers at full length; loading libraries and models "
          "comes on top (10 to 30 s a stage). Memory: without the 0.5 to 1 GB that the libraries take.")
    say(f"\n  kubealign {'submit' if remote else 'run'} {as_typed(file, profile, None, None, overrides)}")


def _row(item: StagePlan) -> list[str]:
    return [
        item.name, item.what, "" if item.size is None else count(item.size.parameters),
        "" if item.rows is None else ("" if item.rows_known else "<= ") + count(item.rows),
        "" if item.tokens is None else ("" if item.counted else "~") + count(item.tokens),
        "" if item.memory is None else "~" + memory(item.memory.total),
        "" if item.seconds is None else ("" if item.artifact else "~") + duration(item.seconds),
        "finished" if item.artifact is not None else "to do",
    ]


def _memory(item: StagePlan) -> list[str]:
    assert item.memory is not None
    parts = [getattr(item.memory, name) for name in PARTS]
    return [item.name, *(memory(part) if part else "" for part in parts), memory(item.memory.total)]
