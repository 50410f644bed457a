"""`check`: every mistake that can be found before anything is started, all at once."""

from __future__ import annotations

from alignment.cli.options import Overrides, ProfileName, RunFile, load
from alignment.cli.show import say
from alignment.errors import ConfigErrors


def check(file: RunFile, profile: ProfileName = None, overrides: Overrides = None) -> None:
    """Find every mistake in a run file and in what it reads, without starting anything."""
    run, loaded = load(file, overrides, profile)
    from alignment.cli.preflight import preflight
    from alignment.pipeline.run import describe

    seen = preflight(run, file, loaded)
    if seen.findings:
        raise ConfigErrors(seen.findings)
    width = max(len(stage.name) for stage in run.stages)
    for stage in run.stages:
        note = seen.notes.get(stage.name)
        say(f"{stage.name:<{width}}  {describe(stage)}" + (f"  ({note})" if note else ""))
    say("ok")
