"""`submit --target job`: `ray job submit` of each unfinished stage to a RayCluster that is there already.

By default that is the chart's, reached through the API server; the storage still says what is finished.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.artifacts import Manifest
from alignment.config import AnyStage, Profile, Run
from alignment.errors import KubeAlignError, StageError
from alignment.exits import Exit
from alignment.pipeline.keys import keys

if TYPE_CHECKING:
    from alignment.cluster.client import Client
    from alignment.cluster.submit import Voice

RAY_CLUSTER = "kubealign"
DASHBOARD = 8265


def job_specs(run: Run, profile: Profile, stages: list[AnyStage]) -> list[dict[str, Any]]:
    """What would be submitted for each stage at its first attempt, as plain data for --dry-run."""
    from alignment.cluster.bundle import bundle
    from alignment.cluster.labels import RUN_LABEL, job_name

    packed, known = bundle(run, profile), keys(run)
    return [{"submission_id": job_name(run.name, stage.name, known[stage.name].digest, 1),
             "entrypoint": entrypoint_in_bundle(profile, stage),
             "metadata": {RUN_LABEL: run.name},
             "runtime_env": {"working_dir": ["run.yaml", *packed.files], "env_vars": {"KUBEALIGN_ATTEMPT": "1"}}}
            for stage in stages]


def entrypoint_in_bundle(profile: Profile, stage: AnyStage) -> str:
    """A stage's command where the bundle is the working directory instead of a mounted ConfigMap."""
    from alignment.cluster.bundle import RUN_FILE
    from alignment.cluster.manifests import entrypoint
    from alignment.cluster.pods import RUN_FOLDER

    return entrypoint(profile, stage).replace(f"{RUN_FOLDER}/{RUN_FILE}", RUN_FILE)


def submit_jobs(
    run: Run, profile: Profile, client: Client, voice: Voice, *, address: str | None, only: str | None, retries: int,
    wait: bool,
) -> dict[str, Manifest | None]:
    """Make every unfinished stage on a Ray cluster that is there.

    Args:
        address: http://HOST:8265; None: the head of the RayCluster `kubealign` in the client's namespace.
        wait: also for the last stage.

    Returns:
        Stage name -> manifest of what the storage has at the end.

    Raises:
        StageError: the user's error in a stage, or one that failed in all its attempts.
    """
    from alignment.cluster.bundle import config_map, unpack
    from alignment.cluster.submit import chosen
    from alignment.cluster.truth import Truth

    truth = Truth(run, profile, client, voice.say)
    found, known = truth.manifests(), keys(run)
    stages = chosen(run, only)
    left = [stage for stage in stages if found[stage.name] is None]
    for stage in stages:
        if stage not in left:
            voice.say(f"= {stage.name} {known[stage.name].digest[:12]} finished before")
    if not left:
        return found
    with _address(client, address) as (url, token), tempfile.TemporaryDirectory() as folder:
        unpack(config_map(truth.bundle, name=truth.config_map, namespace=client.namespace), Path(folder))
        # Not an import statement: the rule that this room does not load Ray, not even through another, stays checkable.
        api = importlib.import_module("alignment.distributed.submit").JobApi(url, token)
        for stage in left:
            started = _Stage(run, stage, profile, known[stage.name].digest, api, Path(folder), voice)
            if len(left) == 1 and not wait:
                voice.say(f"  it goes on without this command as job {started.start()}")
                return found
            code = 0
            for again in range(retries + 1):
                code = started.attempt()
                found = truth.manifests()
                if found[stage.name] is not None or code == Exit.USER:
                    break
                if again < retries:
                    voice.say(f"! {stage.name} failed (exit code {code}), next attempt")
            if found[stage.name] is None:
                why = "the stage ended with what only a change of the run or its data can mend"
                raise StageError(
                    why if code == Exit.USER else f"the stage failed {retries + 1} times",
                    where=f"stage {stage.name}", found=f"exit code {code}",
                    hint="its output stands above; finished stages are kept, submit again to go on")
            voice.say(f"+ {stage.name} {known[stage.name].digest[:12]} finished")
    return found


def stop_jobs(run: str, client: Client, address: str | None, say: Callable[[str], None]) -> list[str]:
    """Stop the jobs that `--target job` has at work for a run; one sentence for each.

    Args:
        address: as in submit_jobs; None: the RayCluster `kubealign`, where there is one.
        say: told when that one cannot be looked at.
    """
    from alignment.cluster.labels import RUN_LABEL

    try:
        if address is None and not (client.has("RayCluster") and client.exists("RayCluster", RAY_CLUSTER)):
            return []
        with _address(client, address) as (url, token):
            api = importlib.import_module("alignment.distributed.submit").JobApi(url, token)
            return [f"job {name} is stopped" for name in api.stop({RUN_LABEL: run})]
    except KubeAlignError as error:
        if address is not None:
            raise
        say(f"! jobs of --target job on RayCluster {RAY_CLUSTER} were not looked at: {error.problem}")
        return []


class _Stage:
    """One stage's submissions to one Ray cluster."""

    def __init__(
        self, run: Run, stage: AnyStage, profile: Profile, digest: str, api: Any, folder: Path, voice: Voice
    ) -> None:
        from alignment.cluster.labels import RUN_LABEL, job_name

        self.entrypoint, self.api, self.folder, self.voice = entrypoint_in_bundle(profile, stage), api, folder, voice
        self.label = f"{stage.name} {digest[:12]}"
        self.marks = {RUN_LABEL: run.name}
        self.prefix = job_name(run.name, stage.name, digest, 0).removesuffix("0")

    def start(self) -> str:
        """Join the attempt that is at work, or submit the next; returns its id."""
        attempts = self.api.attempts(self.prefix)
        live = [number for number, state in attempts.items() if state in ("PENDING", "RUNNING")]
        number = max(live) if live else max(attempts, default=0) + 1
        name = f"{self.prefix}{number}"
        self.voice.say(f"> {self.label} job {name}" + (", which is at work already" if live else ""))
        if not live:
            self.api.submit(name, self.entrypoint, self.folder, {"KUBEALIGN_ATTEMPT": str(number)}, self.marks)
        return name

    def attempt(self) -> int:
        """Start or join, follow to the end, and return the driver's exit code."""
        return int(self.api.wait(self.start(), self.voice.write))


@contextlib.contextmanager
def _address(client: Client, address: str | None) -> Iterator[tuple[str, str | None]]:
    """Ray's job API and its token."""
    from alignment.cluster.forward import forwarded, ray_head

    token = os.environ.get("RAY_AUTH_TOKEN")
    if address is not None:
        yield address, token
        return
    head = ray_head(client, RAY_CLUSTER)
    if token is None:
        secret = client.find("Secret", RAY_CLUSTER)  # made by KubeRay, named after the RayCluster
        text = (secret or {}).get("data", {}).get("auth_token")
        token = base64.b64decode(text).decode() if text else None
    with forwarded(client, head, DASHBOARD) as port:
        yield f"http://127.0.0.1:{port}", token
