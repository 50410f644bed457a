"""Execute a run stage by stage: finished ones are left alone, the others are made under a lease.

Everything that decides lies in the store: this process may be killed at any moment and started again, here or
elsewhere. Does not know what stages do: a body is found by the stage's type and called with a context.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import platform
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from alignment import __version__
from alignment.artifacts import Artifact, Manifest, Store, Work
from alignment.config import AnyStage, Run, Verdict, judge
from alignment.config.arithmetic import computed, settled_here
from alignment.config.hardware import device_here, processor
from alignment.config.stops import Standing, standing_of
from alignment.config.yaml_text import dump
from alignment.context import Outcome, StageContext
from alignment.data.artifact_source import STAGES
from alignment.errors import ArtifactError, ConfigError, KubeAlignError, StageError, Unforeseen
from alignment.pipeline.keys import Key, content_of, keys
from alignment.pipeline.stage_log import StageLog, attempt
from alignment.planner.auto import resolved
from alignment.planner.context_length import fitted, shortened, too_long
from alignment.progress import console
from alignment.report.summary import left_out, not_taken

Body = Callable[[StageContext], Outcome]
_ENVIRONMENT = {
    # Threads that wait by spinning make a shared machine crawl: with two busy neighbours on two cores a training step
    # took 40 s instead of 3; asleep they cost nothing measurable alone.
    "OMP_WAIT_POLICY": "PASSIVE",
    # The libraries' own bars and notes: ours say what is done.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false",
}
"""Set before a stage loads its libraries, where the user has set nothing else."""
_ROOM = 2**20
"""Bytes; a stage that fails on a disk with less has failed for want of it, whatever its library says."""
_LIBRARIES = ("torch", "transformers", "trl", "peft", "ray", "datasets", "accelerate")


@dataclass
class RunResult:
    """What a run left behind: artifacts by stage (None: not made), aims held against the metrics, the report."""

    artifacts: dict[str, Artifact | None]
    verdicts: list[Verdict] = field(default_factory=list)
    report: str = ""
    seconds: float = 0.0
    unneeded: Mapping[str, str] = field(default_factory=dict)
    """Stages of rounds that are not made, since a gate before them is not met -> why."""

    @property
    def finished(self) -> bool:
        return all(artifact is not None or name in self.unneeded for name, artifact in self.artifacts.items())


def body_of(stage: AnyStage) -> Body:
    """The function that makes a stage; imported here, so that heavy libraries load only when something is made."""
    module, _, name = stage.body.partition(":")
    body: Body = getattr(importlib.import_module(module), name)
    return body


def status(run: Run) -> dict[str, Artifact | None]:
    """Finished artifacts of a run by stage name; None where there is none yet."""
    store = Store(run.store)
    return {name: store.find(key.key) for name, key in keys(run).items()}


def at_work(run: Run) -> dict[str, Work]:
    """What is known of the run's unfinished stages that were begun, by name."""
    store = Store(run.store)
    found = {name: store.work(key.key) for name, key in keys(run).items() if store.find(key.key) is None}
    return {name: work for name, work in found.items() if work is not None}


def execute(run: Run, *, only: str | None = None, typed: str = "run RUN.yaml") -> RunResult:
    """Make every unfinished stage in order, then the report.

    Args:
        only: make this stage alone; the stages it reads must be finished.
        typed: `run FILE OPTIONS` as the user typed it, for the commands in the report.

    Raises:
        KubeAlignError: the stage that could not be made; stages before it stay finished.
    """
    began = time.monotonic()
    run = settled_here(resolved(run)[0])
    store, known = Store(run.store), keys(run)
    if only is not None and only not in known:
        raise ConfigError("no stage of this name", where="--stage", found=only, expected="one of " + ", ".join(known))
    store.write_run_file(run.name, "run.yaml", dump(run.model_dump(mode="json")))
    _note_stages(run, store, known)
    for stage in run.stages:
        if (only is None or stage.name == only) and _is_needed(run, stage, store, known):
            make_stage(run, stage, store, known)
    artifacts = {name: store.find(key.key) for name, key in known.items()}
    return RunResult(
        artifacts, verdicts(run, artifacts), write_report(run, typed, artifacts), time.monotonic() - began,
        standing_in(run, store, known).unneeded,
    )


def _note_stages(run: Run, store: Store, known: Mapping[str, Key]) -> None:
    """Leave in the store what each stage's artifact is, so that another run may name it RUN:STAGE."""
    store.write_run_file(run.name, STAGES, json.dumps({name: key.key for name, key in known.items()}, indent=1) + "\n")


def standing_in(run: Run, store: Store, known: Mapping[str, Key]) -> Standing:
    """Which rounds the gates ask for, by what the store has."""
    groups = run.stops()
    found = {name: store.find(known[name].key) for group in groups for name in group.reads}
    return standing_of(groups, found)


