"""`check`: every mistake that can be found before anything is started, all at once.

A cluster itself is not asked: `kubealign preflight` does that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignment.cli.options import Here, Overrides, ProfileName, RunFile, load
from alignment.cli.probes import refuted_here
from alignment.cli.show import say
from alignment.config import Profile, Run, place_of
from alignment.config.arithmetic import settled_here
from alignment.config.rounds import once
from alignment.config.stages.fields import Place
from alignment.config.yaml_nodes import dotted
from alignment.errors import ConfigError, ConfigErrors, KubeAlignError

if TYPE_CHECKING:
    from alignment.artifacts import Artifact
    from alignment.checks.seen import Sight

DIFFERS = 3
"""Exit code of `check --same-as` where there is a difference."""
QUICK = 4_000_000
"""Bytes of one data file up to which it is read before a run begins, and then once more by its stage."""


def check(
    file: RunFile,
    profile: ProfileName = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every file of the run's finished artifacts, and compare "
                                                      "its digest.")] = False,
    here: Here = False,
    overrides: Overrides = None,
    manifest: Annotated[
        str | None,
        typer.Option("--same-as", metavar="MANIFEST", help="A finished artifact's manifest.json or folder: would this "
                                                           "run make the same? Ends with code 3 where it differs."),
    ] = None,
) -> None:
    """Find every mistake in a run file and in what it reads, without starting anything."""
    run, place = load(file, overrides, profile, here=here)
    from alignment.checks.seen import READ_LIMIT, Sight
    from alignment.pipeline.run import describe
    from alignment.planner.serving import short_of

    sight = Sight(READ_LIMIT)
    findings = mistakes(run, file, place, sight) or _damaged(run if place is None else place.applied(run), place, deep)
    if findings:
        raise ConfigErrors(findings)
    width = max(len(stage.name) for stage in run.stages)
    for stage in settled_here(run if place is None else place.applied(run)).stages:
        note = ", ".join((*sight.notes.get(stage.name, ()), *filter(None, [stage.arithmetic])))
        say(f"{stage.name:<{width}}  {describe(run, stage)}" + (f"  ({note})" if note else ""))
    short = None if place is None else short_of(place.applied(run), place)
    for warning in (*sight.warnings, *(place.idle(run) if place is not None else ()), *filter(None, [short])):
        say(f"! {warning}")
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


def refuse(run: Run, file: str, profile: Profile | None, only: str | None = None) -> None:
    """Before anything is made: raise ConfigErrors with what is known to fail of the stages that are left to make. Data
    files that take long are left to their stages."""
    from alignment.checks.seen import Sight
    from alignment.pipeline import status
    from alignment.report.reading import unneeded_of

    if any("://" in (source.path or "") for stage in run.stages for source in stage.sources()):
        return  # whose digests are fetched to know what is finished: once is enough
    found = status(run if profile is None else profile.applied(run))
    spared = unneeded_of(run, found)
    if any(artifact is None for name, artifact in found.items() if name not in spared and only in (None, name)):
        findings = mistakes(run, file, profile, Sight(QUICK), found, only) or refuted_here(
            run if profile is None else profile.applied(run), file, found, only)
        if findings:
            raise ConfigErrors(findings)


def mistakes(
    run: Run, file: str, profile: Profile | None, sight: Sight | None = None,
    finished: Mapping[str, Artifact | None] | None = None, only: str | None = None,
) -> list[ConfigError]:
    """What is known to fail of `run` (loaded from `file`), as it would be executed under `profile`.

    Args:
        sight: gets what was seen, and what is hardly meant.
        finished: artifacts by stage; what is finished is not asked again.
        only: the stage to be made, if it is not all that are left.
    """
    from alignment.checks.context import beyond_context
    from alignment.checks.endpoints import reachable_here
    from alignment.checks.engines import installed, servable
    from alignment.checks.finished import made
    from alignment.checks.machine import devices, four_bits, room, sharding
    from alignment.checks.seen import READ_LIMIT, Sight
    from alignment.checks.stages import wrong, wrong_here
    from alignment.checks.store import store
    from alignment.reference.aims import unmade

    sight = Sight(READ_LIMIT) if sight is None else sight
    found = [_finding(file, place, error) for place, error in unmade(run)]
    here = profile is None or profile.cluster is None
    for index, stage in enumerate(run.stages):
        executed = run if profile is None else profile.applied(run, stage)
        artifact = (finished or {}).get(stage.name)
        wrongs = [*wrong(executed, stage, sight), *beyond_context(run, stage, sight), *servable(executed, stage, sight),
                  *((*wrong_here(stage), *reachable_here(run, stage)) if here else ()),
                  *room(executed, stage, profile),
                  *four_bits(executed, stage, profile, sight)] if artifact is None else []
        if artifact is not None:
            made(stage, artifact, sight)
        if only in (None, stage.name):
            found += [_finding(file, ("stages", index, *place), error) for place, error in wrongs]
    found = once(found)
    if profile is None or profile.cluster is None:
        executed = run if profile is None else profile.applied(run)
        for key, error in (*devices(executed.compute), *sharding(executed.compute),
                           *installed(run, executed.compute)):
            where = place_of(file, ("compute", key)) if profile is None else f"profile {profile.name} (compute.{key})"
            found.append(ConfigError(error.problem, where=where, found=error.found, expected=error.expected))
        return found + [_finding(file, ("store",), error) for error in store(executed.store)]
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
