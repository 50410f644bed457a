"""The RayService of a run: valid for KubeRay and Kubernetes, within our policy, and another Ray cluster at any change.

What a cluster makes of it is seen in tests/e2e/test_serving.py.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from alignment.cluster.manifests.autoscaler import SCALES_LABEL
from alignment.cluster.manifests.labels import COMPONENT_LABEL, REVISION_LABEL, RUN_LABEL
from alignment.cluster.manifests.ray_service import DIGEST, DRAIN, alone, drained, endpoint_of, ray_service
from alignment.config import Profile, Serve, Serving, load_profile
from alignment.errors import ConfigError
from tests.cluster.manifests.test_ray_job import PROFILES
from tests.cluster.policy import templates, violations
from tests.schemas import problems

Json = dict[str, Any]
MODELS = {"sft": "sft-41c4bd9b1791", "dpo": "dpo-1f0c2e9b7a44"}


def made(profile: Profile, *, models: dict[str, str] | None = None, revision: int = 3, run: str = "tiny",
         owner: Json | None = None, annotations: dict[str, str] | None = None, **serve: Any) -> Json:
    assert profile.cluster is not None
    serving = Serving(store=profile.cluster.storage.url, models=models or MODELS, compute=profile.compute,
                      serve=Serve.model_validate(serve))
    return ray_service(serving, profile, run=run, revision=revision, namespace="align", owner=owner,
                       annotations=annotations)


def cluster_of(manifest: Json) -> Json:
    cluster: Json = manifest["spec"]["rayClusterConfig"]
    return cluster


def environment(template: Json) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in template["spec"]["containers"][0]["env"]}


def hashed(manifest: Json) -> Json:
    """What KubeRay 1.6.1 compares to decide whether there has to be another cluster: its RayCluster's spec without
    numbers of pods, tolerations and the like (GenerateHashWithoutReplicasAndWorkersToDelete)."""
    kept: Json = json.loads(json.dumps(cluster_of(manifest)))
    for group in (kept["headGroupSpec"], *kept["workerGroupSpecs"]):
        for name in ("replicas", "minReplicas", "maxReplicas"):
            group.pop(name, None)
        group["template"]["spec"].pop("tolerations", None)
    return kept


@pytest.mark.parametrize("serve", [{}, {"replicas": 3}], ids=["one", "three"])
@pytest.mark.parametrize("where", PROFILES)
def test_every_profile_makes_pods_that_are_allowed(where: str, serve: Json) -> None:
    manifest = made(PROFILES[where], **serve)
    assert problems(manifest) == []
    assert [f"{name}: {text}" for name, template in templates(manifest) for text in violations(template)] == []
    mark = {RUN_LABEL: "tiny", REVISION_LABEL: "3", "app.kubernetes.io/part-of": "kubealign",
            "app.kubernetes.io/managed-by": "kubealign"}
    assert manifest["metadata"]["labels"] == mark
    for name, template in templates(manifest):
        assert template["metadata"]["labels"] == {**mark, COMPONENT_LABEL: "serve"}, name
    assert manifest == made(PROFILES[where], **serve)
    assert "&id" not in yaml.safe_dump(manifest)
    assert json.loads(json.dumps(manifest)) == manifest
    spec, cluster = manifest["spec"], cluster_of(manifest)
    assert spec["upgradeStrategy"] == {"type": "NewCluster"}
    # KubeRay refuses a strategy of the Ray cluster's own, and needs a port of this name on the head for its service.
    assert "upgradeStrategy" not in cluster
    assert spec["excludeHeadPodFromServeSvc"] is True
    for _, template in templates(manifest):
        [port] = [port for port in template["spec"]["containers"][0]["ports"] if port["name"] == "serve"]
        assert port["containerPort"] == 8000
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "no replica on the head"
    assert all(isinstance(value, str) for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
               for value in group["rayStartParams"].values())


@pytest.mark.parametrize("where", PROFILES)
def test_what_ray_serve_is_told_is_the_serving_with_the_pods_resources(where: str) -> None:
    """A replica asks for all that its pod has, so that there is one in each, and Ray waits for none that it has not."""
    manifest = made(PROFILES[where], replicas=2, limits={"seconds": 30})
    told = ServeDeploySchema.model_validate(yaml.safe_load(manifest["spec"]["serveConfigV2"]))
    assert (told.http_options.host, told.http_options.port) == ("0.0.0.0", 8000)
    [application] = told.applications
    assert (application.name, application.route_prefix) == ("kubealign", "/")
    assert application.import_path == "alignment.distributed.serve:application"
    assert application.runtime_env == {}
    assert application.deployments == []
    serving = Serving.model_validate(application.args)
    assert (serving.models, serving.serve.replicas, serving.serve.limits.seconds) == (MODELS, 2, 30)
    [group] = cluster_of(manifest)["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 2
    params = group["rayStartParams"]
    assert serving.compute.cpus_per_worker == float(params["num-cpus"]) >= 1
    assert serving.compute.gpus_per_worker == float(params["num-gpus"])
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert params["num-gpus"] == limits.get("nvidia.com/gpu", "0")


def test_gpus_of_a_pod_are_its_replicas() -> None:
    profile = load_profile("multi-gpu", ["cluster.serve.worker={cpu: '16', memory: 200Gi, gpus: 2}"])
    [group] = cluster_of(made(profile))["workerGroupSpecs"]
    assert group["rayStartParams"]["num-gpus"] == "2"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in group[
        "template"]["spec"]["tolerations"]


DEV = ["cluster.serve.worker={cpu: '1', memory: 2Gi}"]


@pytest.mark.parametrize(("overrides", "given"), [
    ([], {"models": {"sft": "sft-000000000000"}}),
    ([], {"models": {**MODELS, "best": MODELS["dpo"]}}),
    ([], {"revision": 4}),
    ([], {"replicas": 2}),
    ([], {"max_replicas": 2}),
    ([], {"limits": {"in_flight": 8}}),
    ([], {"unproved": True}),
    (["cluster.serve.worker={cpu: '1', memory: 3Gi}"], {}),
    (["cluster.serve.worker.tolerations=[{key: dedicated}]"], {}),
    (["cluster.serve.head={cpu: '1', memory: 3Gi}"], {}),
    (["cluster.serve.api_key=null"], {}),
    (["cluster.images.train=registry/kubealign-train:0.2.0"], {}),
    (["compute.dtype=bfloat16"], {}),
    (["cluster.env.A=b"], {}),
], ids=lambda value: json.dumps(value) if value else "")
def test_any_change_is_another_ray_cluster(overrides: list[str], given: Json) -> None:
    """Else KubeRay would give other models to the replicas that answer, or take no notice."""
    before = made(load_profile("dev-cpu", DEV))
    after = made(load_profile("dev-cpu", [*DEV, *overrides]), **given)
    assert hashed(after) != hashed(before)
    assert problems(after) == []


def test_what_is_no_matter_of_the_pods_changes_in_place() -> None:
    before = made(load_profile("dev-cpu", DEV))
    owner = {"apiVersion": "kubealign.dev/v1alpha1", "kind": "AlignmentRun", "name": "tiny", "uid": "1-2",
             "controller": True, "blockOwnerDeletion": True}
    after = made(load_profile("dev-cpu", [*DEV, "cluster.serve.keep_old=600"]), owner=owner,
                 annotations={"kubealign.dev/models": "[]"})
    assert cluster_of(after) == cluster_of(before)
    assert after["spec"]["rayClusterDeletionDelaySeconds"] == 600
    assert after["metadata"]["ownerReferences"] == [owner]
    assert after["metadata"]["annotations"] == {"kubealign.dev/models": "[]"}
    assert problems(after) == []
    for _, template in templates(before):
        assert re.fullmatch("[0-9a-f]{16}", template["metadata"]["annotations"][DIGEST])


def test_the_key_and_the_storage_are_the_replicas_alone() -> None:
    pods = dict(templates(made(load_profile("s3", ["cluster.env_from=[hub-token]"]))))
    secrets = {name: [entry["secretRef"]["name"] for entry in pod["spec"]["containers"][0]["envFrom"]]
               for name, pod in pods.items()}
    assert secrets == {"head": [], "worker": ["kubealign-s3", "hub-token", "kubealign-api-key"]}
    assert "KUBEALIGN_NO_API_KEY" not in environment(pods["worker"])
    env = environment(pods["worker"])
    assert (env["KUBEALIGN_REVISION"], env["KUBEALIGN_SERVICE"], env["KUBEALIGN_DRAIN_FILE"]) == ("3", "tiny", DRAIN)
    assert {environment(pod)["RAY_AUTH_MODE"] for pod in pods.values()} == {"token"}
    volumes = {name: [volume["name"] for volume in pod["spec"]["volumes"]]
               for name, pod in templates(made(PROFILES["dev-cpu"]))}
    assert "artifacts" in volumes["worker"]
    assert "artifacts" not in volumes["head"]


def test_without_a_key_is_said_to_the_replica() -> None:
    worker = dict(templates(made(load_profile("s3", ["cluster.serve.api_key=null"]))))["worker"]
    assert environment(worker)["KUBEALIGN_NO_API_KEY"] == "1"
    assert [entry["secretRef"]["name"] for entry in worker["spec"]["containers"][0]["envFrom"]] == ["kubealign-s3"]


def test_a_replica_is_ready_by_its_own_proxy_and_has_time_to_end_its_answers() -> None:
    pods = dict(templates(made(PROFILES["dev-cpu"], limits={"seconds": 90})))
    container = pods["worker"]["spec"]["containers"][0]
    assert container["readinessProbe"]["tcpSocket"] == {"port": 8000}
    assert container["livenessProbe"]["httpGet"]["port"] == 52365
    for pod in pods.values():
        assert pod["spec"]["terminationGracePeriodSeconds"] == 90 + 15 + 30


def test_their_number_follows_what_is_asked_by_a_container_that_alone_has_the_token() -> None:
    manifest = made(PROFILES["dev-cpu"], replicas=1, max_replicas=4)
    assert problems(manifest) == []
    cluster = cluster_of(manifest)
    [group] = cluster["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (1, 1, 4)
    assert cluster["enableInTreeAutoscaling"] is True
    options = cluster["autoscalerOptions"]
    assert options["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
                                          "readOnlyRootFilesystem": True}
    assert options["resources"]["requests"] == options["resources"]["limits"]
    assert options["image"] == "docker.io/local/kubealign-train:0.1.0"
    head = cluster["headGroupSpec"]["template"]
    token = {mount["name"] for mount in options["volumeMounts"]
             if mount["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount"}
    assert {volume["name"] for volume in head["spec"]["volumes"] if "projected" in volume} == token
    for _, pod in templates(manifest):
        assert not token & {mount["name"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
        assert pod["spec"]["automountServiceAccountToken"] is False
    assert head["metadata"]["labels"][SCALES_LABEL] == "true"
    fixed = cluster_of(made(PROFILES["dev-cpu"]))
    assert fixed["enableInTreeAutoscaling"] is False
    assert "autoscalerOptions" not in fixed
    assert SCALES_LABEL not in fixed["headGroupSpec"]["template"]["metadata"]["labels"]


def test_replicas_are_spread_over_nodes() -> None:
    worker = dict(templates(made(PROFILES["dev-cpu"])))["worker"]
    [spread] = worker["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"].items() <= {
        **worker["metadata"]["labels"], "ray.io/node-type": "worker"}.items()
    assert spread["labelSelector"]["matchLabels"][REVISION_LABEL] == "3", "pods of the one before are no neighbours"
    assert "topologySpreadConstraints" not in dict(templates(made(load_profile("dev-cpu", ["cluster.spread=false"]))))[
        "worker"]["spec"]


@pytest.mark.parametrize(("overrides", "problem", "where"), [
    (["cluster.serve.worker={shm: 64Mi}"], "too small for Ray's object store", "profile dev-cpu, cluster.serve.worker"),
    (["cluster.serve.head={shm: 64Mi}"], "too small for Ray's object store", "profile dev-cpu, cluster.serve.head"),
    (["compute.device=cuda", "compute.gpus_per_worker=1", "cluster.serve.worker={cpu: '2'}"], "a replica has no GPU",
     "profile dev-cpu, cluster.serve"),
])
def test_pods_that_would_never_serve_are_refused(overrides: list[str], problem: str, where: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        made(load_profile("dev-cpu", overrides))
    assert caught.value.where == where


def test_the_address_is_the_service_that_kuberay_makes() -> None:
    assert endpoint_of("tiny", "align") == "http://tiny-serve-svc.align.svc:8000/v1"
    long = "a" * 45
    assert endpoint_of(long, "align").startswith(f"http://{made(PROFILES['s3'], run=long)['metadata']['name']}-serve-")


# --- the hooks, in a shell ---

SHELL = pytest.mark.skipif(not Path("/proc/net/tcp").exists() or shutil.which("awk") is None, reason="no /proc or awk")


def _here(script: str, folder: Path, port: int, of: str) -> str:
    """The hook for this machine: another port, a folder of the test's, and no process 1 to wait for."""
    script = script.replace(DRAIN, str(folder / "drain")).replace(f":{of}", f":{port:04X}")
    return script.replace("/proc/1/status", "/proc/self/status").replace("^SigCgt:.*[4-7c-f][0-9a-f]{3}$", "^SigCgt")