def _is_needed(run: Run, stage: AnyStage, store: Store, known: Mapping[str, Key]) -> bool:
    """Whether a stage is to be made; one that is not says why. What is finished is left alone in any case.

    Raises:
        StageError: the gate of a round before it is not judged, or cannot be.
    """
    now = standing_in(run, store, known)
    if stage.name in now.unneeded and store.find(known[stage.name].key) is None:
        console.print(f"[dim]-[/] [bold]{stage.name}[/] {now.unneeded[stage.name]}")
        return False
    if stage.name in now.waiting and store.find(known[stage.name].key) is None:
        raise StageError(now.waiting[stage.name], where=f"stage {stage.name}")
    return True


def make_stage(run: Run, stage: AnyStage, store: Store, known: dict[str, Key], log: StageLog | None = None,
               own_cluster: str | None = None) -> Artifact:
    """The finished artifact of a stage: found, waited for, or made.

    Args:
        log: that is kept already; else one is, while the stage is made.
        own_cluster: name of the Ray cluster that was made for this alone, whose pods are not held to wait.

    Raises:
        MadeElsewhere: another process makes the same, where `own_cluster` is given.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    key = known[stage.name]
    label = f"[bold]{stage.name}[/] [dim]{key.key.rsplit('-', 1)[1]}[/]"
    found = store.find(key.key)
    if found is not None:
        console.print(f"[green]=[/] {label} finished before")
        _warn_of_damage(found)
        store.sweep_work(key.key)
        return found
    where = f"pid {os.getpid()}" if own_cluster is None else f"Ray cluster {own_cluster}"
    with store.lease(key.key, by=f"run {run.name}, stage {stage.name}, {where}", gives_way=own_cluster is not None,
                     waiting=lambda sentence: console.print(f"[yellow]…[/] {label} {sentence}")) as lease:
        found = store.find(key.key)
        if found is not None:
            console.print(f"[green]=[/] {label} finished by another process")
            return found
        with nullcontext(log) if log else StageLog(store, run.name, f"{stage.name}-{attempt()}") as kept:
            beyond = standing_in(run, store, known).unneeded if stage.stands_for else {}
            inputs = {name: _input(store, known[name].key, stage.name, name)
                      for name in stage.inputs() if name not in beyond}
            console.print(f"[cyan]>[/] {label} {describe(run, stage)}")
            stage = _within_context(stage, inputs)
            context = StageContext(computed(run, stage), stage, store, key.key, key.digest, inputs,
                                   store.workdir(key.key), {name: one.key for name, one in known.items()})
            started, clock = time.time(), time.monotonic()
            outcome = _call(context, kept)
            _check_sources(stage, key, run.store)
            manifest = Manifest(
                key=key.key, digest=key.digest, stage=stage.name, kind=stage.kind,
                config=stage.model_dump(mode="json"), parts=key.parts,
                inputs={name: artifact.key for name, artifact in inputs.items()}, files={}, rows=outcome.rows,
                metrics=outcome.metrics, facts=outcome.facts, compute=computed_on(run, stage) | outcome.compute,
                versions=versions(), started=_stamp(started), finished=_stamp(time.time()),
                seconds=round(time.monotonic() - clock, 2),
            )
            artifact = store.publish(manifest, context.out, lease)
            store.clear_work(key.key)
            console.print(f"[green]+[/] {label} {summary(artifact)}")
    return artifact


def _within_context(stage: AnyStage, inputs: Mapping[str, Artifact]) -> AnyStage:
    """The stage with lengths that its models take, by what their imports recorded; raises ConfigError where it asks for
    more."""
    def limit(name: str) -> int | None:
        found: int | None = inputs[name].manifest.facts.get("context_length")
        return found

    obeyed = fitted(stage, limit)
    if (said := shortened(stage, obeyed)) is not None:
        console.print(f"  {stage.name}: {said}")
    for place, error in too_long(obeyed, limit):
        raise ConfigError(error.problem, where=f"stage {stage.name}, {place[0]}", found=error.found,
                          expected=error.expected, hint=error.hint)
    return obeyed


def verdicts(run: Run, artifacts: dict[str, Artifact | None]) -> list[Verdict]:
    """The run's aims held against the metrics of all finished stages."""
    metrics = {
        f"{name}.{metric}": value
        for name, artifact in artifacts.items() if artifact is not None
        for metric, value in artifact.manifest.metrics.items()
    }
    return [judge(aim, metrics) for aim in run.parsed_aims()]


def write_report(run: Run, typed: str | None, artifacts: dict[str, Artifact | None] | None = None) -> str:
    """Render the report of what is finished and write it beside the run; returns its path or URL.

    Args:
        typed: as for `execute`; None: in a pod, where nobody knows it.
    """
    from alignment.report import render

    if artifacts is None:
        store, known = Store(run.store), keys(run)
        _note_stages(run, store, known)
        artifacts = {name: store.find(key.key) for name, key in known.items()}
    page = render(run, artifacts, typed, _stamp(time.time()))
    return Store(run.store).write_run_file(run.name, "report.html", page)


