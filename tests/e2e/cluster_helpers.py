"""A cluster for end-to-end tests: what has to be there, one namespace with the chart in it, and tools to look at it.

Any cluster will do: $KUBECONFIG with KubeRay; $KUBEALIGN_TEST_S3, an S3 endpoint as pods see it (default
http://s3.s3:7070), with $KUBEALIGN_TEST_S3_KEY and $KUBEALIGN_TEST_S3_SECRET; the project's images on the nodes, or at
$KUBEALIGN_IMAGES (default docker.io/local) under $KUBEALIGN_TAG (default: this version). What is missing is a skip.
The storage is only ever read from pods, since an endpoint within the cluster has no name outside it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import yaml

from alignment import __version__
from alignment.cluster.client.client import Client, Object
from alignment.cluster.manifests.store_job import store_job
from alignment.cluster.watch.wait import job_pod, wait_job
from alignment.config import Profile, load_profile
from tests.tools import tool
from tests.waiting import gone

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "kubealign"
CRD = "alignmentruns.kubealign.dev"
BUCKET = "kubealign-e2e"
CANARY = "KUBEALIGN_CANARY_VALUE"
"""A variable of the storage secret, so every pod of a stage has it; logs do not hide it by its name."""


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit code {self.code}\n{self.out[-4000:]}\n{self.err[-6000:]}"


@dataclass
class World:
    """One namespace with the chart, a bucket, and a profile file."""

    client: Client
    folder: Path
    endpoint: str
    keys: tuple[str, str]
    images: dict[str, str]
    canary: str = field(default_factory=lambda: f"canary{secrets.token_hex(12)}")
    said: list[str] = field(default_factory=list)
    """Everything that our commands printed."""

    @property
    def space(self) -> str:
        return self.client.namespace

    def url(self, name: str = "runs") -> str:
        return f"s3://{BUCKET}/{self.space}/{name}"

    # --- commands ---

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """`kubealign ARGUMENTS` as a user in the checkout would type it, without credentials of the storage."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        return subprocess.Popen([sys.executable, "-m", "alignment.cli.main", *arguments], cwd=self.folder, text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                env={**environment, "PYTHONPATH": str(ROOT)})

    def finish(self, process: subprocess.Popen[str], seconds: float = 900) -> Done:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            pytest.fail(f"{process.args} did not end in {seconds} s\n{out[-3000:]}\n{err[-6000:]}\n{self.pods()}")
        self.said += [out, err]
        return Done(process.returncode, out, err)

    def kubealign(self, verb: str, run: str, *more: str, profile: str = "e2e", seconds: float = 900) -> Done:
        return self.finish(self.start(verb, run, "--profile", f"{profile}.yaml", "-n", self.space, *more), seconds)

    def helm(self, *arguments: str, values: Object | None = None) -> str:
        """Helm in this namespace; fails the test with its words."""
        given = ["--values", "-"] if values is not None else []
        done = subprocess.run([tool("helm"), *arguments, "-n", self.space, *given], capture_output=True, text=True,
                              timeout=600, input=json.dumps(values or {}))
        self.said += [done.stdout, done.stderr]
        assert done.returncode == 0, f"helm {arguments[0]}\n{done.stdout}\n{done.stderr}\n{self.pods()}"
        return done.stdout

    def pods(self) -> str:
        return "\n".join(f"{pod['metadata']['name']}: {pod['status'].get('phase')}" for pod in self.client.list("Pod"))

    # --- storage ---

    def in_pod(self, *args: str, labels: dict[str, str] | None = None, secret: bool = True) -> str:
        """What a command prints in a pod of the control image.

        Args:
            labels: in place of the project's own; {}: none.
            secret: with the storage's secret in the environment.
        """
        name = f"look-{secrets.token_hex(3)}"
        job = store_job(load_profile(str(self.folder / "e2e.yaml")), name=name, namespace=self.space, args=list(args))
        template = job["spec"]["template"]
        if labels is not None:
            template["metadata"]["labels"] = labels
        if not secret:
            template["spec"]["containers"][0]["envFrom"] = []
        self.client.apply(job)
        try:
            done = wait_job(self.client, name, limit=180)
            pod = job_pod(self.client, name)
            assert pod is not None
            printed = "\n".join(line.partition(" ")[2] for line in self.client.log_lines(pod))
        finally:
            self.client.delete("Job", name)
        assert done, printed[-3000:]
        return printed

    def python(self, code: str, *args: str) -> Any:
        """The last line, as JSON, of what Python code prints in a pod with the storage."""
        return json.loads(self.in_pod("python", "-c", code, *args).splitlines()[-1])

    def objects(self, prefix: str = "") -> list[str]:
        """Paths of everything below this world's part of the bucket."""
        code = ("import json,sys,s3fs; f=s3fs.S3FileSystem();"
                "print(json.dumps(f.find(sys.argv[1]) if f.exists(sys.argv[1]) else []))")
        base = f"{BUCKET}/{self.space}/{prefix}".rstrip("/")
        return [path.removeprefix(f"{base}/") for path in self.python(code, base)]

    def manifests(self, run: str, *more: str, profile: str = "e2e") -> dict[str, Any]:
        """Stage -> manifest (None: unfinished), as `kubealign status --json` has it."""
        done = self.kubealign("status", run, "--json", *more, profile=profile)
        assert done.code == 0, done
        return {stage["name"]: stage["manifest"] for stage in json.loads(done.out.splitlines()[-1])["stages"]}

    # --- profiles ---

    def write_profile(self, name: str, base: str, change: Callable[[dict[str, Any]], None]) -> Profile:
        """A profile made from one of configs/profiles, with this world's images and storage."""
        tree = yaml.safe_load((ROOT / "configs" / "profiles" / f"{base}.yaml").read_text(encoding="utf-8"))
        tree["name"] = name
        cluster = tree["cluster"]
        cluster["storage"] = {"url": self.url(), "secret": "kubealign-s3"}
        cluster["images"] = {key: self.images[key] for key in ("train", "control")}
        cluster.pop("cache_claim", None)
        change(tree)
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        return load_profile(str(file))

    def values(self, **changes: Any) -> Object:
        """Values of the chart beside values-dev.yaml."""
        port = urlparse(self.endpoint).port or (443 if self.endpoint.startswith("https") else 80)
        return {
            "images": {key: self.images[key] for key in ("train", "control")},
            "storage": {"s3": {"url": self.url(), "existingSecret": "kubealign-s3"}},
            "operator": {"reads": [self.url("disturbed"), self.url("queued")]},
            "networkPolicy": {"egress": {"storage": [{"ports": [{"protocol": "TCP", "port": port}]}]}},
            "rayCluster": {"enabled": False}, **changes,
        }


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """A namespace under Pod Security `restricted` with the storage's secret and the chart; all gone at the end, but
    for the definition of AlignmentRuns where it was there before."""
    made = World(_client(), folder, *_storage(), _images())
    tool("helm")
    _needs(made)
    (folder / "configs").symlink_to(ROOT / "configs")
    client = made.client
    new = not client.exists("CustomResourceDefinition", CRD)
    client.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {
        "name": made.space, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}})
    try:
        client.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "kubealign-s3"}, "stringData": {
            "AWS_ACCESS_KEY_ID": made.keys[0], "AWS_SECRET_ACCESS_KEY": made.keys[1],
            "AWS_ENDPOINT_URL": made.endpoint, "AWS_EC2_METADATA_DISABLED": "true", CANARY: made.canary}})
        _profiles(made)
        # An earlier release's definition outlives it. Helm 4 applies at the server, where others may own fields of it.
        made.helm("install", "kubealign", str(CHART), "--take-ownership", "--force-conflicts", "--values",
                  str(CHART / "values-dev.yaml"), "--wait", "--timeout", "180s", values=made.values())
        bucket = made.in_pod("python", "-c", f"import s3fs; f=s3fs.S3FileSystem(); f.exists('{BUCKET}') or "
                                             f"f.mkdir('{BUCKET}'); print('is there:', f.exists('{BUCKET}'))")
        assert "is there: True" in bucket, bucket
        yield made
    finally:
        client.delete("Namespace", made.space)
        if new:
            gone(client, "CustomResourceDefinition", CRD)


