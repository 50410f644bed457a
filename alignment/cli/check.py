"""`check`: every mistake that can be found before anything is started, all at once.

A cluster itself is not asked: `kubealign preflight` does that.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from alignment.cli.options import Overrides, ProfileName, RunFile, load
from alignment.cli.show import say
from alignment.config import Profile, Run, place_of
from alignment.config.arithmetic import settled_here
from alignment.config.stages.fields import Place
from alignment.config.yaml_nodes import dotted
from alignment.errors import ConfigError, ConfigErrors, KubeAlignError

DIFFERS = 3
"""Exit code of `check --same-as` where there is a difference."""


def check(
    file: RunFile,
    profile: ProfileName = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every file of the run's finished artifacts, and compare "
                                                      "its digest.")] = False,
    overrides: Overrides = None,
    manifest: Annotated[
        str | None,
        typer.Option("--same-as", metavar="MANIFEST", help="A finished artifact's manifest.json or folder: would this "
                                                           "run make the same? Ends with code 3 where it differs."),
    ] = None,
) -> None:
    """Find every mistake in a run file and in what it reads, without starting anything."""
    run, place = load(file, overrides, profile)
    from alignment.pipeline.run import describe

    notes: dict[str, str] = {}
    findings = mistakes(run, file, place, notes) or _damaged(run if place is None else place.applied(run), place, deep)
    if findings:
        raise ConfigErrors(findings)
    width = max(len(stage.name) for stage in run.stages)
    for stage in (settled_here(run) if place is None else settled_here(place.applied(run))).stages:
        note = ", ".join(text for text in (notes.get(stage.name), stage.arithmetic) if text)
        say(f"{stage.name:<{width}}  {describe(stage)}" + (f"  ({note})" if note else ""))
    for idle in place.idle(run) if place is not None else ():
        say(f"! {idle}")
    say("ok")
    if manifest is not None:
        _compare(run, place, manifest)


def _compare(run: Run, profile: Profile | None, manifest: str) -> None:
    """Say every difference; ends with DIFFERS where there is one."""
    from alignment.pipeline.same_as import same_as

    here = profile is None or profile.cluster is None
    found = same_as(run if profile is None else profile.applied(run), manifest, here=here)
    for one in found:
        if one.same:
            say(f"stage {one.stage} is {one.key}" + (", computed alike" if here else ""))
        if one.made:
            say(f"stage {one.stage} would not be {one.key}:")
        for line in one.made:
            say(f"  {line}")
        if one.computed:
            say(f"stage {one.stage}: the same in law, not to the bit, since it was computed otherwise:" if not one.made
                else "  computed otherwise:")
        for line in one.computed:
            say(f"    {line}")
    if not here:
        say("device and libraries are those of the profile's image and nodes, and not compared")
    if not all(one.same for one in found):
        raise typer.Exit(DIFFERS)


def mistakes(run: Run, file: str, profile: Profile | None, notes: dict[str, str] | None = None) -> list[ConfigError]:
    """What is known to fail of `run` (loaded from `file`), as it would be executed under `profile`.

    Args:
        notes: gets a few words on what was seen, by stage.
    """
    from alignment.checks.context import beyond_context
    from alignment.checks.stages import wrong, wrong_here
    from alignment.checks.store import store

    notes = {} if notes is None else notes
    found: list[ConfigError] = []
    for index, stage in enumerate(run.stages):
        executed = run if profile is None else profile.applied(run, stage)
        found += [_finding(file, ("stages", index, *place), error) for place, error in wrong(executed, stage, notes)]
        found += [_finding(file, ("stages", index, *place), error) for place, error in beyond_context(run, stage)]
    if profile is None or profile.cluster is None:
        found += [_finding(file, ("stages", index, *place), error)
                  for index, stage in enumerate(run.stages) for place, error in wrong_here(stage)]
        url = run.store if profile is None else profile.applied(run).store
        return found + [_finding(file, ("store",), error) for error in store(url)]
    found += [ConfigError(item.problem, where=f"profile {profile.name} ({dotted(item.place)})", found=item.found,
                          expected=item.expected) for item in profile.findings(run)]
    return found or list(_unfit(run, profile))


def _unfit(run: Run, profile: Profile) -> Iterator[ConfigError]:
    """What cannot travel to a cluster, and pods that could not hold their stage."""
    from alignment.cluster.manifests.bundle import bundle
    from alignment.cluster.manifests.ray_job import ray_job

    try:
        bundle(run, profile)
    except ConfigErrors as errors:
        yield from errors.findings
    except ConfigError as error:
        yield error
    for stage in run.stages:
        try:
            ray_job(run, stage, profile, namespace="default", name=stage.name, config_map=run.name, attempt=1)
        except ConfigError as error:
            yield error


def _damaged(run: Run, profile: Profile | None, deep: bool) -> list[ConfigError]:
    """Damaged files of finished artifacts: by size where that is quick, by digest where it was asked for."""
    from alignment.artifacts import Store
    from alignment.pipeline import damaged

    store = Store(run.store)
    if store.is_local and profile is not None and profile.cluster is not None:
        if deep:
            raise ConfigError("the store is a volume of the cluster, which is not read from here", where="--deep",
                              found=run.store, hint="kubealign check RUN.yaml --deep where the volume is mounted")
        return []
    # A run that was never executed has no digests at hand: those of its data may take long.
    if not deep and not (store.is_local and Path(store.root, "runs", run.name).is_dir()):
        return []
    return [ConfigError(error.problem, where=error.where, found=error.found, expected=error.expected, hint=error.hint)
            for error in damaged(run, deep=deep)]


def _finding(file: str, place: Place, error: KubeAlignError) -> ConfigError:
    # The error's own place (a row of a data file) matters as much as the line of the run file that led there.
    problem = error.problem if error.where is None else f"{error.problem} ({error.where})"
    return ConfigError(problem, where=place_of(file, place), found=error.found, expected=error.expected,
                       hint=error.hint)
