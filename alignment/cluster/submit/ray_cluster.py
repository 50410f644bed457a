"""`--target job`: `ray job submit` of each attempt at a stage to a Ray cluster that is there already.

By default that is the chart's, reached through the API server. The bundle of the run is the working directory.
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.cluster.client.client import Client
from alignment.cluster.client.forward import forwarded, ray_head
from alignment.cluster.manifests.bundle import RUN_FILE, bundle, config_map, unpack
from alignment.cluster.manifests.labels import RUN_LABEL, job_name, log_attempt
from alignment.cluster.manifests.pods import RUN_FOLDER
from alignment.cluster.manifests.ray_job import entrypoint
from alignment.cluster.manifests.submission import chosen
from alignment.cluster.status.reading import Ended
from alignment.cluster.storage.truth import Truth
from alignment.cluster.watch.voice import Voice
from alignment.config import AnyStage, Profile, Run
from alignment.errors import KubeAlignError, StageError
from alignment.exits import Exit
from alignment.pipeline.keys import keys

if TYPE_CHECKING:
    from alignment.distributed.submit import JobApi

RAY_CLUSTER = "kubealign"
"""The chart's RayCluster, and the Secret with its token."""
DASHBOARD = 8265


class RayClusterJobs:
    """A `Transport` over Ray's job API."""

    noun = "job"

    def __init__(self, truth: Truth, voice: Voice, address: str | None) -> None:
        """
        Args:
            address: http://HOST:8265; None: the head of the RayCluster `kubealign` in the client's namespace.
        """
        self.truth, self.voice, self.address = truth, voice, address
        self.api: JobApi
        self.folder: Path

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The bundle, unpacked, and a way to the job API."""
        client, truth = self.truth.client, self.truth
        with _reached(client, self.address) as self.api, tempfile.TemporaryDirectory() as folder:
            self.folder = Path(folder)
            unpack(config_map(truth.bundle, name=truth.config_map, namespace=client.namespace), self.folder)
            yield

    def attempts(self, stage: AnyStage, named: Callable[[int], str]) -> dict[int, bool]:
        found = self.api.attempts(named(0).removesuffix("0"))
        return {number: state in ("PENDING", "RUNNING") for number, state in found.items()}

    def start(self, stage: AnyStage, number: int, name: str) -> None:
        self.api.submit(name, entrypoint_in_bundle(self.truth.profile, stage), self.folder,
                        {"KUBEALIGN_ATTEMPT": log_attempt(name)}, {RUN_LABEL: self.truth.run.name})

    def follow(self, stage: AnyStage, name: str) -> Ended:
        code = self.api.wait(name, self.voice.write)
        said = f"exit code {code}"
        if code == Exit.DONE:
            return Ended("succeeded", said)
        return Ended("user" if code == Exit.USER else "failed", said)

    def left_alone(self, name: str) -> str:
        return f"it goes on without this command as job {name}"

    def next_one(self, stage: str, label: str, end: Ended) -> str:
        return f"{stage} failed ({end.message}), next attempt"

    def given_up(self, stage: str, name: str, end: Ended, tries: int) -> StageError:
        why = "the stage ended with what only a change of the run or its data can mend"
        return StageError(why if end.how == "user" else f"the stage failed {tries} times", where=f"stage {stage}",
                          found=end.message,
                          hint="its output stands above; finished stages are kept, submit again to go on")


def job_specs(run: Run, profile: Profile, only: str | None = None) -> list[dict[str, Any]]:
    """What would be submitted for each stage at its first attempt, as plain data for --dry-run."""
    packed, known = bundle(run, profile), keys(profile.applied(run))
    named = {stage.name: job_name(run.name, stage.name, known[stage.name].digest, 1) for stage in chosen(run, only)}
    return [{"submission_id": named[stage.name], "entrypoint": entrypoint_in_bundle(profile, stage),
             "metadata": {RUN_LABEL: run.name},
             "runtime_env": {"working_dir": [RUN_FILE, *packed.files],
                             "env_vars": {"KUBEALIGN_ATTEMPT": log_attempt(named[stage.name])}}}
            for stage in chosen(run, only)]


def entrypoint_in_bundle(profile: Profile, stage: AnyStage) -> str:
    """A stage's command where the bundle is the working directory instead of a mounted ConfigMap."""
    return entrypoint(profile, stage).replace(f"{RUN_FOLDER}/{RUN_FILE}", RUN_FILE)


def stop_jobs(run: str, client: Client, address: str | None, say: Callable[[str], None]) -> list[str]:
    """Stop the jobs that `--target job` has at work for a run; one sentence for each.

    Args:
        address: as in RayClusterJobs; None: the RayCluster `kubealign`, where there is one.
        say: told when that one cannot be looked at.
    """
    try:
        if address is None and not (client.has("RayCluster") and client.exists("RayCluster", RAY_CLUSTER)):
            return []
        with _reached(client, address) as api:
            return [f"job {name} is stopped" for name in api.stop({RUN_LABEL: run})]
    except KubeAlignError as error:
        if address is not None:
            raise
        say(f"! jobs of --target job on RayCluster {RAY_CLUSTER} were not looked at: {error.problem}")
        return []


@contextmanager
def _reached(client: Client, address: str | None) -> Iterator[JobApi]:
    """Ray's job API at an address, or through a tunnel to the head of the chart's RayCluster."""
    # Inside the function: the other targets need no Ray on this machine. importlinter.ini names this one import.
    from alignment.distributed.submit import JobApi

    token = os.environ.get("RAY_AUTH_TOKEN")
    if address is not None:
        yield JobApi(address, token)
        return
    head = ray_head(client, RAY_CLUSTER)
    if token is None:
        secret = client.find("Secret", RAY_CLUSTER)  # made by KubeRay, named after the RayCluster
        text = (secret or {}).get("data", {}).get("auth_token")
        token = base64.b64decode(text).decode() if text else None
    with forwarded(client, head, DASHBOARD) as port:
        yield JobApi(f"http://127.0.0.1:{port}", token)
