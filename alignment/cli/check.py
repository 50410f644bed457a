"""`check`: every mistake that can be found before anything is started, all at once.

A cluster itself is not asked: `kubealign preflight` does that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from alignment.cli.options import Overrides, ProfileName, RunFile, load
from alignment.cli.show import say
from alignment.config import Profile, Run, place_of
from alignment.config.stages.fields import Place
from alignment.config.yaml_nodes import dotted
from alignment.errors import ConfigError, ConfigErrors, KubeAlignError

if TYPE_CHECKING:
    from alignment.artifacts import Artifact
    from alignment.checks.seen import Sight

QUICK = 4_000_000
"""Bytes of one data file up to which it is read before a run begins, and then once more by its stage."""


def check(file: RunFile, profile: ProfileName = None, overrides: Overrides = None) -> None:
    """Find every mistake in a run file and in what it reads, without starting anything."""
    run, place = load(file, overrides, profile)
    from alignment.checks.seen import READ_LIMIT, Sight
    from alignment.pipeline.run import describe

    sight = Sight(READ_LIMIT)
    findings = mistakes(run, file, place, sight)
    if findings:
        raise ConfigErrors(findings)
    width = max(len(stage.name) for stage in run.stages)
    for stage in run.stages:
        note = ", ".join(sight.notes.get(stage.name, ()))
        say(f"{stage.name:<{width}}  {describe(stage)}" + (f"  ({note})" if note else ""))
    for warning in (*sight.warnings, *(place.idle(run) if place is not None else ())):
        say(f"! {warning}")
    say("ok")


def refuse(run: Run, file: str, profile: Profile | None, only: str | None = None) -> None:
    """Before anything is made: raise ConfigErrors with what is known to fail of the stages that are left to make. Data
    files that take long are left to their stages."""
    from alignment.checks.seen import Sight
    from alignment.pipeline import status

    if any("://" in (source.path or "") for stage in run.stages for source in stage.sources()):
        return  # whose digests are fetched to know what is finished: once is enough
    found = status(run if profile is None else profile.applied(run))
    if None in (found.values() if only is None else [found.get(only)]):
        findings = mistakes(run, file, profile, Sight(QUICK), found, only)
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
    from alignment.checks.machine import devices
    from alignment.checks.seen import READ_LIMIT, Sight
    from alignment.checks.stages import made, wrong, wrong_here
    from alignment.checks.store import store
    from alignment.reference.aims import unmade

    sight = Sight(READ_LIMIT) if sight is None else sight
    found = [_finding(file, place, error) for place, error in unmade(run)]
    here = profile is None or profile.cluster is None
    for index, stage in enumerate(run.stages):
        executed = run if profile is None else profile.applied(run, stage)
        artifact = (finished or {}).get(stage.name)
        wrongs = [*wrong(executed, stage, sight), *(wrong_here(stage) if here else ())] if artifact is None else []
        if artifact is not None:
            made(stage, artifact, sight)
        if only in (None, stage.name):
            found += [_finding(file, ("stages", index, *place), error) for place, error in wrongs]
    if profile is None or profile.cluster is None:
        executed = run if profile is None else profile.applied(run)
        for key, error in devices(executed.compute):
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


def _finding(file: str, place: Place, error: KubeAlignError) -> ConfigError:
    # The error's own place (a row of a data file) matters as much as the line of the run file that led there.
    problem = error.problem if error.where is None else f"{error.problem} ({error.where})"
    return ConfigError(problem, where=place_of(file, place), found=error.found, expected=error.expected,
                       hint=error.hint)
