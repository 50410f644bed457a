"""Trains a stage's worst batch for real and says what memory it took: `python -m alignment.training.probe SPEC.json`.

Two steps with the longest rows, an evaluation, a checkpoint, and two more steps from that checkpoint, in a store of its
own. Writes the peak of each phase as it comes, so that a process that is killed leaves what it saw. One process: what
several workers share out is not measured. Called by cli/probe.py, which keeps the result.
"""

from __future__ import annotations

import gc
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from alignment.artifacts import Store
from alignment.config import TrainBase, as_train, parse_run
from alignment.config.arithmetic import computed
from alignment.config.stages.train import Checkpoints
from alignment.context import StageContext
from alignment.inference.loading import load_tokenizer
from alignment.planner.context_length import fitted
from alignment.records import Record
from alignment.training.fit import fit
from alignment.training.methods import method_of
from alignment.training.prepare import Columns, Prepared, prepare

STEPS = 2
"""Before the checkpoint, and after it."""


class _Enough(Exception):
    """The checkpoint is written: on with a trainer that resumes from it."""


class Memory:
    """Peaks of this process, by phase: reserved on a GPU, resident beyond what was there before on a CPU."""

    def __init__(self, result: Path, on_gpu: bool) -> None:
        self.result, self.on_gpu = result, on_gpu
        self.peaks: dict[str, int] = {}
        self.before = 0 if on_gpu else _status("VmRSS")
        self.began = time.monotonic()

    def note(self, phase: str, **more: Any) -> None:
        """Add the peak since the last call to a phase, and write all down."""
        if self.on_gpu:
            seen = torch.cuda.max_memory_reserved()
            torch.cuda.reset_peak_memory_stats()
        else:
            seen = _status("VmHWM") - self.before
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark begins anew
        self.peaks[phase] = max(seen, self.peaks.get(phase, 0))
        self.write(**more)

    def write(self, **more: Any) -> None:
        body = {"measured": self.peaks, "seconds": round(time.monotonic() - self.began, 1), **more}
        self.result.write_text(json.dumps(body), encoding="utf-8")


def _status(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found[1]) * 1024 if found else 0


class _Phases(TrainerCallback):  # type: ignore[misc]
    def __init__(self, memory: Memory, stop: bool) -> None:
        self.memory, self.stop = memory, stop

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.memory.note("step" if self.stop else "resume")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.memory.note("evaluation")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.memory.note("save")
        if self.stop and state.global_step >= STEPS:
            raise _Enough


@dataclass(frozen=True)
class _Worst(StageContext):
    """A context with the longest rows of each split alone."""

    chosen: dict[str, list[Record]] = field(default_factory=dict)

    def each_row(self, ref: str) -> Iterator[Record]:
        return iter(self.chosen[ref]) if ref in self.chosen else super().each_row(ref)


class _Nowhere:
    """Takes rows whose lengths alone are wanted."""

    def append(self, row: Columns, /) -> None:
        """Gone."""


def probe(spec: dict[str, Any], result: Path) -> None:
    """Train the stage that `spec` names: {run: YAML, stage, keys: stage's name -> artifact's key, rows, accumulates,
    work: a folder of its own}."""
    run = parse_run(spec["run"])
    stage = as_train(run.stage(spec["stage"]))
    assert stage is not None
    memory = Memory(result, torch.cuda.is_available())
    store, own = Store(run.store), Store(spec["work"])
    inputs = {}
    for name in stage.inputs():
        artifact = store.find(spec["keys"][name])
        assert artifact is not None, name
        inputs[name] = artifact
    obeyed = as_train(fitted(stage, lambda name: inputs[name].manifest.facts.get("context_length")))
    assert obeyed is not None
    batch = spec["rows"] * (2 if spec["accumulates"] else 1)
    worst = obeyed.model_copy(update={
        "take": None, "epochs": 1.0, "batch_size": batch, "micro_batch_size": spec["rows"], "log_every": 1,
        "log_to": (), "checkpoints": Checkpoints(every=STEPS, keep=1),
        "trl": {**obeyed.trl, "max_steps": 2 * STEPS}})
    compute = run.compute.model_copy(update={"workers": 0, "sharding": "none"})
    run = run.model_copy(update={"compute": compute})
    key = "probe-000000000000"
    context = _Worst(computed(run, worst), worst, own, key, "0" * 64, inputs, own.workdir(key))
    context = replace(context, chosen=_longest(context, worst, 2 * STEPS * batch))
    with suppress(_Enough):
        fit(context, callbacks=(_Phases(memory, stop=True),))
    gc.collect()
    fit(context, callbacks=(_Phases(memory, stop=False),))
    memory.write(done=True)


def _longest(context: StageContext, stage: TrainBase, count: int) -> dict[str, list[Record]]:
    """Split -> the longest rows that the stage would learn from, the first split with so many, repeated if need be."""
    tokenizer = load_tokenizer(context.inputs[stage.model].path() / "model", side="right")
    columns = method_of(stage).columns
    found: dict[str, list[Record]] = {}
    for refs in (stage.rows, *([(stage.eval_rows,)] if stage.eval_rows else [])):
        made = prepare((record for ref in refs for record in context.each_row(ref)), tokenizer, stage,
                       f"stage {stage.name}", columns, Prepared(rows=_Nowhere()))
        pairs = sorted(zip(made.lengths, made.ids, strict=False), reverse=True)
        ids = list(dict.fromkeys(name for _, name in pairs))[:count]
        wanted = frozenset(ids)
        records = {record.id: record for ref in refs for record in context.each_row(ref) if record.id in wanted}
        found[refs[0]] = [records[ids[number % len(ids)]] for number in range(count)]
        found |= {ref: [] for ref in refs[1:]}
    return found


def main() -> None:
    """Run the probe of the file that is named; what stops it is in the result."""
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    result = Path(spec["result"])
    try:
        probe(spec, result)
    except (torch.OutOfMemoryError, MemoryError) as error:
        seen = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {"measured": {}, "seconds": 0.0}
        first = str(error).splitlines()[0] if str(error) else "no more memory"
        result.write_text(json.dumps(seen | {"refuted": f"out of memory: {first}"}), encoding="utf-8")


if __name__ == "__main__":
    main()
