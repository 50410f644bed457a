"""The network policies, evaluated as a cluster would: the flows that Ray and the storage need, and no other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from alignment.cluster.manifests.autoscaler import SCALES_LABEL
from tests.chart.rendered import NAMESPACE, SETS, of_set, pods

OURS = {"app.kubernetes.io/part-of": "kubealign"}


@dataclass(frozen=True)
class End:
    """One end of a connection: a pod (labels and namespace), or an address outside."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = NAMESPACE
    address: str | None = None


def _component(name: str, **labels: str) -> End:
    return End({**OURS, "kubealign.dev/component": name, **labels})


RAY = _component("ray", **{"kubealign.dev/stage": "sft"})
HEAD = _component("ray", **{"ray.io/node-type": "head"})
REPLICA = _component("serve", **{"ray.io/node-type": "worker"})
SERVES = _component("serve", **{"ray.io/node-type": "head"})
SCALES = _component("serve", **{"ray.io/node-type": "head", SCALES_LABEL: "true"})
OPERATOR, TEST, STORE = (_component(name) for name in ("operator", "test", "store"))
STRANGER = End({"app": "other"})
KUBERAY = End({"app": "kuberay-operator"}, "kuberay-system")
DNS = End({"k8s-app": "kube-dns"}, "kube-system")
PROMETHEUS = End({"app": "prometheus"}, "monitoring")
ELSEWHERE = End({"app": "other"}, "elsewhere")
STORAGE, METADATA = End(address="52.216.0.1"), End(address="169.254.169.254")
API_SERVER = End(address="10.0.0.1")
NAMES = {"ray": RAY, "head": HEAD, "replica": REPLICA, "serves": SERVES, "scales": SCALES,
         "operator": OPERATOR, "test": TEST, "store": STORE, "stranger": STRANGER, "kuberay": KUBERAY,
         "dns": DNS, "prometheus": PROMETHEUS, "elsewhere": ELSEWHERE,
         "storage": STORAGE, "metadata": METADATA, "api": API_SERVER}


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    wanted = selector.get("matchLabels", {})
    tests = {"In": lambda value, of: value in of, "Exists": lambda value, of: value is not None}
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        tests[each["operator"]](labels.get(each["key"]), each.get("values", ()))
        for each in selector.get("matchExpressions", []))


def _matches(peer: Mapping[str, Any], end: End) -> bool:
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        inside = [net for net in (block["cidr"], *block.get("except", [])) if end.address
                  and ip_network(net).version == 4 and ip_address(end.address) in ip_network(net)]
        return inside == [block["cidr"]]
    if end.address:
        return False
    namespaces = peer.get("namespaceSelector")
    fits = end.namespace == NAMESPACE if namespaces is None else _selects(
        namespaces, {"kubernetes.io/metadata.name": end.namespace})
    return fits and _selects(peer.get("podSelector", {}), end.labels)


def _lets(policies: list[dict[str, Any]], way: str, at: End, other: End, port: int, protocol: str) -> bool:
    """Whether the policies that select `at` let the connection through; all may, where none selects it."""
    if at.namespace != NAMESPACE or at.address:
        return True
    chosen = [policy["spec"] for policy in policies if way in policy["spec"]["policyTypes"]
              and _selects(policy["spec"]["podSelector"], at.labels)]
    key, peers = ("ingress", "from") if way == "Ingress" else ("egress", "to")
    return not chosen or any(
        (not rule.get(peers) or any(_matches(peer, other) for peer in rule[peers]))
        and (not rule.get("ports") or any(
            each.get("protocol", "TCP") == protocol and each["port"] <= port <= each.get("endPort", each["port"])
            for each in rule["ports"]))
        for spec in chosen for rule in spec.get(key, []))


def _allowed(name: str, source: str, target: str, port: int, protocol: str = "TCP") -> bool:
    policies = [found for found in of_set(name) if found["kind"] == "NetworkPolicy"]
    start, end = NAMES[source], NAMES[target]
    return _lets(policies, "Egress", start, end, port, protocol) and _lets(
        policies, "Ingress", end, start, port, protocol)


