"""`run`, `status` and `report`: what touches the store of a run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from alignment import interrupt
from alignment.cli.check import refuse
from alignment.cli.options import (
    Context,
    Here,
    KnownProfile,
    Namespace,
    Overrides,
    ProfileName,
    RunFile,
    as_typed,
    load,
    of_cluster,
    told_of_here,
)
from alignment.cli.output import page_of, status_json
from alignment.cli.show import duration, say, show
from alignment.config import Run, served

if TYPE_CHECKING:
    from alignment.artifacts import Artifact

MISSED_AIMS = 3
"""Exit code of `run --strict-aims`."""


def run(
    file: RunFile,
    stage: Annotated[str | None, typer.Option(help="Make this stage alone; what it reads must be finished.")] = None,
    strict_aims: Annotated[bool, typer.Option("--strict-aims", help="End with code 3 when an aim is missed.")] = False,
    profile: ProfileName = None,
    here: Here = False,
    overrides: Overrides = None,
) -> None:
    """Make every unfinished stage on this machine, then the report. Finished stages are left alone."""
    interrupt.leaves("finished stages and checkpoints are kept, run it again to resume")
    as_written, place = load(file, overrides, profile, here=True)
    refuse(as_written, file, place, stage)
    from alignment import pipeline
    from alignment.report.reading import measures_models
    from alignment.report.tables import aims_table, harness_table, judges_table, results_table

    loaded = as_written if place is None else place.applied(as_written)
    arguments = as_typed(file, profile, None, None, overrides, here=here or of_cluster(profile))
    result = pipeline.execute(loaded, only=stage, typed=f"run {arguments}")
    say()
    judges, measures = judges_table(loaded, result.artifacts), any(map(measures_models, loaded.stages))
    if measures:
        show(results_table(loaded, result.artifacts))
    for other in (harness_table(loaded, result.artifacts), judges):
        if other is not None:
            show(other)
    if loaded.aims:
        show(aims_table(loaded, result.artifacts))
    unmade = [name for name, artifact in result.artifacts.items() if artifact is None]
    left = [name for name in unmade if name not in result.unneeded]
    spared = [name for name in unmade if name in result.unneeded]
    say(f"{len(result.artifacts) - len(unmade)} of {len(result.artifacts)} stages finished in "
        f"{duration(result.seconds)}" + (f"; not needed: {', '.join(spared)}" if spared else "")
        + (f"; not made: {', '.join(left)}" if left else ""))
    say(f"report: {result.report}")
    if not left:
        _say_served(loaded, result.artifacts, file, profile, overrides)
    if strict_aims and any(verdict.met is not True for verdict in result.verdicts):
        raise typer.Exit(MISSED_AIMS)


def status(
    file: RunFile,
    profile: KnownProfile = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON with every stage's manifest.")] = False,
    here: Here = False,
    namespace: Namespace = None,
    context: Context = None,
    overrides: Overrides = None,
) -> None:
    """Which stages are finished, where they lie, and how far the one at work is."""
    loaded, place = load(file, overrides, profile, here=here)
    if place is not None and place.cluster is not None:
        from alignment.cli.remote import remote_status

        told_of_here(loaded, "status", as_typed(file, profile, None, None, overrides))
        remote_status(loaded, place, namespace=namespace, context=context, as_json=as_json)
        return
    loaded = loaded if place is None else place.applied(loaded)
    from alignment import pipeline
    from alignment.report.reading import unneeded_of
    from alignment.report.tables import stages_table

    found, works = pipeline.status(loaded), pipeline.at_work(loaded)
    if as_json:
        manifests = {name: None if made is None else made.manifest for name, made in found.items()}
        print(status_json(loaded, manifests, works))
        return
    show(stages_table(loaded, found, works))
    for name, work in works.items():
        say(f"{name}: {work}" if work.progress is None or work.state == "stopped" else str(work))
    unneeded = unneeded_of(loaded, found)
    left = [name for name, artifact in found.items() if artifact is None and name not in unneeded]
    for why in dict.fromkeys(unneeded.values()):
        say(f"{', '.join(name for name in unneeded if unneeded[name] == why)}: {why}")
    say(f"{len(found) - len(left) - len(unneeded)} of {len(found)} stages finished"
        + (f"; next: {left[0]}" if left else ""))
    if any(work.state == "running" for work in works.values()):
        return
    say(f"  kubealign {'run' if left else 'report'} {as_typed(file, profile, None, None, overrides, here=here)}")
    if not left:
        _say_served(loaded, found, file, profile, overrides)


def _say_served(
    run: Run, found: Mapping[str, Artifact | None], file: str, profile: str | None, overrides: list[str] | None
) -> None:
    """How the models that a finished run is to serve are served on this machine."""
    if run.serve is None:
        return
    stages = served(run)
    made = {name: found[stage] for name, stage in stages.items()}
    if lacking := [f"{name} ({stages[name]})" for name, artifact in made.items() if artifact is None]:
        say(f"! {', '.join(lacking)} cannot be served: its stage was not needed, so nothing is made of it")
        return
    # `serve` takes no overrides, and with them other artifacts are the run's.
    what = [f"{name}={artifact.key}" for name, artifact in made.items() if artifact is not None]
    of_here = [] if profile is None or of_cluster(profile) else ["--profile", profile]
    say(f"to serve {', '.join(made)} on this machine:")
    say(f"  kubealign serve {shlex.join([*what, '--store', run.store] if overrides else [file, *of_here])}")


def report(
    file: RunFile,
    profile: KnownProfile = None,
    printed: Annotated[bool, typer.Option("--print", help="Print the page itself to stdout.")] = False,
    typed: Annotated[str | None, typer.Option(hidden=True)] = None,
    here: Here = False,
    namespace: Namespace = None,
    context: Context = None,
    overrides: Overrides = None,
) -> None:
    """Render the report of what is finished again; prints where it lies."""
    loaded, place = load(file, overrides, profile, here=here)
    arguments = as_typed(file, profile, namespace, context, overrides, here=here)
    if place is not None and place.cluster is not None:
        from alignment.cli.remote import remote_report

        told_of_here(loaded, "report", as_typed(file, profile, None, None, overrides))
        remote_report(loaded, place, f"submit {arguments}", namespace=namespace, context=context, printed=printed)
        return
    print(page_of(loaded if place is None else place.applied(loaded), typed or f"run {arguments}", printed=printed))