def _profiles(made: World) -> None:
    def two_pods(tree: dict[str, Any]) -> None:
        # One stage spans two pods; the others are done sooner in one.
        tree["compute"]["workers"] = 0
        train = tree["cluster"]["stages"]["train"]["worker"]
        tree["cluster"]["stages"] = {"sft": {"workers": 2, "worker": train}, "sft2": {"workers": 0}}
        tree["cluster"]["worker"]["memory"] = "3Gi"

    def gpu(tree: dict[str, Any]) -> None:
        # What the card is beside: small enough for the machine that pretends to have one.
        tree["cluster"]["worker"] |= {"cpu": "200m", "memory": "2Gi", "shm": "256Mi", "scratch": "2Gi"}
        tree["cluster"]["stages"] = {}

    made.write_profile("e2e", "s3", two_pods)
    made.write_profile("gpu", "single-24gb", gpu)
    made.write_profile("disturbed", "s3", lambda tree: (two_pods(tree), tree["cluster"]["storage"].update(
        url=made.url("disturbed"))))


def _client() -> Client:
    if "KUBECONFIG" not in os.environ:
        pytest.skip("KUBECONFIG names no cluster")
    client = Client(f"kubealign-e2e-{secrets.token_hex(3)}")
    if not client.has("RayJob"):
        pytest.skip("the cluster has no KubeRay (README says how to install it)")
    return client


def _storage() -> tuple[str, tuple[str, str]]:
    names = ("KUBEALIGN_TEST_S3_KEY", "KUBEALIGN_TEST_S3_SECRET")
    if not all(os.environ.get(name) for name in names):
        pytest.skip(f"no keys for an S3 server: {' and '.join(names)} are not set")
    return os.environ.get("KUBEALIGN_TEST_S3", "http://s3.s3:7070"), (os.environ[names[0]], os.environ[names[1]])


def _images() -> dict[str, str]:
    prefix, tag = os.environ.get("KUBEALIGN_IMAGES", "docker.io/local"), os.environ.get("KUBEALIGN_TAG", __version__)
    return {name: f"{prefix}/kubealign-{name}:{tag}" for name in ("train", "control")}


def _needs(made: World) -> None:
    """Skip where the storage's service or the images are not there; a prefix that was given is believed."""
    host = re.fullmatch(r"([a-z0-9-]+)\.([a-z0-9-]+)(\.svc.*)?", urlparse(made.endpoint).hostname or "")
    if host and not Client(host[2]).exists("Service", host[1]):
        pytest.skip(f"no S3 server at {made.endpoint}; name one in $KUBEALIGN_TEST_S3")
    if "KUBEALIGN_IMAGES" in os.environ:
        return
    end = time.monotonic() + 90  # a node takes a while to tell of a new image
    while missing := set(made.images.values()) - _on_nodes(made.client):
        if time.monotonic() < end:
            time.sleep(5)
            continue
        pytest.skip(f"no node has {', '.join(sorted(missing))}: make images, then load them "
                    "(docs/kubernetes.md), or name a registry in $KUBEALIGN_IMAGES")


def _on_nodes(client: Client) -> set[str]:
    """Names of the images that some node has."""
    return {name for node in client.list("Node") for image in node["status"].get("images", [])
            for name in image.get("names") or ()}
