"""The chart renders for every values file, strictly valid; what would fail later is refused with what to do."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from alignment.config.profile import Images, Storage
from tests.chart.rendered import CHART, NAMESPACE, ROOT, S3, SETS, helm, objects, of_set, one, pods, rendered, template
from tests.schemas import problems
from tests.tools import tool

CRD = CHART / "files" / "alignmentruns.yaml"


@pytest.mark.parametrize("name", SETS)
def test_every_object_is_strictly_valid(name: str) -> None:
    unknown = set()
    for found in of_set(name):
        try:
            assert not problems(found), f"{found['kind']}/{found['metadata']['name']}"
        except kubernetes_validate.SchemaNotFoundError:
            unknown.add(found["kind"])
    assert unknown <= {"PodMonitor"}


def test_a_typo_in_a_template_would_be_found() -> None:
    cluster = one(of_set("values-dev.yaml"), "RayCluster", "kubealign")
    container = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["volumMounts"] = container.pop("volumeMounts")
    assert any("volumMounts" in problem for problem in problems(cluster))
    deployment = one(of_set("values.yaml"), "Deployment", "kubealign-operator")
    deployment["spec"]["replica"] = deployment["spec"].pop("replicas")
    assert any("replica" in problem for problem in problems(deployment))


@pytest.mark.parametrize("name", SETS)
def test_names_are_unique_and_everything_is_ours(name: str) -> None:
    found = of_set(name)
    names = [(each["kind"], each["metadata"]["name"]) for each in found]
    assert len(names) == len(set(names))
    for each in found:
        assert each["metadata"]["labels"]["app.kubernetes.io/part-of"] == "kubealign"
        if each["kind"] != "CustomResourceDefinition":
            assert each["metadata"]["namespace"] == NAMESPACE
            assert each["metadata"]["name"].startswith("kubealign")


@pytest.mark.parametrize("file", ["values.yaml", "values-dev.yaml"])
def test_helm_lint_is_content(file: str) -> None:
    done = helm("lint", "--strict", "--kube-version", "1.36.0", CHART, "--values", CHART / file)
    # lint knows no --api-versions, so our own guard speaks; nothing else may.
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if re.match(r"\[(ERROR|WARNING)\]", line)]
    assert all("KubeRay is not installed" in line or "guards.yaml" in line for line in complaints), complaints


# --- the definition of AlignmentRun ---


def test_the_definition_is_kept_at_uninstall_and_otherwise_as_generated() -> None:
    crd = one(of_set("values.yaml"), "CustomResourceDefinition", "alignmentruns.kubealign.dev")
    generated = yaml.safe_load(CRD.read_text(encoding="utf-8"))
    assert crd["spec"] == generated["spec"]
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


@pytest.mark.parametrize(("content", "message"), [
    (None, "files/alignmentruns.yaml is missing"), ("kind: ConfigMap\n", "holds no CustomResourceDefinition"),
    ("a: [", "holds no CustomResourceDefinition: error"),
])
def test_a_chart_without_the_definition_says_so(tmp_path: Path, content: str | None, message: str) -> None:
    shutil.copytree(CHART, tmp_path / "chart")
    file = tmp_path / "chart" / "files" / "alignmentruns.yaml"
    file.unlink(missing_ok=True)
    if content is not None:
        file.write_text(content, encoding="utf-8")
    done = template(tmp_path / "chart", "values.yaml")
    assert done.returncode != 0
    assert message in done.stderr
    assert template(tmp_path / "chart", "values.yaml", {"crd": {"install": False}}).returncode == 0


# --- guards ---


@pytest.mark.parametrize(("values", "apis", "said"), [
    ({}, (), ["KubeRay is not installed", "helm install kuberay-operator", "--api-versions ray.io/v1"]),
    ({"images": {"train": "repo/train:latest"}}, ("ray.io/v1",), ["images.train", "repo/train:latest", "latest"]),
    ({"images": {"control": "localhost:5000/control"}}, ("ray.io/v1",), ["images.control", "tag"]),
    ({"storage": {"existingClaim": "mine", **S3["storage"]}}, ("ray.io/v1",), ["existingClaim", "s3.url", "Remove"]),
    ({"rayCluster": {"workerGroups": [{"name": "a", "replicas": 1}] * 2}}, ("ray.io/v1",), ['named "a"']),
    ({"monitoring": {"podMonitor": {"enabled": True}}}, ("ray.io/v1",), ["PodMonitor", "Prometheus operator"]),
])
def test_a_guard_says_what_is_wrong_and_what_to_do(
    values: dict[str, Any], apis: tuple[str, ...], said: list[str]
) -> None:
    done = template(CHART, "values.yaml", values, apis)
    assert done.returncode != 0
    for words in said:
        assert words in done.stderr


@pytest.mark.parametrize(("fields", "good"), [
    ({"authOptions": {"type": "object"}}, True), ({"autoscalerOptions": {"type": "object"}}, False)])
def test_an_old_kuberay_is_refused(tmp_path: Path, fields: dict[str, Any], good: bool) -> None:
    """`lookup` answers nothing without a cluster, so a file answers in its place."""
    shutil.copytree(CHART, tmp_path / "chart")
    seen = {"spec": {"versions": [{"name": "v1alpha1"}, {"name": "v1", "schema": {"openAPIV3Schema": {
        "properties": {"spec": {"properties": fields}}}}}]}}
    (tmp_path / "chart" / "files" / "seen.yaml").write_text(yaml.safe_dump(seen), encoding="utf-8")
    guards = tmp_path / "chart" / "templates" / "guards.yaml"
    asked = 'lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" "rayclusters.ray.io"'
    text = guards.read_text(encoding="utf-8")
    assert text.count(asked) == 1
    guards.write_text(text.replace(asked, '.Files.Get "files/seen.yaml" | fromYaml'), encoding="utf-8")
    done = template(tmp_path / "chart", "values.yaml")
    assert (done.returncode == 0) is good
    assert ("too old" in done.stderr and "helm upgrade --install kuberay-operator" in done.stderr) is not good


def test_a_digest_and_a_tag_behind_a_port_are_good_images() -> None:
    images = {"train": f"localhost:5000/train@sha256:{'a' * 64}", "control": "localhost:5000/control:1.2"}
    assert template(CHART, "values.yaml", {"images": images}).returncode == 0


# --- storage, cache ---


@pytest.mark.parametrize(("name", "claim", "secret"), [
    ("values.yaml", "kubealign-artifacts", None), ("own claims", "mine", None), ("dev on s3", None, "kubealign-s3"),
    ("cloud identity", None, None),
])
def test_artifacts_are_reached_one_way(name: str, claim: str | None, secret: str | None) -> None:
    for where, pod in pods(of_set(name)):
        if "all-reduce" in where:
            continue
        container, spec = pod["spec"]["containers"][0], pod["spec"]
        mounted = [volume["persistentVolumeClaim"]["claimName"] for volume in spec["volumes"]
                   if volume["name"] == "artifacts"]
        assert mounted == ([claim] if claim else []), where
        assert [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "artifacts"] == (
            ["/artifacts"] if claim else []), where
        secrets = [source["secretRef"]["name"] for source in container.get("envFrom", [])]
        assert secrets == ([secret] if secret else []), where


def test_claims_are_made_only_where_none_is_named_and_artifacts_are_kept() -> None:
    claims = {name: {each["metadata"]["name"]: each["metadata"].get("annotations", {}) for each in of_set(name)
                     if each["kind"] == "PersistentVolumeClaim"} for name in SETS}
    keep = {"helm.sh/resource-policy": "keep"}
    assert claims["values.yaml"] == {"kubealign-artifacts": keep}
    assert claims["everything"] == {"kubealign-artifacts": keep, "kubealign-cache": {}}
    assert claims["s3"] == claims["own claims"] == claims["nothing"] == {}


# --- the RayCluster ---


def test_head_and_groups_come_from_one_helper_with_what_each_states() -> None:
    spec = one(of_set("values-gpu.yaml"), "RayCluster", "kubealign")["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "object-store-memory": str(256 << 20)}
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    gpu = groups["gpu-8x"]["template"]["spec"]
    resources = gpu["containers"][0]["resources"]
    assert resources["limits"] == resources["requests"]
    assert resources["limits"]["nvidia.com/gpu"] == "8"
    assert resources["limits"]["rdma/hca"] == "8"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in gpu["tolerations"]
    assert {"key": "dedicated", "operator": "Equal", "value": "training", "effect": "NoSchedule"} in gpu["tolerations"]
    assert {"name": "NCCL_SOCKET_IFNAME", "value": "eth0"} in gpu["containers"][0]["env"]
    assert gpu["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"]["ray.io/group"] == "gpu-8x"
    assert "nvidia.com/gpu" not in groups["cpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert groups["gpu-24gb"]["minReplicas"] == groups["gpu-24gb"]["maxReplicas"] == 2
    shm = {name: next(volume["emptyDir"] for volume in group["template"]["spec"]["volumes"] if volume["name"] == "shm")
           for name, group in groups.items()}
    assert groups["gpu-8x"]["rayStartParams"] == {"object-store-memory": str(32 << 30)}
    assert shm["gpu-8x"] == {"medium": "Memory", "sizeLimit": "64Gi"}
    assert shm["cpu"] == {"medium": "Memory", "sizeLimit": "8Gi"}


@pytest.mark.parametrize(("cpu", "shm", "threads", "store"), [
    ("500m", "160Mi", "1", 80 << 20), ("1.5", "1G", "1", 500_000_000), (16, "64Gi", "16", 32 << 30),
    ("3500m", 1 << 30, "3", 1 << 29),
])
def test_quantities_become_threads_and_bytes(cpu: object, shm: object, threads: str, store: int) -> None:
    done = template(CHART, "values-dev.yaml", {"rayCluster": {"head": {"cpu": cpu, "shm": shm}}})
    assert done.returncode == 0, done.stderr
    head = one(objects(done.stdout), "RayCluster", "kubealign")["spec"]["headGroupSpec"]
    assert {"name": "OMP_NUM_THREADS", "value": threads} in head["template"]["spec"]["containers"][0]["env"]
    assert head["rayStartParams"]["object-store-memory"] == str(store)


def test_one_group_does_not_leak_into_the_next() -> None:
    groups = [{"name": "first", "replicas": 1, "env": {"A": "1"}, "nodeSelector": {"a": "b"}},
              {"name": "second", "replicas": 1}]
    done = template(CHART, "values-dev.yaml", {"rayCluster": {"workerGroups": groups}})
    assert done.returncode == 0, done.stderr
    first, second = one(objects(done.stdout), "RayCluster", "kubealign")["spec"]["workerGroupSpecs"]
    assert {"name": "A", "value": "1"} in first["template"]["spec"]["containers"][0]["env"]
    assert {"name": "A", "value": "1"} not in second["template"]["spec"]["containers"][0]["env"]
    assert "nodeSelector" not in second["template"]["spec"]


def test_kueue_label_only_where_a_queue_is_named() -> None:
    label = "kueue.x-k8s.io/queue-name"
    assert one(of_set("everything"), "RayCluster", "kubealign")["metadata"]["labels"][label] == "queue"
    assert label not in one(of_set("values-dev.yaml"), "RayCluster", "kubealign")["metadata"]["labels"]


# --- agreement with the rest of the project ---


def test_defaults_are_those_of_profiles_and_lock() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    images = Images()
    assert (values["images"]["train"], values["images"]["control"]) == (images.train, images.control)
    assert values["images"]["pullPolicy"] == images.pull_policy
    assert values["storage"]["mountPath"] == Storage.model_fields["mount"].default
    lock = (ROOT / "requirements" / "lock.txt").read_text(encoding="utf-8")
    assert f"\nray[data,default,train]=={values['rayCluster']['rayVersion']}" in lock or (
        f"\nray=={values['rayCluster']['rayVersion']}" in lock)


def test_notes_name_the_next_commands_and_where_data_stays(tmp_path: Path) -> None:
    # `helm template` leaves the notes out, so they are rendered as if they were a manifest.
    shutil.copytree(CHART, tmp_path / "chart")
    notes = (CHART / "templates" / "NOTES.txt").read_text(encoding="utf-8")
    body = '{{- define "notes" }}\n' + notes + '{{ end }}\nkind: Notes\ntext: {{ include "notes" . | quote }}\n'
    (tmp_path / "chart" / "templates" / "shown.yaml").write_text(body, encoding="utf-8")
    shown = {}
    for name in ("values-dev.yaml", "s3", "dev without token", "nothing"):
        done = template(tmp_path / "chart", *SETS[name])
        assert done.returncode == 0, done.stderr
        (shown[name],) = [each["text"] for each in objects(done.stdout) if each["kind"] == "Notes"]
    assert "helm test kubealign -n align" in shown["values-dev.yaml"]
    assert "--target job" in shown["values-dev.yaml"]
    assert "delete pvc kubealign-artifacts" in shown["values-dev.yaml"]
    assert "this release has s3://bucket/prefix" in shown["s3"]
    assert "create secret generic kubealign-s3" in shown["s3"]
    assert "delete pvc" not in shown["s3"]
    assert "Token authentication is off" in shown["dev without token"]
    assert "claim mine" in shown["nothing"]
    for name, place in (("values-dev.yaml", "--profile dev-cpu"), ("nothing", "--set cluster.storage.claim=mine"),
                        ("s3", "--profile s3 --set cluster.storage.url=s3://bucket/prefix")):
        typed = [line for line in shown[name].splitlines() if re.match(r"  kubealign (preflight|submit)", line)]
        assert len(typed) >= 2
        assert all(f"{place} -n align" in line for line in typed), typed
    assert "--target rayjob" in shown["nothing"]


@pytest.mark.parametrize("values", ["values.yaml", "values-dev.yaml", "values-gpu.yaml"])
def test_lint_which_has_no_cluster_asks_for_nothing_in_it(values: str) -> None:
    done = subprocess.run([tool("helm"), "lint", str(CHART), "--values", str(CHART / values)], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stdout
    assert "Fail" not in done.stdout + done.stderr
    assert "not installed" not in done.stdout + done.stderr


def test_rendering_is_repeatable() -> None:
    again = template(CHART, *SETS["everything"])
    assert again.stdout == rendered("everything")
