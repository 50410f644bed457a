"""`preflight`, `submit`, `logs`, `cancel` and `resume`: a run on Kubernetes.

    kubealign preflight RUN.yaml --profile dev-cpu --target kubernetes
    kubealign submit    RUN.yaml --profile dev-cpu --target rayjob --wait

Thin: the work is `alignment.cluster`'s, loaded inside the functions. Exit code 0 of a `submit` that waited means that
every stage asked for has its manifest in the storage.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from alignment.cli.check import mistakes
from alignment.cli.options import (
    ClusterProfile,
    Context,
    Here,
    KnownProfile,
    Namespace,
    Overrides,
    RunFile,
    StageName,
    as_typed,
    load,
    told_of_here,
)
from alignment.cli.probes import refuted_there
from alignment.cli.remote import connect, progress, remote_logs, unwound
from alignment.cli.show import say, table
from alignment.config import Profile, Run, parse_aim
from alignment.errors import ConfigError, ConfigErrors
from alignment.exits import Exit

if TYPE_CHECKING:
    from alignment.cluster.client.client import Client
    from alignment.cluster.manifests.alignment_run import Gate, Status
    from alignment.cluster.submit.driver import Driver
    from alignment.cluster.watch.voice import Voice

DEFAULT_PROFILE = "dev-cpu"
Address = Annotated[str | None, typer.Option(metavar="URL", help="Of --target job: Ray's job API, http://HOST:8265. "
                                                                 "Default: the chart's RayCluster.")]


class Target(StrEnum):
    """How a run is sent: jobs on the chart's RayCluster, RayJobs driven from here, or an AlignmentRun."""

    job = "job"
    rayjob = "rayjob"
    run = "run"


class PreflightTarget(StrEnum):
    """What to look for: everything (`kubernetes`), or what one target needs."""

    kubernetes = "kubernetes"
    job = "job"
    rayjob = "rayjob"
    run = "run"


def _loaded(
    file: str, overrides: list[str] | None, profile: str, *, contacts: bool = True, only: str | None = None
) -> tuple[Run, Profile]:
    """Run and profile, without a mistake that `check` finds, nor a stage that a probe has refuted: no pod should be
    waited for to be told of it.

    Args:
        contacts: whether the profile's storage may be looked at for probes.
    """
    run, place = load(file, overrides, profile)
    if place is None or place.cluster is None:
        raise ConfigError("this profile is for this machine, not for Kubernetes", where="--profile", found=profile,
                          expected="a profile with `cluster`", hint=f"kubealign run {file} --profile {profile}")
    findings = mistakes(run, file, place)
    if findings:
        raise ConfigErrors(findings)
    refusals, said = refuted_there(run, place, contacts=contacts, only=only)
    if refusals:
        raise ConfigErrors(refusals)
    for sentence in (*(f"! {idle}" for idle in place.idle(run)), *said):
        progress(sentence)
    return run, place


@unwound()
def preflight(
    file: RunFile,
    profile: ClusterProfile = DEFAULT_PROFILE,
    target: Annotated[PreflightTarget, typer.Option(help="What to look for.")] = PreflightTarget.kubernetes,
    namespace: Namespace = None,
    context: Context = None,
    overrides: Overrides = None,
) -> None:
    """Look at everything that the run will need on the cluster; ends with code 2 when something would fail."""
    run, place = _loaded(file, overrides, profile)
    client = connect(namespace, context, must_exist=False)
    from alignment.cluster.preflight.checks import preflight as look

    findings = look(run, place, client, target=target.value, say=progress)
    table(("", "what", "seen", "what to do"),
          [(item.state.upper() if item.state == "fail" else item.state, item.topic, item.seen, item.do)
           for item in findings])
    counts = {state: sum(item.state == state for item in findings) for state in ("ok", "warn", "fail")}
    say("\n" + ", ".join(f"{count} {state}" for state, count in counts.items()))
    if counts["fail"]:
        raise typer.Exit(Exit.USER)
    aim = "" if target is PreflightTarget.kubernetes else f" --target {target}"
    say(f"  kubealign submit {as_typed(file, profile, client.namespace, context, overrides)}{aim}")


