"""`--target rayjob`: each attempt at a stage is a RayJob with a Ray cluster of its own, driven from here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from alignment.cluster.client.client import Object
from alignment.cluster.manifests.bundle import config_map
from alignment.cluster.manifests.labels import ATTEMPT_LABEL, labels
from alignment.cluster.manifests.pods import cluster_of
from alignment.cluster.manifests.ray_job import ray_job
from alignment.cluster.status.reading import Ended, ended, gist
from alignment.cluster.storage.truth import Truth
from alignment.cluster.watch.logs import Follower
from alignment.cluster.watch.voice import Voice
from alignment.cluster.watch.wait import wait_ray_job
from alignment.config import AnyStage
from alignment.errors import StageError


class RayJobs:
    """A `Transport` through the API server."""

    noun = "RayJob"

    def __init__(self, truth: Truth, voice: Voice) -> None:
        self.run, self.profile, self.client = truth.run, truth.profile, truth.client
        self.truth, self.voice, self.cluster = truth, voice, cluster_of(truth.profile)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The run's ConfigMap, which stays."""
        self._sweep()
        self.client.apply(config_map(self.truth.bundle, name=self.truth.config_map, namespace=self.client.namespace))
        yield

    def attempts(self, stage: AnyStage, named: Callable[[int], str]) -> dict[int, bool]:
        found = {}
        for job in self.client.list("RayJob", labels(self.run.name, stage.name)):
            number = job["metadata"]["labels"].get(ATTEMPT_LABEL, "")
            if number.isdecimal() and job["metadata"]["name"] == named(int(number)):
                found[int(number)] = ended(job) is None
        return found

    def start(self, stage: AnyStage, number: int, name: str) -> None:
        # Made once and never applied again: that would take back what a queue has admitted.
        self.client.apply(ray_job(self.run, stage, self.profile, namespace=self.client.namespace, name=name,
                                  config_map=self.truth.config_map, attempt=number))

    def follow(self, stage: AnyStage, name: str) -> Ended:
        follower: list[Follower] = []

        def change(words: str, job: Object) -> None:
            self.voice.say(f"  {stage.name}: {words}")
            if not follower and job.get("status", {}).get("jobDeploymentStatus") == "Running":
                follower.append(Follower(self.client, name, self.voice.write))

        end = wait_ray_job(self.client, name, on_change=change)
        if follower:
            follower[0].end()
        return end

    def left_alone(self, name: str) -> str:
        return f"it goes on without this command: kubealign logs and status show it (RayJob {name})"

    def next_one(self, stage: str, label: str, end: Ended) -> str:
        return f"{label} attempt failed, next one on a fresh cluster: {gist(end.message).splitlines()[0]}"

    def given_up(self, stage: str, name: str, end: Ended, tries: int) -> StageError:
        why = {"user": "the stage ended with what only a change of the run, its data or the profile can mend",
               "gone": "its RayJob was deleted"}.get(end.how, f"the stage failed {tries} times")
        return StageError(f"{why}\n    {gist(end.message).replace(chr(10), chr(10) + '    ')}",
                          where=f"stage {stage}, RayJob {name}",
                          hint=f"kubealign logs RUN.yaml --profile {self.profile.name} --stage {stage}; finished "
                               "stages are kept, submit again to go on")

    def _sweep(self) -> None:
        """Delete RayJobs of this run that ended longer ago than the profile keeps them; the storage has their logs."""
        for job in self.client.list("RayJob", labels(self.run.name)):
            stamp = job.get("status", {}).get("endTime")
            # An AlignmentRun's children are the operator's.
            if stamp and not job["metadata"].get("ownerReferences") and ended(job) is not None:
                age = time.time() - datetime.fromisoformat(stamp).replace(tzinfo=UTC).timestamp()
                if age > self.cluster.keep_finished:
                    self.client.delete("RayJob", job["metadata"]["name"])
