"""Sends a run to a cluster: one RayJob per stage, driven from here (`--target rayjob`), or one AlignmentRun.

A stage is finished when the storage has its manifest; a RayJob that says so is not believed. A stage that failed for
want of machines is tried again as a new RayJob, that is on a fresh Ray cluster; the user's own error is not. Names are
deterministic: who submits the same run again joins what is there. Prints nothing: sentences and lines of output go to
a `Voice`. Following an AlignmentRun is follow.py's; `--target job` is driven by the command line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from alignment.artifacts import Manifest
from alignment.cluster.bundle import bundle, config_map
from alignment.cluster.client import Client, Object
from alignment.cluster.labels import ATTEMPT_LABEL, labels
from alignment.cluster.logs import Follower
from alignment.cluster.manifests import job_name, ray_job
from alignment.cluster.operator.types import Gate, alignment_run
from alignment.cluster.refusals import ClusterError, cluster_error
from alignment.cluster.truth import Truth
from alignment.cluster.wait import Ended, ended, exit_code, gist, wait_ray_job
from alignment.config import AnyStage, Cluster, Profile, Run
from alignment.errors import ConfigError, StageError
from alignment.exits import Exit
from alignment.pipeline.keys import Key, keys


@dataclass(frozen=True)
class Voice:
    """Where sentences of progress (`say`) and lines of a stage's output (`write`) go."""

    say: Callable[[str], None]
    write: Callable[[str], None]


def dry_run(
    run: Run, profile: Profile, *, namespace: str, target: str, only: str | None = None,
    gates: tuple[Gate, ...] = (), retries: int = 2,
) -> list[Object]:
    """The manifests that a submit to `target` (rayjob or run) would apply on an empty storage; asks no cluster.

    Raises:
        KubeAlignError: the run cannot go to a cluster with this profile.
    """
    packed = bundle(run, profile)
    name = packed.name_for(run.name)
    files = config_map(packed, name=name, namespace=namespace)
    if target == "run":
        return [files, alignment_run(run, profile, packed, namespace=namespace, config_map=name, gates=gates,
                                     retries=retries)]
    known = keys(run)
    return [files, *(
        ray_job(run, stage, profile, namespace=namespace, config_map=name, attempt=1,
                name=job_name(run.name, stage.name, known[stage.name].digest, 1)) for stage in chosen(run, only))]


def chosen(run: Run, only: str | None) -> Sequence[AnyStage]:
    """The stages that are asked for. Raises ConfigError for an unknown name."""
    stages = [stage for stage in run.stages if only in (None, stage.name)]
    if not stages:
        raise ConfigError("no stage of this name", where="--stage", found=only,
                          expected="one of " + ", ".join(stage.name for stage in run.stages))
    return stages


