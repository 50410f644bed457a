"""What the storage says about a run: which stages are finished, their logs, the report.

Read directly where the storage can be reached from here; else by a small Job in the cluster that runs the same command
there and whose output is read. The storage is the only truth about finished stages; live pods are not asked.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from urllib.parse import urlparse

from pydantic import ValidationError

from alignment.artifacts import Manifest, Store, Work
from alignment.cluster.client.client import Client
from alignment.cluster.client.refusals import cluster_error
from alignment.cluster.manifests.bundle import RUN_FILE, Bundle, bundle, config_map
from alignment.cluster.manifests.pods import RUN_FOLDER
from alignment.cluster.manifests.store_job import store_job
from alignment.cluster.storage.stored import stored_logs
from alignment.cluster.watch.wait import job_pod, wait_job
from alignment.config import Profile, Run
from alignment.errors import KubeAlignError
from alignment.pipeline.keys import Key, keys

_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE")
_PATIENCE = 600.0
"""Seconds for a Job in the cluster, its image's pull included."""


class Truth:
    """The storage of one run under one profile."""

    def __init__(self, run: Run, profile: Profile, client: Client, say: Callable[[str], None]) -> None:
        """
        Args:
            run: as loaded on the client.
            say: gets a sentence where something takes time.

        Raises:
            KubeAlignError: the run cannot go to a cluster, see `bundle`.
        """
        self.run, self.profile, self.client, self.say = run, profile, client, say
        self.bundle: Bundle = bundle(run, profile)
        self.url = profile.applied(run).store
        self.near = reachable(self.url)
        """Whether the storage is read directly."""

    @property
    def config_map(self) -> str:
        """Name of the ConfigMap with the bundle."""
        return self.bundle.name_for(self.run.name)

    @cached_property
    def keys(self) -> dict[str, Key]:
        """The run's stages' keys."""
        return keys(self.profile.applied(self.run))

    def manifests(self) -> dict[str, Manifest | None]:
        """Stage name -> manifest of its finished artifact, or None.

        Raises:
            KubeAlignError: the storage cannot be read, here or from the cluster.
        """
        return self.look()[0]

    def look(self) -> tuple[dict[str, Manifest | None], dict[str, Work]]:
        """The manifests, and what is known of unfinished stages that were begun."""
        if self.near:
            store = Store(self.url)
            found = {name: store.find(key.key) for name, key in self.keys.items()}
            works = {name: store.work(self.keys[name].key) for name, artifact in found.items() if artifact is None}
            return ({name: None if artifact is None else artifact.manifest for name, artifact in found.items()},
                    {name: work for name, work in works.items() if work is not None})
        printed = self.inside(["kubealign", "status", f"{RUN_FOLDER}/{RUN_FILE}", "--json"])
        return seen_in(printed)

    def report(self, typed: str) -> str:
        """The report of what is finished now, as one HTML page; also written to the storage.

        Args:
            typed: `run FILE OPTIONS` or `submit FILE OPTIONS` as the user typed it, for the commands on the page.
        """
        printed = self.inside(["kubealign", "report", f"{RUN_FOLDER}/{RUN_FILE}", "--print", "--typed", typed])
        start, end = printed.lower().find("<!doctype html"), printed.lower().rfind("</html>")
        if start < 0 or end < 0:
            raise cluster_error("the report that was made in the cluster is not whole", found=printed[-300:])
        return printed[start : end + len("</html>")] + "\n"

    def logs(self, stage: str | None = None) -> str:
        """What stages printed, as far as the storage has it; each log under a line that names it."""
        if self.near:
            return "".join(f"--- {name}, attempt {attempt}\n{text}"
                           for name, attempt, text in stored_logs(Store(self.url), self.run.name, stage))
        args = ["kubealign", "logs", f"{RUN_FOLDER}/{RUN_FILE}"]
        printed = self.inside([*args, "--stage", stage] if stage else args)
        # A pod's log has stderr as well, which says before the first log, or instead of one, how it goes.
        return printed[printed.index("--- "):] if "--- " in printed else ""

    def inside(self, args: list[str]) -> str:
        """Run a command in a pod of the control image that has the storage and the bundle; returns what it printed.

        Raises:
            ClusterError: the pod did not start, or the command failed; with what it printed.
        """
        space = self.client.namespace
        name = f"kubealign-{args[1]}-{secrets.token_hex(3)}"
        self.say(f"the storage is looked at from a pod in namespace {space}")
        with lent(self.client, self.bundle, self.run) as files:
            try:
                self.client.apply(store_job(self.profile, name=name, namespace=space, args=args, config_map=files,
                                            run=self.run))
                done = wait_job(self.client, name, limit=_PATIENCE, on_change=self.say)
                printed = printed_by(self.client, name)
            finally:
                self.client.delete("Job", name)
        if not done:
            said = printed[printed.rfind("error: "):].removeprefix("error: ") if "error: " in printed else printed
            raise cluster_error(f"`{' '.join(args[:2])}` failed in the cluster\n{said.strip()[-1500:]}",
                                where=f"namespace {space}")
        return printed


@contextmanager
def lent(client: Client, bundle: Bundle, run: Run) -> Iterator[str]:
    """The name of a ConfigMap with the bundle; one that was not there before goes with the block."""
    name = bundle.name_for(run.name)
    made = not client.exists("ConfigMap", name)
    if made:
        client.apply(config_map(bundle, name=name, namespace=client.namespace))
    try:
        yield name
    finally:
        if made:
            client.delete("ConfigMap", name)


def manifests_in(printed: str) -> dict[str, Manifest | None]:
    """Manifests in what `kubealign status --json` printed; other lines are left aside."""
    return seen_in(printed)[0]


def seen_in(printed: str) -> tuple[dict[str, Manifest | None], dict[str, Work]]:
    """Manifests and unfinished work in what `kubealign status --json` printed."""
    for line in reversed(printed.splitlines()):
        try:
            tree: Any = json.loads(line)
            return ({item["name"]: Manifest.model_validate(item["manifest"]) if item["manifest"] else None
                     for item in tree["stages"]},
                    {item["name"]: Work.from_json(item["work"]) for item in tree["stages"] if item.get("work")})
        except (ValueError, TypeError, KeyError, ValidationError):
            continue
    raise cluster_error("the cluster's answer on the run's state is not understood", found=printed.strip()[-500:],
                        hint="is images.control of the same version as this command?")


def printed_by(client: Client, job: str) -> str:
    """Everything that a Job's pod printed."""
    pod = job_pod(client, job)
    if pod is None:
        raise cluster_error("the Job has no pod any more", where=f"Job {job}")
    return "".join(line.partition(" ")[2] + "\n" for line in client.log_lines(pod))


def reachable(url: str) -> bool:
    """Whether object storage can be read from this machine: credentials are there, and something answers.

    Folders are a volume of the cluster, even where this machine has a folder of the same name.
    """
    scheme = urlparse(url).scheme
    if scheme != "s3" or not any(os.environ.get(name) for name in _CREDENTIALS):
        return False
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and not _answers(endpoint):
        return False
    try:
        Store(url).find("no-such-artifact-000000000000")
    except (KubeAlignError, ImportError):
        return False
    return True


def _answers(endpoint: str) -> bool:
    parts = urlparse(endpoint)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=3).close()
    except (OSError, ValueError):
        return False
    return True
