"""`run`, `status` and `report`: what touches the store of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from alignment.cli.options import Overrides, RunFile
from alignment.cli.show import duration, say, show
from alignment.config import Evaluate, load_run

MISSED_AIMS = 3


def run(
    file: RunFile,
    stage: Annotated[str | None, typer.Option(help="Make this stage alone; what it reads must be finished.")] = None,
    strict_aims: Annotated[bool, typer.Option("--strict-aims", help="End with code 3 when an aim is missed.")] = False,
    overrides: Overrides = None,
) -> None:
    """Make every unfinished stage, then the report. Finished stages are left alone."""
    loaded = load_run(file, overrides or ())
    from alignment import pipeline
    from alignment.report.tables import aims_table, results_table

    try:
        result = pipeline.execute(loaded, only=stage, run_file=file)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; finished stages and checkpoints are kept, run it again to resume", err=True)
        raise typer.Exit(130) from None
    say()
    if any(isinstance(item, Evaluate) for item in loaded.stages):
        show(results_table(loaded, result.artifacts))
    if loaded.aims:
        show(aims_table(loaded, result.artifacts))
    left = [name for name, artifact in result.artifacts.items() if artifact is None]
    say(f"{len(result.artifacts) - len(left)} of {len(result.artifacts)} stages finished in {duration(result.seconds)}"
        + (f"; not made: {', '.join(left)}" if left else ""))
    say(f"report: {result.report}")
    if strict_aims and any(verdict.met is not True for verdict in result.verdicts):
        raise typer.Exit(MISSED_AIMS)


def status(file: RunFile, overrides: Overrides = None) -> None:
    """Which stages are finished, and where they lie."""
    loaded = load_run(file, overrides or ())
    from alignment import pipeline
    from alignment.report.tables import stages_table

    found = pipeline.status(loaded)
    show(stages_table(loaded, found))
    left = [name for name, artifact in found.items() if artifact is None]
    say(f"{len(found) - len(left)} of {len(found)} stages finished" + (f"; next: {left[0]}" if left else ""))
    say(f"  kubealign {'run' if left else 'report'} {file}")


def report(file: RunFile, overrides: Overrides = None) -> None:
    """Render the report of what is finished again; prints where it lies."""
    loaded = load_run(file, overrides or ())
    from alignment import pipeline

    print(pipeline.write_report(loaded, file))