@unwound("what was submitted goes on in the cluster: see kubealign logs, status and cancel")
def submit(
    file: RunFile,
    profile: ClusterProfile = DEFAULT_PROFILE,
    target: Annotated[Target, typer.Option(help="job: to the chart's RayCluster. rayjob: a Ray cluster per stage, "
                                                "driven from here. run: driven by the operator.")] = Target.rayjob,
    stage: StageName = None,
    retries: Annotated[int, typer.Option(min=0, max=20, help="Further attempts after failures not of your own.")] = 2,
    gate: Annotated[list[str] | None, typer.Option(
        metavar="STAGE:BOUND", help="Of --target run: stop after STAGE unless BOUND holds (evaluate.win_rate >= 0.55), "
                                    "or wait for a person (STAGE:approval).")] = None,
    address: Address = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end; implied for several stages of rayjob "
                                                      "and job.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent; contact nothing.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    overrides: Overrides = None,
) -> None:
    """Send a run to a cluster. Finished stages are left alone."""
    run, place = _loaded(file, overrides, profile, contacts=not dry_run, only=stage)
    _fitting(target, stage, gate, address)
    if dry_run:
        _print_dry(run, place, namespace or "default", target, stage, gate, retries)
        return
    client = connect(namespace, context)
    voice, again = _voice(), as_typed(file, profile, client.namespace, context, overrides)
    if target is Target.run:
        from alignment.cluster.submit.to_operator import submit_run
        from alignment.cluster.watch.follow import wait_run

        submit_run(run, place, client, voice, gates=_gates(gate, run), retries=retries)
        status = wait_run(client, run.name, voice) if wait else None
        _done(again, finished=wait)
        if run.serve is not None:
            _say_served(run, client, context, status)
        return
    found = _driver(run, place, client, voice, target, address).submit(only=stage, retries=retries, wait=wait)
    _done(again, finished=all(found[item.name] is not None for item in run.stages if stage in (None, item.name)))
    if run.serve is not None:
        say(f"! --target {target} serves nothing, and the run has `serve`: --target run does, once all is finished; on "
            f"a machine that has the storage kubealign serve {file} --profile {profile}")


def _voice() -> Voice:
    from alignment.cluster.watch.voice import Voice

    return Voice(progress, lambda line: print(f"    {line}", flush=True))


def _driver(run: Run, profile: Profile, client: Client, voice: Voice, target: Target, address: str | None) -> Driver:
    """What makes the stages of a run that is driven from here."""
    from alignment.cluster.storage.truth import Truth
    from alignment.cluster.submit.driver import Driver
    from alignment.cluster.submit.ray_cluster import RayClusterJobs
    from alignment.cluster.submit.ray_jobs import RayJobs

    truth = Truth(run, profile, client, voice.say)
    transport = RayClusterJobs(truth, voice, address) if target is Target.job else RayJobs(truth, voice)
    return Driver(truth, transport, voice)


def _fitting(target: Target, stage: str | None, gate: list[str] | None, address: str | None) -> None:
    """Refuse options that the target would not read."""
    for name, value, targets in (("--stage", stage, (Target.rayjob, Target.job)), ("--gate", gate, (Target.run,)),
                                 ("--address", address, (Target.job,))):
        if value and target not in targets:
            raise ConfigError("the option has no meaning for this target", where=name, found=f"--target {target}",
                              expected=" or ".join(f"--target {item}" for item in targets))


def _print_dry(
    run: Run, profile: Profile, namespace: str, target: Target, stage: str | None, gate: list[str] | None, retries: int
) -> None:
    try:
        from alignment.cluster.manifests.submission import dry_run as manifests
        from alignment.cluster.submit.ray_cluster import job_specs
    except ImportError as error:
        raise ConfigError(f"the Kubernetes client is not installed here: {error}", where="submit",
                          hint="pip install 'kubealign[cluster]'") from error
    if target is Target.job:
        documents = job_specs(run, profile, stage)
    else:
        documents = manifests(run, profile, namespace=namespace, target=target.value, only=stage,
                              gates=_gates(gate, run), retries=retries)
    print(yaml.dump_all(documents, Dumper=_Readable, sort_keys=False, allow_unicode=True, width=120), end="")


class _Readable(yaml.SafeDumper):
    """Text of several lines as such: a run file inside a ConfigMap can be read."""


