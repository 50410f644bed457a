"""Policy for every pod of the chart: Pod Security `restricted`, bounded, pinned, without secrets in the open."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.chart.rendered import SETS, of_set, one, pods

RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
ALLOWED_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim"}  # of those that `restricted` allows


def _pods(name: str) -> Iterator[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    for where, pod in pods(of_set(name)):
        spec = pod["spec"]
        yield where, spec, [*spec.get("initContainers", []), *spec["containers"]]


@pytest.mark.parametrize("name", SETS)
def test_pods_pass_restricted(name: str) -> None:
    for where, spec, containers in _pods(name):
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, where
        assert security["runAsUser"] > 0, where
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert not {"hostNetwork", "hostPID", "hostIPC", "ephemeralContainers"} & set(spec), where
        for volume in spec.get("volumes", []):
            assert set(volume) - {"name"} <= ALLOWED_VOLUMES, where
        for container in containers:
            assert container["securityContext"] == RESTRICTED, where
            assert not any("hostPort" in port for port in container.get("ports", [])), where


@pytest.mark.parametrize("name", SETS)
def test_containers_are_bounded_and_pinned(name: str) -> None:
    for where, spec, containers in _pods(name):
        for container in containers:
            for kind in ("requests", "limits"):
                assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"][kind]), where
            if where != "Deployment/kubealign-operator":
                assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"], where
            assert re.search(r":(?!latest$)[\w.-]+$|@sha256:[0-9a-f]{64}$", container["image"]), where
            assert container["imagePullPolicy"] in ("IfNotPresent", "Always", "Never"), where
        for volume in spec["volumes"]:
            assert volume.get("emptyDir", {"sizeLimit": ""}).keys() >= {"sizeLimit"}, f"{where}: {volume['name']}"


@pytest.mark.parametrize("name", SETS)
def test_only_the_operator_gets_a_token_of_the_api_server(name: str) -> None:
    for where, spec, _ in _pods(name):
        operator = where == "Deployment/kubealign-operator"
        assert spec["automountServiceAccountToken"] is operator, where
        assert spec["serviceAccountName"] == ("kubealign-operator" if operator else "kubealign-ray"), where
    for account in of_set(name):
        if account["kind"] == "ServiceAccount":
            assert account["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", SETS)
def test_secrets_are_named_and_never_written_down(name: str) -> None:
    assert "Secret" not in {found["kind"] for found in of_set(name)}
    for where, _, containers in _pods(name):
        for variable in [variable for container in containers for variable in container.get("env", [])]:
            secretive = re.search("TOKEN|SECRET|PASSWORD|ACCESS_KEY", variable["name"])
            assert not secretive or "secretKeyRef" in variable["valueFrom"], f"{where}: {variable['name']}"


@pytest.mark.parametrize("name", SETS)
def test_what_a_program_writes_is_not_the_root(name: str) -> None:
    """HOME and the cache lie on mounted volumes: the root is read-only."""
    for where, _, containers in _pods(name):
        for container in containers:
            mounts = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
            for variable in container["env"]:
                if variable["name"] in ("HOME", "KUBEALIGN_CACHE"):
                    assert any((variable["value"] + "/").startswith(mount + "/") for mount in mounts), where
            assert "/tmp" in mounts, where


def test_each_kind_of_pod_was_looked_at() -> None:
    kinds = {where for name in SETS for where, _ in pods(of_set(name))}
    assert kinds >= {
        "Deployment/kubealign-operator", "RayCluster/kubealign/head", "RayCluster/kubealign/gpu-8x",
        "Pod/kubealign-test-storage", "Pod/kubealign-test-all-reduce", "Job/kubealign-test-all-reduce"}


def test_the_development_cluster_fits_a_small_machine() -> None:
    """All that values-dev.yaml keeps running asks for less than one CPU and 12 GiB, beside 24 GiB of memory."""
    copies = {"cpu": 2}  # replicas of the worker group
    cpu = memory = 0.0
    for where, _, (container,) in _pods("values-dev.yaml"):
        if "test" not in where:
            requests, times = container["resources"]["requests"], copies.get(where.rpartition("/")[2], 1)
            cpu += times * int(requests["cpu"].removesuffix("m")) / 1000
            memory += times * {"Gi": 1.0, "Mi": 1 / 1024}[requests["memory"][-2:]] * int(requests["memory"][:-2])
    assert 0 < cpu <= 1
    assert 0 < memory <= 12


# --- rights ---


@pytest.mark.parametrize("name", SETS)
def test_the_operator_may_do_what_it_does_and_no_more(name: str) -> None:
    found = of_set(name)
    assert not {"ClusterRole", "ClusterRoleBinding"} & {each["kind"] for each in found}
    if not SETS[name][1].get("operator", {}).get("enabled", True):
        assert not {"Role", "RoleBinding"} & {each["kind"] for each in found}
        return
    role = one(found, "Role", "kubealign-operator")
    granted = {(rule["apiGroups"][0], resource): set(rule["verbs"]) for rule in role["rules"]
               for resource in rule["resources"]}
    assert granted == {
        ("kubealign.dev", "alignmentruns"): {"get", "list", "watch", "delete"},
        ("kubealign.dev", "alignmentruns/status"): {"patch"},
        ("ray.io", "rayjobs"): {"get", "list", "watch", "create", "delete"},
        ("ray.io", "rayservices"): {"get", "list", "watch", "create", "patch", "delete"},
        ("", "configmaps"): {"get", "create", "patch"}, ("", "pods"): {"list", "watch"},
        ("", "events"): {"get", "list", "create", "patch"}}
    assert all(len(rule["apiGroups"]) == 1 for rule in role["rules"])
    binding = one(found, "RoleBinding", "kubealign-operator")
    assert [subject["name"] for subject in binding["subjects"]] == ["kubealign-operator"]
    assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "kubealign-operator"}


def test_two_operators_never_run_at_a_time() -> None:
    spec = one(of_set("values.yaml"), "Deployment", "kubealign-operator")["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}