class RayJobs:
    """Drives the unfinished stages of a run as RayJobs, one after the other."""

    def __init__(self, run: Run, profile: Profile, client: Client, voice: Voice) -> None:
        """Raises KubeAlignError where the run cannot go to a cluster."""
        assert profile.cluster is not None
        self.run, self.profile, self.client, self.voice = run, profile, client, voice
        self.cluster: Cluster = profile.cluster
        self.truth = Truth(run, profile, client, voice.say)
        self.known: dict[str, Key] = keys(run)

    def submit(self, *, only: str | None = None, retries: int = 2, wait: bool = False) -> dict[str, Manifest | None]:
        """Make every unfinished stage.

        Args:
            only: this stage alone.
            retries: further attempts at a stage after failures that are not the user's.
            wait: also for the last stage; before, each one has to be waited for anyway.

        Returns:
            Stage name -> manifest of what the storage has at the end.

        Raises:
            StageError: the user's error in a stage, or one that failed in all its attempts.
            ClusterError: the cluster refuses, or its storage cannot be read.
        """
        stages = chosen(self.run, only)
        found = self.truth.manifests()
        left = [stage for stage in stages if found[stage.name] is None]
        for stage in stages:
            if stage not in left:
                self.voice.say(f"= {self.label(stage)} finished before")
        if left:
            self._sweep()
            self.client.apply(config_map(self.truth.bundle, name=self.truth.config_map,
                                         namespace=self.client.namespace))
        for stage in left:
            if stage is left[-1] and not wait and len(left) == 1:
                name = self._start(stage)
                self.voice.say(f"  it goes on without this command: kubealign logs and status show it (RayJob {name})")
                return found
            found = self._make(stage, retries)
        return found

    def label(self, stage: AnyStage) -> str:
        return f"{stage.name} {self.known[stage.name].digest[:12]}"

    def _make(self, stage: AnyStage, retries: int) -> dict[str, Manifest | None]:
        end = Ended("failed")
        for again in range(retries + 1):
            name = self._start(stage)
            end = self._watch(stage, name)
            # A job may die after its artifact was published, and Ray may report success without one.
            found = self.truth.manifests()
            manifest = found[stage.name]
            if manifest is not None:
                self.voice.say(f"+ {self.label(stage)} finished in {manifest.seconds:.1f} s")
                return found
            if end.how == "succeeded":
                end = Ended("failed", "the RayJob succeeded, but the storage has no artifact of it")
            if end.how in ("user", "gone"):
                break
            if again < retries:
                self.voice.say(f"! {self.label(stage)} attempt failed, next one on a fresh cluster: "
                               f"{gist(end.message).splitlines()[0]}")
        why = {"user": "the stage ended with what only a change of the run, its data or the profile can mend",
               "gone": "its RayJob was deleted"}.get(end.how, f"the stage failed {retries + 1} times")
        raise StageError(f"{why}\n    {gist(end.message).replace(chr(10), chr(10) + '    ')}",
                         where=f"stage {stage.name}, RayJob {name}",
                         hint=f"kubealign logs RUN.yaml --profile {self.profile.name} --stage {stage.name}; finished "
                              "stages are kept, submit again to go on")

    def _start(self, stage: AnyStage) -> str:
        """Join the live RayJob of a stage, or make the next attempt's; returns its name."""
        digest = self.known[stage.name].digest
        attempts = {}
        for job in self.client.list("RayJob", labels(self.run.name, stage.name)):
            number = job["metadata"]["labels"].get(ATTEMPT_LABEL, "")
            if number.isdecimal() and job["metadata"]["name"] == job_name(
                    self.run.name, stage.name, digest, int(number)):
                attempts[int(number)] = job
        live = [number for number, job in attempts.items() if ended(job) is None]
        number = max(live) if live else max(attempts, default=0) + 1
        name = job_name(self.run.name, stage.name, digest, number)
        self.voice.say(f"> {self.label(stage)} RayJob {name}" + (", which is at work already" if live else ""))
        if not live:
            # Made once and never applied again: that would take back what a queue has admitted.
            self.client.apply(ray_job(self.run, stage, self.profile, namespace=self.client.namespace, name=name,
                                      config_map=self.truth.config_map, attempt=number))
        return name

    def _watch(self, stage: AnyStage, name: str) -> Ended:
        follower: list[Follower] = []

        def change(words: str, job: Object) -> None:
            self.voice.say(f"  {stage.name}: {words}")
            if not follower and job.get("status", {}).get("jobDeploymentStatus") == "Running":
                follower.append(Follower(self.client, name, self.voice.write))

        end = wait_ray_job(self.client, name, start_within=self.cluster.start_within, on_change=change)
        tail = follower[0].end() if follower else []
        if end.how == "failed" and any(exit_code(line) == Exit.USER for line in tail[-30:]):
            return Ended("user", "\n".join([end.message, *tail[-20:]]))
        return end

    def _sweep(self) -> None:
        """Delete RayJobs of this run that ended longer ago than the profile keeps them; the storage has their logs."""
        for job in self.client.list("RayJob", labels(self.run.name)):
            stamp = job.get("status", {}).get("endTime")
            # An AlignmentRun's children are the operator's.
            if stamp and not job["metadata"].get("ownerReferences") and ended(job) is not None:
                age = time.time() - datetime.fromisoformat(stamp).replace(tzinfo=UTC).timestamp()
                if age > self.cluster.keep_finished:
                    self.client.delete("RayJob", job["metadata"]["name"])


def cancel(client: Client, run: str) -> list[str]:
    """Stop what a run has on the cluster and keep its artifacts: suspend its AlignmentRun, delete RayJobs that are not
    the operator's. Jobs on a RayCluster that is there already are not seen here.

    Returns:
        What was done, one sentence for each object; nothing where there was nothing.
    """
    done, kinds = [], ["RayJob", "ConfigMap"]
    if client.has("AlignmentRun") and client.find("AlignmentRun", run) is not None:
        client.patch("AlignmentRun", run, {"spec": {"suspend": True}})
        done.append(f"AlignmentRun {run} is suspended")
        kinds.remove("ConfigMap")  # one that its operator has not taken over yet is needed when it goes on
    for kind in kinds:
        for item in client.list(kind, labels(run)):
            if item["metadata"].get("ownerReferences"):
                continue
            if client.delete(kind, item["metadata"]["name"]):
                done.append(f"{kind} {item['metadata']['name']} is deleted")
    return done


def needs_namespace(client: Client) -> None:
    """Raises ClusterError where the client's namespace does not exist: a list in it would just be empty."""
    try:
        there = client.exists("Namespace", client.namespace)
    except ClusterError as error:
        if error.status != 403:
            raise
        there = True
    if not there:
        raise cluster_error("the namespace does not exist", where="--namespace", found=client.namespace,
                            hint=f"kubectl create namespace {client.namespace}, or name another with -n")