def describe(run: Run, stage: AnyStage) -> str:
    """What a stage is and what it reads, for the terminal: `dpo · lora r 16: sft2 on rs/pairs`."""
    models, rows = dict.fromkeys(ref.stage for ref in stage.model_refs()), [ref.ref for ref in stage.row_refs()]
    files = [item.path.rsplit("/", 1)[-1] for item in stage.sources() if item.path is not None]
    read = " on ".join(", ".join(some) for some in (models, [*rows, *files]) if some)
    return f"{run.title_of(stage)}: {read}" if read else run.title_of(stage)


def summary(artifact: Artifact) -> str:
    """One line on a finished stage: time, rows, the metrics that say most."""
    manifest = artifact.manifest
    rows = ", ".join(f"{count} {name}" for name, count in manifest.rows.written.items())
    beyond = not_taken(manifest.rows.dropped)
    shown = [f"{name} {value:.4g}" for name, value in manifest.metrics.items()
             if name.startswith(("eval_", "train_", "parameters", "mean_score", "best_score"))]
    parts = [f"{manifest.seconds:.1f} s", rows, left_out(manifest.rows.dropped),
             f"{beyond} not taken" if beyond else "", *shown[:6]]
    return ", ".join(part for part in parts if part)


def computed_on(run: Run, stage: AnyStage) -> dict[str, Any]:
    """Where a stage computes with its model, as far as the run and this machine say; nothing for one without a model.

    The processor is only named where this machine computes: its kernels add up in an order of their own."""
    if stage.arithmetic is None:
        return {}
    workers = run.compute.workers if stage.on_workers else 0
    models = [run.stage(ref.stage).endpoint for ref in stage.model_refs()]
    if models and None not in models:
        return {"engine": "endpoint", "workers": workers}
    device = device_here(run.compute)
    found = {"device": device, "dtype": stage.arithmetic, "workers": workers, "engine": stage.engine}
    return found if workers else {**found, "processor": processor(device)}


def versions() -> dict[str, str]:
    """Of this package, Python, the platform and the libraries that decide numbers."""
    found = {"kubealign": __version__, "python": platform.python_version(), "platform": platform.machine()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _input(store: Store, key: str, stage: str, name: str) -> Artifact:
    artifact = store.find(key)
    if artifact is None:
        raise StageError(f"the stage it reads, {name}, is not finished", where=f"stage {stage}", found=key,
                         expected="a finished artifact", hint=f"run without --stage, or run --stage {name} first")
    artifact.verify()
    return artifact


def _warn_of_damage(artifact: Artifact) -> None:
    """Say it of an artifact that nobody reads now; who reads one is refused."""
    try:
        artifact.verify()
    except ArtifactError as error:
        console.print(f"! {error}", markup=False)


def damaged(run: Run, *, deep: bool = False) -> list[ArtifactError]:
    """What is wrong with the files of a run's finished artifacts, see `Artifact.verify`."""
    found = []
    for artifact in status(run).values():
        try:
            if artifact is not None:
                artifact.verify(deep=deep)
        except ArtifactError as error:
            found.append(error)
    return found


def _call(context: StageContext, log: StageLog) -> Outcome:
    """What the stage's body gives; of an error, the traceback is left in the log that the error names."""
    # What an earlier, killed attempt was about to publish is not trusted; what it kept beside it is.
    shutil.rmtree(context.out, ignore_errors=True)
    context.out.mkdir(parents=True)
    try:
        return body_of(context.stage)(context)
    except Exception as error:
        log.write("".join(traceback.format_exception(error)))
        told = _told(error, context)
        told.log = log.url
        raise told from (error if told is not error else error.__cause__)


def _told(error: Exception, context: StageContext) -> KubeAlignError:
    """The error in words for a user, with the stage that it was met in."""
    where = f"stage {context.stage.name}"
    free = shutil.disk_usage(context.work).free
    if _is_for_want_of_room(error) or free < _ROOM:
        return StageError(
            "no space is left on the device", where=where, found=f"{free >> 10} KiB free in {context.work}: {error}",
            hint="make room; finished stages and checkpoints are kept, run again to resume",
        )
    if isinstance(error, KubeAlignError):
        error.where = error.where or where
        return error
    if isinstance(error, OSError) and error.errno is not None and os.strerror(error.errno) in str(error):
        return StageError(f"the file system refused: {error}", where=where,
                          hint="look at the permissions of the store, then run again to resume")
    return Unforeseen(f"{type(error).__name__}: {error}", where=where,
                      hint="nothing here foresaw this error: the traceback, in the log, says where it comes from")


def _check_sources(stage: AnyStage, key: Key, store: str) -> None:
    """Raise StageError when what was read from outside is no longer what the key was made of."""
    now, then = content_of(stage, store), key.parts.get("sources")
    if now != then:
        raise StageError("a source changed after the run began, so nothing is published under its old digest",
                         where=f"stage {stage.name}",
                         found=", ".join(item.path or str(item.source) for item in stage.sources()),
                         expected="the content that the run began with", hint="run again, with the source left alone")


def _is_for_want_of_room(error: BaseException | None) -> bool:
    """Whether the error, or one that it came from, says that the disk or the quota is full."""
    while error is not None:
        # safetensors passes on Rust's words; torch's writer passes on nothing, so free space is looked at as well.
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