_Readable.add_representer(str, lambda dumper, text: dumper.represent_scalar(
    "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None))


def _gates(given: list[str] | None, run: Run) -> tuple[Gate, ...]:
    from alignment.cluster.manifests.alignment_run import Gate

    made = []
    for text in given or ():
        after, colon, bound = (part.strip() for part in text.partition(":"))
        if not colon or after not in {stage.name for stage in run.stages}:
            raise ConfigError("not a gate", where="--gate", found=text, expected="STAGE:METRIC OP NUMBER or "
                              "STAGE:approval, STAGE being one of " + ", ".join(stage.name for stage in run.stages))
        if bound == "approval":
            made.append(Gate(after=after, approval=True))
            continue
        try:
            parse_aim(bound)
        except ValueError as error:
            raise ConfigError("not a bound", where="--gate", found=bound, expected=str(error)) from error
        made.append(Gate(after=after, metric=bound))
    return tuple(made)


def _say_served(run: Run, client: Client, context: str | None, status: Status | None) -> None:
    """Where a run's models are, or will be, served.

    Args:
        status: of one that was waited for.
    """
    from alignment.cluster.manifests.ray_service import endpoint_of

    back = f"kubealign rollback {as_typed(run.name, None, client.namespace, context, None)}"
    where = f"{endpoint_of(run.name, client.namespace)} (inside the cluster)"
    if status is None or status.serving is None:
        once = "loaded" if run.serve is not None and run.serve.unproved else "proved"
        say(f"its models are served, once they are {once}, at {where}\n  the revision before: {back}")
        return
    serving = status.serving
    unproved = any(item.reason == "Unproved" for item in status.conditions if item.type == "Serving")
    say("; ".join([f"revision {serving.revision} is served{', unproved as asked,' if unproved else ''} at {where}",
                   *([serving.message] if serving.message else [])]))
    if serving.pinned is not None:
        say(f"  the newest revision: {back} --latest")
    elif len(serving.history) > 1:
        say(f"  the revision before: {back}")


def _done(arguments: str, *, finished: bool) -> None:
    say("every stage asked for is finished" if finished else "submitted")
    say(f"  kubealign {'report' if finished else 'status'} {arguments}")


@unwound()
def logs(
    file: RunFile,
    profile: KnownProfile = None,
    stage: StageName = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the stage at work has ended.")] = False,
    here: Here = False,
    namespace: Namespace = None,
    context: Context = None,
    overrides: Overrides = None,
) -> None:
    """What stages printed: from live pods, else from the storage; without a cluster's profile from the run's store."""
    run, place = load(file, overrides, profile, here=here)
    if place is not None and place.cluster is not None:
        told_of_here(run, "logs", as_typed(file, profile, None, None, overrides))
        remote_logs(run, place, namespace=namespace, context=context, stage=stage, follow=follow)
        return
    if follow:
        raise ConfigError("there is nothing to follow without a cluster", where="--follow",
                          hint="add --profile with a cluster's profile")
    from alignment.artifacts import Store
    from alignment.cluster.storage.stored import stored_logs

    applied = run if place is None else place.applied(run)
    if stage is not None and stage not in (names := [item.name for item in run.stages]):
        raise ConfigError("no stage of this name", where="--stage", found=stage, expected="one of " + ", ".join(names))
    found = stored_logs(Store(applied.store), applied.name, stage)
    for name, attempt, text in found:
        print(f"--- {name}, attempt {attempt}\n{text}", end="")
    if not found:
        progress(f"nothing was printed yet: {applied.store} has no log of "
                 + (f"stage {stage}" if stage else f"run {applied.name}"))


@unwound()
def cancel(
    file: RunFile,
    profile: KnownProfile = None,
    address: Address = None,
    namespace: Namespace = None,
    context: Context = None,
    overrides: Overrides = None,
) -> None:
    """Stop what a run has on the cluster; finished stages, checkpoints and logs stay in the storage. What `run` makes
    on this machine ends with Ctrl-C."""
    run, _ = load(file, overrides, profile)
    client = connect(namespace, context)
    from alignment.cluster.submit.cancel import cancel as stop
    from alignment.cluster.submit.ray_cluster import stop_jobs

    done = [*stop(client, run.name), *stop_jobs(run.name, client, address, progress)]
    for sentence in done:
        say(sentence)
    again = as_typed(file, profile, client.namespace, context, overrides)
    say(f"artifacts are kept; to go on: kubealign resume {again}" if done else
        f"namespace {client.namespace} has nothing of run {run.name} to stop")


@unwound("what was submitted goes on in the cluster: see kubealign logs, status and cancel")
def resume(
    file: RunFile,
    profile: ClusterProfile = DEFAULT_PROFILE,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    overrides: Overrides = None,
) -> None:
    """Go on with a run that was cancelled or has failed: its AlignmentRun, or its unfinished stages as RayJobs."""
    run, place = _loaded(file, overrides, profile)
    client = connect(namespace, context)
    from alignment.cluster.submit.to_operator import resume as let_go_on
    from alignment.cluster.watch.follow import wait_run

    voice = _voice()
    if client.has("AlignmentRun") and client.find("AlignmentRun", run.name) is not None:
        let_go_on(client, run.name)
        say(f"AlignmentRun {run.name} goes on")
        status = wait_run(client, run.name, voice) if wait else None
        _done(as_typed(file, profile, client.namespace, context, overrides), finished=wait)
        if status is not None and status.serving is not None:
            _say_served(run, client, context, status)
        return
    found = _driver(run, place, client, voice, Target.rayjob, None).submit(wait=wait)
    _done(as_typed(file, profile, client.namespace, context, overrides), finished=all(found.values()))
