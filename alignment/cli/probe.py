"""`probe`: a minute of a train stage for real: its peak memory beside the planned one, kept in the store.

On this machine alone, in a process of its own; what several workers share out is not measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignment.cli.options import Here, Overrides, ProfileName, RunFile, load
from alignment.cli.show import memory, say, table
from alignment.errors import ConfigError, StageError

if TYPE_CHECKING:
    from alignment.config import Run
    from alignment.planner import StagePlan

_KILLED = (-9, 137)


def probe(
    file: RunFile,
    stage: Annotated[str, typer.Option("--stage", help="The train stage; what it reads must be finished.")],
    profile: ProfileName = None,
    here: Here = False,
    overrides: Overrides = None,
) -> None:
    """Train the worst batch of a stage for real: two steps, an evaluation, a save and a resume; peak against plan."""
    run, place = load(file, overrides, profile, here=True)
    run = run if place is None else place.applied(run)
    from alignment.artifacts import Store
    from alignment.config.arithmetic import settled_here
    from alignment.config.hardware import device_here, gpu_here, processor
    from alignment.pipeline.keys import keys
    from alignment.planner.probed import Probed, write

    run = settled_here(run)
    store, known = Store(run.store), keys(run)
    planned = _planned(run, stage, store, {name: key.key for name, key in known.items()})
    assert planned.memory is not None
    say(f"{stage}: {planned.micro_batch} rows a pass, the longest {planned.length} tokens; "
        f"{memory(planned.memory.total)} planned")
    seen = _tried(run, stage, planned, {name: key.key for name, key in known.items()})
    device = device_here(run.compute)
    gpu = gpu_here() if device == "cuda" else None
    made = Probed(stage, processor(device), planned.micro_batch or 1, planned.length or 0, planned.memory.total,
                  seen["measured"], seen["seconds"], seen.get("refuted"), gpu[1] if gpu is not None else None,
                  planned.like, seen["accumulates"])
    write(store, known[stage].key, made)
    table(("phase", "measured", "planned"), [[phase, memory(peak), memory(made.planned)]
                                             for phase, peak in made.measured.items()], right=("measured", "planned"))
    say(f"{'reserved on the GPU' if device == 'cuda' else 'resident, beyond what the libraries take'}; "
        f"{seen['seconds']:.0f} s on {made.device}")
    if made.refuted:
        raise StageError("the stage cannot be trained so", where=f"stage {stage}", found=made.refuted,
                         expected=f"what was planned: {memory(made.planned)}",
                         hint="a lower micro_batch_size or max_length, gradient_checkpointing, or strategy qlora")


def _planned(run: Run, name: str, store: Any, known: dict[str, str]) -> StagePlan:
    """The stage's plan; raises ConfigError where it cannot be probed."""
    from alignment.config import as_train
    from alignment.planner import Rates, plan
    from alignment.planner.auto import hardware_of

    stages = {item.name: item for item in run.stages}
    stage = as_train(stages[name]) if name in stages else None
    if stage is None:
        trained = [item.name for item in run.stages if as_train(item) is not None]
        raise ConfigError("no train stage of this name", where="--stage", found=name,
                          expected="one of " + ", ".join(trained))
    found = {item.name: store.find(known[item.name]) for item in run.stages}
    missing = [one for one in stage.inputs() if found[one] is None]
    if missing:
        raise ConfigError("what the stage reads is not finished", where=f"stage {name}", found=", ".join(missing),
                          hint=f"kubealign run RUN.yaml --stage {missing[0]}")
    cards = hardware_of(run, None)(stage)
    made = plan(run, found, Rates(1.0, 1.0), cards if cards is not None and cards.card is not None else None)
    [planned] = [item for item in made if item.name == name]
    if planned.memory is None:
        raise ConfigError("the planner does not know the size of this model, so there is nothing to compare with",
                          where=f"stage {name}", found=stage.model)
    return planned


def _tried(run: Run, name: str, planned: StagePlan, known: dict[str, str]) -> dict[str, Any]:
    """What training/probe.py measured, with `refuted` where it ended for want of memory."""
    from alignment.config.yaml_text import dump

    stage = run.stage(name)
    rows, workers = planned.micro_batch or 1, max(1, run.compute.workers)
    accumulates = getattr(stage, "batch_size", rows) > rows * workers
    with tempfile.TemporaryDirectory(prefix="kubealign-probe-") as folder:
        result, file = Path(folder, "result.json"), Path(folder, "spec.json")
        file.write_text(json.dumps({
            "run": dump(run.model_dump(mode="json")), "stage": name, "keys": known, "rows": rows,
            "accumulates": accumulates, "work": str(Path(folder, "store")), "result": str(result)}), encoding="utf-8")
        done = subprocess.run([sys.executable, "-m", "alignment.training.probe", str(file)], stdout=sys.stderr,
                              stderr=subprocess.PIPE, text=True, check=False)
        seen: dict[str, Any] = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {
            "measured": {}, "seconds": 0.0}
    seen["accumulates"] = accumulates
    if done.returncode in _KILLED:
        return seen | {"refuted": "the system killed it (most likely for memory)"}
    if not seen.get("done") and "refuted" not in seen:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise StageError("the probe failed for another reason than memory", where=f"stage {name}",
                         found=" ".join(lines[-3:])[-600:] or f"exit code {done.returncode}")
    return seen
