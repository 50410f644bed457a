"""The client, the waits and preflight on a real cluster: what its API server, scheduler and KubeRay really answer.

Needs a kubeconfig of an administrator in KUBECONFIG and KubeRay; needs no image. Works in a namespace of its own under
Pod Security `restricted`, and deletes it.
"""

from __future__ import annotations

import os
import secrets
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.cluster.client.client import Client
from alignment.cluster.client.forward import forwarded
from alignment.cluster.client.refusals import ClusterError
from alignment.cluster.manifests.submission import dry_run
from alignment.cluster.preflight.checks import preflight
from alignment.cluster.watch.wait import ray_job_troubles, troubles, wait_job
from alignment.config import Profile, Run, load_profile, parse_run
from tests.waiting import until

Json = dict[str, Any]
pytestmark = [
    pytest.mark.k8s,
    pytest.mark.skipif(not os.environ.get("KUBECONFIG"), reason="KUBECONFIG names no cluster to test on"),
]
CONTAINER: Json = {
    "name": "c", "image": "docker.io/local/no-such-image:0", "imagePullPolicy": "Never",
    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    "resources": {"requests": {"cpu": "10m"}},
}
SECURITY: Json = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    name = f"kubealign-test-{secrets.token_hex(3)}"
    made = Client(name)
    made.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {
        "name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}})
    if not made.has("RayJob"):
        pytest.skip("the cluster has no KubeRay")
    yield made
    made.delete("Namespace", name)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"group": "g", "passage": "p", "question": "q", "answer": "a"}\n' * 4)
    return parse_run(yaml.safe_dump({"name": "mine", "stages": [
        {"name": "seed", "kind": "import", "data": [{"path": "rows.jsonl", "format": "passage-qa"}],
         "split": {"by": "ratio", "ratios": {"train": 1.0}}}]}))


def shipped(name: str) -> Profile:
    return load_profile(Path(__file__).parents[2] / f"configs/profiles/{name}.yaml")


def pod(name: str, **container: Any) -> Json:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"test": name}},
            "spec": {"securityContext": SECURITY, "containers": [{**CONTAINER, **container}]}}


def test_apply_is_strict_and_a_patch_is_kept(client: Client) -> None:
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "1"}}
    client.apply(manifest)
    client.apply({**manifest, "data": {"k": "2"}})
    client.patch("ConfigMap", "a", {"data": {"m": "3"}})
    client.apply({**manifest, "data": {"k": "4"}})
    assert client.get("ConfigMap", "a")["data"] == {"k": "4", "m": "3"}
    with pytest.raises(ClusterError, match="does not know a field"):
        client.apply({**manifest, "dat": {}})
    assert client.exists("ConfigMap", "a")
    assert client.delete("ConfigMap", "a")
    assert not client.exists("ConfigMap", "a")
    assert client.server_time is not None


def test_an_old_kuberay_is_recognised_by_a_field_it_does_not_know(client: Client, run: Run) -> None:
    job = dry_run(run, shipped("s3"), namespace=client.namespace, target="rayjob")[1]
    client.apply(job, dry_run=True)
    job["spec"]["ofALaterVersion"] = 1
    with pytest.raises(ClusterError, match="does not know a field") as refused:
        client.apply(job, dry_run=True)
    assert "ofALaterVersion" in str(refused.value.found)
    assert "helm upgrade" in (refused.value.hint or "")
    assert client.find("RayJob", job["metadata"]["name"]) is None


def test_a_change_wakes_who_waits_for_it(client: Client) -> None:
    made = client.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "w"}, "data": {"k": "1"}})
    version = made["metadata"]["resourceVersion"]
    began = time.monotonic()
    client.changed("ConfigMap", "w", version, 2)
    assert time.monotonic() - began >= 1.5
    client.patch("ConfigMap", "w", {"data": {"k": "2"}})
    began = time.monotonic()
    client.changed("ConfigMap", "w", version, 20)
    assert time.monotonic() - began < 5


def test_a_user_without_rights_is_told_which(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = f"/api/v1/namespaces/{client.namespace}/serviceaccounts"
    client.request("POST", space, {}, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "poor"}})
    token = client.request("POST", f"{space}/poor/token", {}, {
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}})
    config = yaml.safe_load(Path(os.environ["KUBECONFIG"].split(os.pathsep)[0]).read_text())
    names, poor_config = [entry["name"] for entry in config["users"]], tmp_path / "poor"

    def use(token: str) -> None:
        config["users"] = [{"name": name, "user": {"token": token}} for name in names]
        poor_config.write_text(yaml.safe_dump(config))

    use(token["status"]["token"])
    monkeypatch.setenv("KUBECONFIG", str(poor_config))
    poor = Client(client.namespace)
    with pytest.raises(ClusterError, match=r"poor may not list rayjobs\.ray\.io in namespace kubealign-test"):
        poor.list("RayJob")
    assert not poor.may("create", "rayjobs", "ray.io")
    assert client.may("create", "pods/portforward")
    use("wrong")
    with pytest.raises(ClusterError, match="does not know who asks"):
        Client(client.namespace).list("Pod")


