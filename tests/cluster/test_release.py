"""The chart on a real API server (KUBECONFIG): installed, upgraded, rolled back and removed; and every RayJob that the
project's runs and profiles make, as the server's own rules see it. Needs no images: pods need not become ready.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignment.cluster.client.client import Client, Object
from alignment.cluster.client.refusals import ClusterError
from alignment.cluster.manifests.bundle import bundle
from alignment.cluster.manifests.labels import job_name
from alignment.cluster.manifests.ray_job import ray_job
from alignment.cluster.manifests.submission import alignment_run
from alignment.config import load_profile, load_run
from tests.tools import tool
from tests.waiting import gone, until

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "kubealign"
CRD = "alignmentruns.kubealign.dev"
RUNS = sorted(path.name for path in (ROOT / "configs" / "runs").glob("*.yaml"))
SENT = ["tiny.yaml", "quickstart.yaml"]
"""Those whose data files are in the checkout."""
PROFILES = ["dev-cpu", "multi-gpu", "s3", "single-24gb"]
pytestmark = [
    pytest.mark.k8s,
    pytest.mark.skipif("KUBECONFIG" not in os.environ, reason="KUBECONFIG names no cluster"),
]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A namespace of its own, under Pod Security `restricted`."""
    client = Client(f"release-{secrets.token_hex(3)}")
    new = not client.exists("CustomResourceDefinition", CRD)
    client.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {
        "name": client.namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted",
                                             "pod-security.kubernetes.io/warn": "restricted"}}})
    yield client
    client.delete("Namespace", client.namespace)
    if new:
        gone(client, "CustomResourceDefinition", CRD)


def helm(client: Client, *arguments: str, values: Object | None = None) -> subprocess.CompletedProcess[str]:
    given = ["--values", "-"] if values is not None else []
    return subprocess.run([tool("helm"), *arguments, "-n", client.namespace, *given], capture_output=True, text=True,
                          timeout=120, input=json.dumps(values or {}))


def done(client: Client, *arguments: str, values: Object | None = None) -> str:
    """Helm's output and warnings; fails the test where it refuses."""
    ended = helm(client, *arguments, values=values)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


def test_install_upgrade_rollback_uninstall(client: Client) -> None:
    image = {"images": {"control": "local.invalid/control:1", "train": "local.invalid/train:1", "pullPolicy": "Never"}}
    # The definition outlives the release that brought it. Helm 4 applies at the server, where others may own fields.
    said = done(client, "install", "kubealign", str(CHART), "--take-ownership", "--force-conflicts",
                "-f", str(CHART / "values-dev.yaml"), values=image)
    assert "would violate PodSecurity" not in said
    assert _image(client) == "local.invalid/control:1"
    assert client.exists("RayCluster", "kubealign")
    claim = client.get("PersistentVolumeClaim", "kubealign-artifacts")
    _definition_is_whole(client)
    run, cluster = _run(client), client.get("RayCluster", "kubealign")

    newer = {"images": {**image["images"], "control": "local.invalid/control:2"}}
    done(client, "upgrade", "kubealign", str(CHART), "-f", str(CHART / "values-dev.yaml"), values=newer)
    assert _image(client) == "local.invalid/control:2"
    assert client.get("RayCluster", "kubealign")["spec"] == cluster["spec"]

    done(client, "rollback", "kubealign", "1")
    assert _image(client) == "local.invalid/control:1"
    # The operator is never there twice: Recreate ends the one before the other starts.
    assert client.get("Deployment", "kubealign-operator")["spec"]["strategy"] == {"type": "Recreate"}

    refused = helm(client, "upgrade", "kubealign", str(CHART), "-f", str(CHART / "values-dev.yaml"),
                   values={"opeartor": {"enabled": False}})
    assert refused.returncode != 0
    assert "opeartor" in refused.stderr

    done(client, "uninstall", "kubealign", "--wait", "--timeout", "90s")
    assert client.find("Deployment", "kubealign-operator") is None
    until(lambda: client.find("RayCluster", "kubealign") is None)
    kept = client.get("PersistentVolumeClaim", "kubealign-artifacts")
    assert kept["metadata"]["uid"] == claim["metadata"]["uid"]
    assert "deletionTimestamp" not in kept["metadata"]
    assert client.get("AlignmentRun", "tiny")["metadata"]["uid"] == run["metadata"]["uid"]
    client.delete("AlignmentRun", "tiny")
    until(lambda: client.find("AlignmentRun", "tiny") is None)


def _image(client: Client) -> str:
    pod = client.get("Deployment", "kubealign-operator")["spec"]["template"]["spec"]
    return str(pod["containers"][0]["image"])


def _definition_is_whole(client: Client) -> None:
    """Runs of the project with every profile pass the definition that the chart brought, CEL rules included."""
    def served() -> bool:
        try:
            client.list("AlignmentRun")
        except ClusterError:
            return False
        return True

    until(served)
    for name, place in itertools.product(SENT, PROFILES):
        run, profile = load_run(ROOT / "configs" / "runs" / name), load_profile(place)
        client.apply(alignment_run(run, profile, bundle(run, profile), namespace=client.namespace, config_map="files"),
                     dry_run=True)


def _run(client: Client) -> Object:
    run, profile = load_run(ROOT / "configs" / "runs" / "tiny.yaml"), load_profile("dev-cpu")
    return client.apply(alignment_run(run, profile, bundle(run, profile), namespace=client.namespace,
                                      config_map="files"))


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("place", PROFILES)
@pytest.mark.parametrize("name", RUNS)
def test_the_api_server_takes_every_rayjob(client: Client, name: str, place: str) -> None:
    """Server-side dry-run: KubeRay's schema, CEL rules and the namespace's admission."""
    run, profile = load_run(ROOT / "configs" / "runs" / name), load_profile(place)
    for stage in run.stages:
        name = job_name(run.name, stage.name, "0" * 64, 1)
        job = client.apply(ray_job(run, stage, profile, namespace=client.namespace, name=name, config_map="files",
                                   attempt=1), dry_run=True)
        assert job["metadata"]["name"] == name
        spec = job["spec"]["rayClusterSpec"]
        templates = [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
        for template in templates:  # Pod Security only looks at pods
            client.create({"apiVersion": "v1", "kind": "Pod", "metadata": {**template["metadata"], "name": "as-made"},
                           "spec": template["spec"]}, dry_run=True)


def test_the_api_server_refuses_a_rayjob_that_is_wrong(client: Client) -> None:
    run, profile = load_run(ROOT / "configs" / "runs" / "tiny.yaml"), load_profile("dev-cpu")
    job = ray_job(run, run.stages[0], profile, namespace=client.namespace, name="wrong", config_map="files", attempt=1)
    job["spec"]["entrypont"] = job["spec"].pop("entrypoint")
    with pytest.raises(ClusterError, match="entrypont"):
        client.apply(job, dry_run=True)