WANTED = [
    ("ray", "ray", 29500), ("ray", "head", 6379), ("ray", "head", 8265), ("head", "ray", 10002), ("ray", "ray", 65535),
    ("kuberay", "head", 8265), ("test", "head", 8265),
    ("ray", "dns", 53), ("operator", "dns", 5353), ("store", "dns", 53),
    ("ray", "storage", 443), ("operator", "storage", 443), ("test", "storage", 443), ("store", "storage", 443),
    ("operator", "api", 443), ("operator", "api", 6443), ("stranger", "elsewhere", 80),
    ("replica", "serves", 6379), ("serves", "replica", 10002), ("replica", "replica", 10002), ("replica", "dns", 53),
    ("replica", "storage", 443), ("kuberay", "serves", 8265), ("stranger", "replica", 8000), ("scales", "api", 6443),
]
UNWANTED = [
    ("stranger", "head", 8265), ("stranger", "head", 6379), ("stranger", "head", 10001), ("stranger", "head", 8080),
    ("stranger", "head", 52365), ("stranger", "ray", 29500), ("stranger", "operator", 8080),
    ("stranger", "operator", 9090),
    ("elsewhere", "head", 8265), ("kuberay", "head", 6379), ("kuberay", "ray", 8265), ("test", "head", 6379),
    ("test", "ray", 8265), ("test", "api", 6443), ("test", "head", 10001),
    ("stranger", "replica", 8080), ("stranger", "replica", 10002), ("stranger", "replica", 52365),
    ("stranger", "serves", 8000), ("stranger", "serves", 8265), ("test", "serves", 8265),
    ("elsewhere", "replica", 8000), ("kuberay", "replica", 8265), ("kuberay", "replica", 8000),
    ("prometheus", "replica", 8080), ("ray", "replica", 10002), ("ray", "serves", 6379),
    ("replica", "ray", 29500), ("replica", "head", 8265),
    ("serves", "api", 6443), ("replica", "api", 6443), ("replica", "metadata", 80), ("scales", "elsewhere", 80),
    ("operator", "head", 8265), ("store", "head", 8265), ("ray", "api", 6443), ("ray", "metadata", 80),
    ("ray", "metadata", 443), ("ray", "elsewhere", 80), ("ray", "stranger", 8000), ("ray", "ray", 22),
    ("ray", "operator", 8080), ("ray", "storage", 80), ("operator", "elsewhere", 80), ("prometheus", "operator", 8080),
]


@pytest.mark.parametrize(("source", "target", "port"), WANTED)
def test_flows_that_are_needed(source: str, target: str, port: int) -> None:
    assert _allowed("values.yaml", source, target, port)


@pytest.mark.parametrize(("source", "target", "port"), UNWANTED)
def test_flows_that_are_not(source: str, target: str, port: int) -> None:
    assert not _allowed("values.yaml", source, target, port)


def test_name_resolution_over_udp_and_only_there() -> None:
    assert _allowed("values.yaml", "ray", "dns", 53, "UDP")
    assert not _allowed("values.yaml", "ray", "elsewhere", 53, "UDP")


@pytest.mark.parametrize(("target", "port"), [("head", 8080), ("ray", 8080), ("replica", 8080), ("operator", 9090)])
def test_prometheus_is_let_in_only_with_a_pod_monitor(target: str, port: int) -> None:
    assert _allowed("values-gpu.yaml", "prometheus", target, port)
    assert not _allowed("values-gpu.yaml", "elsewhere", target, port)
    assert not _allowed("values.yaml", "prometheus", target, port)


def test_storage_within_the_cluster_in_development() -> None:
    assert _allowed("values-dev.yaml", "ray", "elsewhere", 9000)
    assert not _allowed("values-dev.yaml", "ray", "elsewhere", 80)
    assert not _allowed("values-dev.yaml", "stranger", "head", 8265)


def test_who_may_ask_the_models_stands_in_the_values() -> None:
    assert _allowed("gateway", "elsewhere", "replica", 8000)
    assert not _allowed("gateway", "stranger", "replica", 8000)
    assert not _allowed("gateway", "elsewhere", "replica", 8265)
    assert not _allowed("nobody asks", "stranger", "replica", 8000)
    assert _allowed("nobody asks", "replica", "replica", 8000)


def test_off_means_none() -> None:
    assert not [found for found in of_set("nothing") if found["kind"] == "NetworkPolicy"]


@pytest.mark.parametrize("name", SETS)
def test_every_pod_of_the_chart_is_one_the_policies_know(name: str) -> None:
    for where, pod in pods(of_set(name)):
        labels = pod["metadata"]["labels"]
        assert labels.items() >= OURS.items(), where
        assert labels["kubealign.dev/component"] in ("ray", "operator", "test"), where


def test_running_stages_are_protected_and_the_standing_cluster_is_not() -> None:
    (budget,) = [found["spec"] for found in of_set("values-dev.yaml") if found["kind"] == "PodDisruptionBudget"]
    assert _selects(budget["selector"], RAY.labels)
    for where, pod in pods(of_set("values-dev.yaml")):
        assert not _selects(budget["selector"], pod["metadata"]["labels"]), where
    assert isinstance(budget["minAvailable"], int)
    assert not _selects(budget["selector"], REPLICA.labels)