def test_an_image_that_is_not_there(client: Client) -> None:
    client.create(pod("image"))
    said = str(until(lambda: troubles(client, {"test": "image"}))[0])
    assert "image docker.io/local/no-such-image:0 cannot be had (ErrImageNeverPull)" in said


def test_a_gpu_that_no_node_has(client: Client) -> None:
    client.create(pod("gpu", resources={"limits": {"nvidia.com/gpu": "64"}}))
    said = str(until(lambda: troubles(client, {"test": "gpu"}))[0])
    assert "nvidia.com/gpu (the pod asks for 64)" in said
    assert "preemption" not in said


def test_a_volume_that_does_not_exist(client: Client) -> None:
    made = pod("claim")
    made["spec"]["volumes"] = [{"name": "v", "persistentVolumeClaim": {"claimName": "nothing"}}]
    client.create(made)
    assert "PersistentVolumeClaim nothing does not exist" in str(until(lambda: troubles(client, {"test": "claim"}))[0])


def test_pods_that_admission_refuses(client: Client) -> None:
    bare = {"name": "c", "image": "docker.io/local/x:1"}
    client.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "bare"}, "spec": {
        "template": {"spec": {"restartPolicy": "Never", "containers": [bare]}}}})
    with pytest.raises(ClusterError, match="Pod Security refuses its pods"):
        wait_job(client, "bare", limit=60)


def test_a_rayjob_whose_pods_admission_refuses(client: Client, run: Run) -> None:
    job = dry_run(run, shipped("s3"), namespace=client.namespace, target="rayjob")[1]
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    head["containers"][0].pop("securityContext")
    client.apply(job)
    name = job["metadata"]["name"]
    said = str(until(lambda: ray_job_troubles(client, client.get("RayJob", name)))[0])
    assert "RayCluster" in said
    assert "Pod Security refuses its pods" in said
    assert client.delete("RayJob", name)


def test_logs_and_a_tunnel_of_a_running_pod(client: Client) -> None:
    operators = client.list("Pod", fields="status.phase=Running", everywhere=True)
    found = [item["metadata"] for item in operators if item["metadata"]["name"].startswith("kuberay-operator")]
    if not found:
        pytest.skip("no pod is called kuberay-operator")
    near = Client(found[0]["namespace"])
    lines = list(near.log_lines(found[0]["name"]))
    assert lines
    stamps = [line.split(" ", 1)[0] for line in lines]
    assert stamps == sorted(stamps)
    assert all(stamp.endswith("Z") for stamp in stamps)
    followed = near.log_lines(found[0]["name"], follow=True, since=stamps[0])
    assert next(followed) in lines
    with forwarded(near, found[0]["name"], 8082) as port:
        for _ in range(2):  # each connection has a tunnel of its own
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=20) as answer:
                assert answer.status == 200
    with pytest.raises(ClusterError, match="no tunnel"), forwarded(client, "no-such-pod", 1):
        raise AssertionError


def test_preflight_finds_all_that_a_gpu_profile_lacks_here(client: Client, run: Run) -> None:
    profile = shipped("single-24gb")
    assert profile.cluster is not None
    huge = profile.cluster.worker.model_copy(update={"gpus": 16, "memory": "30Ti"})
    profile = profile.model_copy(update={"cluster": profile.cluster.model_copy(update={"worker": huge, "stages": {}})})
    found = {item.topic: item for item in preflight(run, profile, client, target="rayjob")}
    for topic in ("api server", "namespace", "permissions", "manifests", "admission"):
        assert found[topic].state == "ok", found[topic]
    assert found["capacity"].state in ("fail", "warn")
    assert "nvidia.com/gpu" in found["capacity"].seen
    assert "does not exist" in found["volumes"].seen
    assert found["pod"].state == "warn"


def test_what_a_quota_leaves(client: Client, run: Run) -> None:
    client.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"},
                  "spec": {"hard": {"limits.memory": "1Gi"}}})
    try:
        end = time.monotonic() + 20
        while not client.get("ResourceQuota", "small").get("status", {}).get("hard") and time.monotonic() < end:
            time.sleep(0.2)
        found = preflight(run, shipped("s3"), client, target="rayjob")
        assert any(item.topic == "quota" and item.state == "fail" for item in found)
        assert any(item.topic == "admission" and "exceeded quota" in item.seen for item in found)
    finally:
        client.request("DELETE", client.path("ResourceQuota", "small"))