@SHELL
def test_the_replicas_hook_waits_for_answers_and_for_clients(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        (tmp_path / "drain.in-flight").write_text("1\n")
        with subprocess.Popen(["/bin/sh", "-c", _here(drained(60), tmp_path, port, "1F40")]) as hook:
            with pytest.raises(subprocess.TimeoutExpired):
                hook.wait(5)
            assert (tmp_path / "drain").exists()
            (tmp_path / "drain.in-flight").write_text("0\n")
            with pytest.raises(subprocess.TimeoutExpired):
                hook.wait(4)
            client.close()
            accepted.close()
            assert hook.wait(10) == 0


@SHELL
def test_the_replicas_hook_gives_up_in_time(tmp_path: Path) -> None:
    (tmp_path / "drain.in-flight").write_text("1\n")
    assert subprocess.run(["/bin/sh", "-c", _here(drained(1), tmp_path, 9, "1F40")], timeout=20).returncode == 0


@SHELL
def test_the_heads_hook_waits_for_others_alone(tmp_path: Path) -> None:
    """Connections of the head to itself are no replica's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        own = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        script = _here(alone(60), tmp_path, port, "18EB")
        assert subprocess.run(["/bin/sh", "-c", script], timeout=10).returncode == 0
        other = socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0))
        theirs, _ = server.accept()
        with subprocess.Popen(["/bin/sh", "-c", script]) as hook:
            with pytest.raises(subprocess.TimeoutExpired):
                hook.wait(3)
            closing = threading.Timer(0.1, lambda: (other.close(), theirs.close()))
            closing.start()
            assert hook.wait(10) == 0
            closing.join()
        own.close()
        accepted.close()
