"""Preflight: the arithmetic of nodes and quotas, what a probe's answers mean, and what is found on an API server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from alignment.cluster.client.client import Client
from alignment.cluster.client.refusals import cluster_error
from alignment.cluster.manifests.submission import dry_run
from alignment.cluster.preflight import inside
from alignment.cluster.preflight.capacity import (
    Ask,
    Room,
    accepts,
    amount,
    asked_by,
    never_fits,
    over_quota,
    rooms,
    unplaced,
)
from alignment.cluster.preflight.checks import preflight, stage_asks
from alignment.cluster.preflight.finding import Finding
from alignment.cluster.preflight.permissions import permissions_for
from alignment.cluster.preflight.probing import deny_egress, judged, pod_failed, probe_job
from alignment.config import Profile, Run, Serve, load_profile, parse_run
from alignment.pipeline.keys import keys
from tests.cluster.api_server import Api, Json, serving
from tests.cluster.policy import templates, violations
from tests.schemas import problems

GIB = 2.0**30


def node(name: str, cpu: str = "4", memory: str = "16Gi", gpus: int = 0, **more: Any) -> Json:
    allocatable = {"cpu": cpu, "memory": memory, "pods": "110", "ephemeral-storage": "500Gi",
                   **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    return {"kind": "Node", "metadata": {"name": name, "labels": more.get("labels", {})}, "spec": more.get("spec", {}),
            "status": {"allocatable": allocatable, "conditions": [
                {"type": "Ready", "status": "True" if more.get("ready", True) else "False"}]}}


def running(on: str, cpu: str = "1", memory: str = "1Gi", phase: str = "Running") -> Json:
    return {"kind": "Pod", "metadata": {"name": "p", "namespace": "x"}, "status": {"phase": phase},
            "spec": {"nodeName": on, "containers": [{"resources": {"requests": {"cpu": cpu, "memory": memory}}}]}}


def ask(count: int = 1, **amounts: float) -> Ask:
    return Ask("worker", count, {"nvidia.com/gpu" if name == "gpu" else name: value for name, value in amounts.items()})


# --- arithmetic ---

@pytest.mark.parametrize(("text", "value"), [
    ("500m", 0.5), ("2", 2), ("8Gi", 8 * GIB), ("1e3", 1000), ("1.5Gi", 1.5 * GIB), ("100k", 100_000), (3, 3),
    ("24530548Ki", 24530548 * 1024), ("50000000n", 0.05),
])
def test_quantities(text: object, value: float) -> None:
    assert amount(text) == pytest.approx(value)


def test_no_quantity() -> None:
    with pytest.raises(ValueError, match="Invalid number"):
        amount("much")


def test_a_pod_counts_containers_together_and_the_largest_init_container() -> None:
    def container(cpu: str) -> Json:
        return {"resources": {"requests": {"cpu": cpu}}}

    one, two = container("1"), container("2")
    assert asked_by({"containers": [one, container("500m")], "initContainers": [one]}) == {"cpu": 1.5}
    assert asked_by({"containers": [one], "initContainers": [two, container("3")]}) == {"cpu": 3}
    assert asked_by({"containers": [container("1"), {}], "overhead": {"cpu": "250m"}}) == {"cpu": 1.25}


CORDONED: Json = {"unschedulable": True, "taints": [
    {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]}


def test_rooms_know_closed_nodes_and_leave_out_finished_pods() -> None:
    made = rooms([node("a"), node("b", ready=False), node("c", spec=CORDONED)],
                 [running("a"), running("a", phase="Succeeded"), running("b")])
    assert [(room.name, room.closed) for room in made] == [("a", ""), ("b", "not ready"), ("c", "cordoned")]
    assert [accepts(room, ask(cpu=1)) for room in made] == [True, False, False]
    assert unplaced([ask(3, cpu=1)], made, empty=False) == []
    assert unplaced([ask(4, cpu=1)], made, empty=False) == ["worker"]
    assert made[0].allocatable["cpu"] == 4
    assert made[0].free["cpu"] == 3
    assert made[0].free["pods"] == 109
    assert made[0].free["memory"] == 15 * GIB


def test_more_than_any_node_has() -> None:
    where = rooms([node("a"), node("b", gpus=1)], [])
    assert never_fits(ask(cpu=4), where) is None
    why = never_fits(ask(cpu=1, gpu=2), where)
    assert why is not None
    assert "asks for 2 nvidia.com/gpu, and the most that any node has is 1" in why
    why = never_fits(ask(cpu=1, memory=32 * GIB), where)
    assert why is not None
    assert "32 GiB memory" in why
    # Each is on some node, both on none.
    assert never_fits(ask(cpu=3, gpu=1), rooms([node("a", cpu="4"), node("b", cpu="2", gpus=1)], [])) is not None


def test_labels_and_taints() -> None:
    tainted = rooms([node("g", gpus=8, labels={"pool": "gpu"}, spec={
        "taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule", "value": "present"}]})], [])
    plain = ask(cpu=1, gpu=1)
    assert not accepts(tainted[0], plain)
    assert "taints: nvidia.com/gpu" in (never_fits(plain, tainted) or "")
    for entry in ({"key": "nvidia.com/gpu", "operator": "Exists"}, {"operator": "Exists"},
                  {"key": "nvidia.com/gpu", "operator": "Equal", "value": "present", "effect": "NoSchedule"}):
        assert never_fits(Ask("w", 1, plain.asks, {"pool": "gpu"}, [entry]), tainted) is None
    for entry in ({"key": "nvidia.com/gpu", "operator": "Equal", "value": "other"},
                  {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute"}):
        assert never_fits(Ask("w", 1, plain.asks, {}, [entry]), tainted) is not None
    # A node that is closed is no missing label, and a missing label no closed node.
    closed = [*rooms([node("c", labels={"pool": "cpu"}, spec=CORDONED), node("d", ready=False)], []), *tainted]
    assert "c is cordoned" in (never_fits(Ask("w", 1, {"cpu": 1.0}, {"pool": "cpu"}), closed) or "")
    assert "c is cordoned, d is not ready" in (never_fits(plain, closed) or "")
    assert "labels pool=arm" in (never_fits(Ask("w", 1, {"cpu": 1.0}, {"pool": "arm"}), closed) or "")
    assert "labels pool=cpu" in (never_fits(Ask("w", 1, {"cpu": 1.0}, {"pool": "cpu"}), tainted) or "")
    soft = rooms([node("s", spec={"taints": [{"key": "x", "effect": "PreferNoSchedule"}]})], [])
    assert accepts(soft[0], plain)


def test_placing_all_pods_of_a_stage() -> None:
    where = rooms([node("a", cpu="4"), node("b", cpu="2")], [running("a", cpu="3")])
    assert unplaced([ask(3, cpu=2)], where, empty=True) == []
    assert unplaced([ask(4, cpu=2)], where, empty=True) == ["worker"]
    assert unplaced([ask(3, cpu=2)], where, empty=False) == ["worker", "worker"]
    crowded = [Room("a", {}, (), {"cpu": 8.0, "pods": 1.0}, {"cpu": 8.0, "pods": 1.0})]
    assert unplaced([ask(2, cpu=1)], crowded, empty=True) == ["worker"]


@given(st.lists(st.integers(1, 8), min_size=1, max_size=6), st.lists(st.integers(1, 4), max_size=10))
def test_placing_never_overfills(sizes: list[int], pods: list[int]) -> None:
    where = rooms([node(f"n{index}", cpu=str(size)) for index, size in enumerate(sizes)], [])
    asks = [ask(cpu=float(cpu)) for cpu in pods]
    placed = len(pods) - len(unplaced(asks, where, empty=True))
    assert sum(sorted(pods)[:placed]) <= sum(sizes)
    assert placed == len(pods) or sum(pods) > sum(sizes) - max(pods) * len(sizes)


def test_quota() -> None:
    hard = {"requests.cpu": "4", "limits.memory": "8Gi", "pods": "3", "requests.nvidia.com/gpu": "0",
            "persistentvolumeclaims": "1"}
    quota = {"status": {"hard": hard, "used": {"requests.cpu": "1500m", "pods": "1"}}}
    assert over_quota([ask(2, cpu=1, memory=4 * GIB)], quota) == {}
    assert over_quota([ask(3, cpu=1, memory=GIB)], quota) == {"requests.cpu": (3, 2.5), "pods": (3, 2)}
    assert over_quota([ask(cpu=1, gpu=1)], quota) == {"requests.nvidia.com/gpu": (1, 0)}
    assert over_quota([ask(memory=9 * GIB)], quota) == {"limits.memory": (9 * GIB, 8 * GIB)}


# --- the run's own pods ---

@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"group": "g", "passage": "p", "question": "q", "answer": "a"}\n' * 4)
    return parse_run(yaml.safe_dump({"name": "mine", "stages": [
        {"name": "base", "kind": "import", "model": {"source": "tiny"}},
        {"name": "seed", "kind": "import", "data": [{"path": "rows.jsonl", "format": "passage-qa"}],
         "split": {"by": "ratio", "ratios": {"train": 1.0}}},
        {"name": "sft", "kind": "train", "method": "sft", "model": "base", "rows": ["seed/train"], "batch_size": 16,
         "micro_batch_size": 8, "learning_rate": 1e-3, "strategy": {"kind": "lora"}}]}))


@pytest.fixture
def s3_profile(monkeypatch: pytest.MonkeyPatch, run: Run) -> Profile:
    return load_profile(Path(__file__).parents[3] / "configs/profiles/s3.yaml")


def test_what_a_stage_asks_for(run: Run, s3_profile: Profile) -> None:
    jobs = dry_run(run, s3_profile, namespace="align", target="rayjob")[1:]
    one, _, train = (stage_asks(job) for job in jobs)
    assert [(item.name, item.count) for item in one] == [("head", 1)]
    assert [(item.name, item.count) for item in train] == [("head", 1), ("worker", 2)]
    assert train[1].asks["cpu"] == pytest.approx(0.45)
    assert train[1].asks["memory"] == 2560 * 2**20


def test_the_probes_manifests_are_valid_and_like_a_stages(run: Run, s3_profile: Profile) -> None:
    job = probe_job(run, s3_profile, name="probe-1", namespace="align", files="mine-1")
    assert problems(job) == []
    assert problems(deny_egress("probe-1", "align")) == []
    assert "an init container with what the API server refuses" not in violations(job["spec"]["template"])
    spec = job["spec"]["template"]["spec"]
    stage = dict(templates(dry_run(run, s3_profile, namespace="align", target="rayjob")[1]))["head"]["spec"]
    assert spec["securityContext"] == stage["securityContext"]
    assert spec["automountServiceAccountToken"] is False
    for container in (*spec["containers"], *spec["initContainers"]):
        assert container["securityContext"] == stage["containers"][0]["securityContext"]
        assert container["envFrom"] == [{"secretRef": {"name": "kubealign-s3"}}]
    shm = next(item for item in spec["volumes"] if item["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "512Mi"}
    assert spec["initContainers"][0]["image"] == s3_profile.cluster.images.control  # type: ignore[union-attr]


# --- what the probe's answers mean ---

def answers(run: Run, **changes: Any) -> dict[str, Any]:
    return {"versions": inside.versions(), "time": 1.0, "skew": 0.2, "shm": 512 * 2**20, "dns": "10.96.0.1",
            "storage": {"write": 0.1, "delete": 0.1}, "open": True, "ready": True, "denied": 1.5,
            "keys": {name: key.key for name, key in keys(run).items()}, **changes}


def states(found: Iterator[Finding]) -> dict[str, Finding]:
    return {item.topic: item for item in found}


def test_all_is_well(run: Run, s3_profile: Profile) -> None:
    found = states(judged(answers(run), run, s3_profile, denies=True))
    assert {item.state for item in found.values()} == {"ok"}
    assert set(found) == {"images", "versions", "digests", "clock", "shm", "dns", "storage", "policies"}


@pytest.mark.parametrize(("changes", "topic", "state", "says"), [
    ({"skew": -20.0}, "clock", "warn", "20.0 s"),
    ({"skew": 400.0}, "clock", "fail", "400.0 s"),
    ({"shm": 64 * 2**20}, "shm", "fail", "the profile says 0.5 GiB"),
    ({"dns": None, "error dns": "gaierror: no such name"}, "dns", "fail", "no such name"),
    ({"storage": None, "error storage": "the storage refuses to write: 403"}, "storage", "fail", "refuses to write"),
    ({"denied": None}, "policies", "warn", "NOT enforced"),
    ({"open": False}, "policies", "ok", "cannot even reach"),
    ({"versions": {"kubealign": "0.0.1", "python": "3.11.1"}}, "versions", "warn", "kubealign 0.0.1 in the image"),
    ({"keys": {"base": "base-000000000000"}}, "digests", "fail", "other digests for base, seed, sft"),
    ({"keys": None, "error keys": "DataError: gone"}, "digests", "fail", "DataError: gone"),
])
def test_what_is_not(changes: dict[str, Any], topic: str, state: str, says: str, run: Run, s3_profile: Profile) -> None:
    found = states(judged(answers(run, **changes), run, s3_profile, denies=True))
    assert found[topic].state == state
    assert says in found[topic].seen
    assert [item.topic for item in found.values() if item.state == "fail"] == ([topic] if state == "fail" else [])


def test_policies_are_not_called_unenforced_when_nothing_was_denied(run: Run, s3_profile: Profile) -> None:
    found = states(judged(answers(run, denied=None), run, s3_profile, denies=False))
    assert "not tried" in found["policies"].seen


def test_a_probe_that_died_early(run: Run, s3_profile: Profile) -> None:
    found = states(judged({"printed": "No module named alignment"}, run, s3_profile, denies=True))
    assert found["pod"].state == "fail"
    assert "No module named alignment" in found["pod"].seen


def test_the_probe_looks_at_what_it_says(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    Path("run.yaml").write_text(yaml.safe_dump(run.model_dump(mode="json")))
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.getsockname()[1]))
        monkeypatch.setattr(inside, "POLICY_WITHIN", 0.2)
        assert inside.main([str(tmp_path / "store"), "run.yaml"]) == 0
    seen: dict[str, Any] = {}
    for line in capsys.readouterr().out.splitlines():
        seen |= json.loads(line)
    assert seen["open"] is True
    assert seen["denied"] is None
    assert seen["shm"] > 0
    assert seen["keys"] == {name: key.key for name, key in keys(run).items()}
    assert set(seen["storage"]) == {"write", "list", "read", "delete"}
    with socket.create_server(("127.0.0.1", 0)) as closing:
        address = closing.getsockname()
    assert inside.denied_within(5, address) == 0.0


# --- on an API server ---

@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with serving(tmp_path) as (made, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        made.put(node("n1", cpu="4", memory="16Gi"))
        made.put({"kind": "Secret", "metadata": {"name": "kubealign-s3", "namespace": "align"}})
        made.put({"kind": "Deployment", "status": {"readyReplicas": 1},
                  "metadata": {"name": "kuberay-operator", "namespace": "kuberay-system"},
                  "spec": {"template": {"spec": {"containers": [{"image": "kuberay:1.6.1"}]}}}})
        made.denied = {("create", "jobs"), ("create", "networkpolicies")}  # so that no test waits for a pod
        yield made


def look(run: Run, profile: Profile, **more: Any) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for item in preflight(run, profile, Client(), **more):
        found.setdefault(item.topic, []).append(item)
    return found


def test_a_good_cluster(run: Run, s3_profile: Profile, api: Api) -> None:
    api.denied = set()
    api.reacts = lambda thing: thing["kind"] == "Job" and api.put({
        "kind": "Pod", "spec": {}, "metadata": {"name": "x", "namespace": "align", "labels": {
            "batch.kubernetes.io/job-name": thing["metadata"]["name"]}},
        "status": {"phase": "Pending", "containerStatuses": [{"name": "probe", "image": "i:1", "state": {
            "waiting": {"reason": "CreateContainerError", "message": "no such file"}}}]}}) and None
    found = look(run, s3_profile, target="rayjob")
    for topic in ("api server", "namespace", "permissions", "kuberay", "manifests", "admission", "quota", "capacity",
                  "secrets"):
        assert [item.state for item in found[topic]] == ["ok"], found[topic]
    assert "operator" not in found
    assert "alignmentrun" not in found
    for topic, state in (("alignmentrun", "ok"), ("operator", "fail")):
        assert [item.state for item in look(run, s3_profile, target="run")[topic]] == [state]
    api.put({"kind": "Deployment", "metadata": {"name": "kubealign-operator", "namespace": "align"},
             "status": {"readyReplicas": 1}})
    assert look(run, s3_profile, target="run")["operator"][0].state == "ok"
    assert "no such file" in found["pod"][0].seen
    assert [kind for kind in ("Job", "ConfigMap", "NetworkPolicy") if api.of_kind(kind)] == []


def test_what_is_missing_is_all_said_at_once(run: Run, s3_profile: Profile, api: Api) -> None:
    api.absent = {"kubealign.dev"}
    api.objects.pop(("Secret", "align", "kubealign-s3"))
    api.put(node("n1", cpu="1"))
    api.put({"kind": "ResourceQuota", "metadata": {"name": "q", "namespace": "align"},
             "status": {"hard": {"limits.memory": "2Gi"}, "used": {"limits.memory": "1Gi"}}})
    found = look(run, s3_profile)
    assert found["operator"][0].state == "warn"
    assert found["secrets"][0].state == "fail"
    assert "kubectl create secret generic kubealign-s3 -n align" in found["secrets"][0].do
    assert "1.2 cpu, and the most that any node has is 1" in found["capacity"][0].seen
    assert "q has 1 GiB limits.memory left" in found["quota"][0].seen
    assert found["permissions"][0].state == "fail"
    assert "create jobs.batch" in found["permissions"][0].seen
    assert found["pod"][0].state == "warn"
    assert look(run, s3_profile, target="run")["operator"][0].state == "fail"


def served(run: Run, **serve: Any) -> Run:
    return run.model_copy(update={"serve": Serve.model_validate(serve)})


def test_what_serves_a_run_is_looked_at_too(run: Run, s3_profile: Profile, api: Api) -> None:
    api.put(node("n1", cpu="1500m", memory="5Gi"))
    found = look(served(run), s3_profile)
    (secret,) = [item for item in found["secrets"] if item.state == "fail"]
    assert "Secret kubealign-api-key does not exist" in secret.seen
    assert "--from-literal=KUBEALIGN_API_KEY=" in secret.do
    (twice,) = [item for item in found["capacity"] if "takes over" in item.seen or "take over" in item.seen]
    assert twice.state == "warn"
    assert "serve: while other models take over there are its pods twice" in twice.seen
    api.put({"kind": "Secret", "metadata": {"name": "kubealign-api-key", "namespace": "align"}})
    api.put(node("n1", cpu="4", memory="16Gi"))
    found = look(served(run), s3_profile)
    assert {item.state for item in (*found["secrets"], *found["capacity"], *found["kuberay"])} == {"ok"}
    found = look(served(run, replicas=9), s3_profile)
    (many,) = [item for item in found["capacity"] if item.state == "fail"]
    assert many.seen.startswith("serve: of its 10 pods")


def test_without_a_key_none_is_looked_for(run: Run, s3_profile: Profile, api: Api) -> None:
    profile = load_profile("s3", ["cluster.serve.api_key=null"])
    assert [item.state for item in look(served(run), profile)["secrets"]] == ["ok"]


def test_one_quota_is_refused_once_however_many_stages_it_stops(run: Run, s3_profile: Profile, api: Api) -> None:
    """Each refusal names other amounts and a pod of its own."""
    api.quota = ("q", "limits.memory=1Gi")
    found = look(run, s3_profile)["admission"]
    assert [item.state for item in found] == ["fail"]
    assert "exceeded quota: q, requested: limits.memory=" in found[0].seen
    assert "raise the quota" in found[0].do


@pytest.mark.parametrize(("served", "asked"), [
    ({"v1beta1", "v1beta2"}, "v1beta2"), ({"v1beta2"}, "v1beta2"), ({"v1beta1"}, "v1beta1")])
def test_the_queue_is_asked_for_as_the_cluster_serves_it(
    served: set[str], asked: str, run: Run, s3_profile: Profile, api: Api
) -> None:
    assert s3_profile.cluster is not None
    queued = s3_profile.model_copy(update={"cluster": s3_profile.cluster.model_copy(update={"queue": "lane"})})
    api.absent = {f"kueue.x-k8s.io/{version}" for version in {"v1beta1", "v1beta2"} - served}
    found = look(run, queued)["queue"]
    assert [item.state for item in found] == ["fail"]
    assert "LocalQueue lane does not exist" in found[0].seen
    api.put({"kind": "LocalQueue", "metadata": {"name": "lane", "namespace": "align"}})
    assert look(run, queued)["queue"][0].state == "ok"
    assert f"/apis/kueue.x-k8s.io/{asked}/namespaces/align/localqueues/lane" in "".join(api.requests)


@pytest.mark.parametrize(("namespace", "states"), [("kuberay-system", ["ok"]), ("ray", ["ok", "fail"])])
def test_a_policy_that_keeps_kuberay_out_is_found(
    namespace: str, states: list[str], run: Run, s3_profile: Profile, api: Api
) -> None:
    peers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}},
             {"podSelector": {"matchLabels": {"kubealign.dev/component": "test"}}}]
    api.put({"kind": "NetworkPolicy", "metadata": {"name": "kubealign-head", "namespace": "align"},
             "spec": {"ingress": [{"from": peers}]}})
    found = look(run, s3_profile)["kuberay"]
    assert [item.state for item in found] == states
    assert found[-1].state == "ok" or "networkPolicy.kuberayNamespace=kuberay-system" in found[-1].do


def test_no_room_for_the_probe_is_a_warning_and_a_probe_that_never_starts_a_failure() -> None:
    """What is full now is free later; the run itself would wait."""
    full = cluster_error("a pod does not start: pod p: no node has enough free cpu (the pod asks for 500m): 0/1 nodes "
                         "are available: 1 Insufficient cpu; wait", where="Job probe")
    assert (pod_failed(full).state, pod_failed(full).topic) == ("warn", "pod")
    assert pod_failed(cluster_error("a pod does not start: pod p fits no node: x", where="Job probe")).state == "fail"
    assert pod_failed(cluster_error("image i cannot be had", where="Job probe")).topic == "images"


def test_no_kuberay_names_the_command(run: Run, s3_profile: Profile, api: Api) -> None:
    api.absent = {"ray.io"}
    found = look(run, s3_profile)
    assert found["kuberay"][0].state == "fail"
    assert found["kuberay"][0].do.startswith("helm install kuberay-operator")


def test_a_namespace_that_is_not_there_ends_it(run: Run, s3_profile: Profile, api: Api) -> None:
    api.objects.pop(("Namespace", "", "align"))
    found = look(run, s3_profile)
    assert set(found) == {"api server", "namespace"}
    assert found["namespace"][0].state == "fail"


def test_what_may_not_be_looked_at_is_a_warning(run: Run, s3_profile: Profile, api: Api) -> None:
    api.denied |= {("list", "nodes"), ("get", "secrets"), ("list", "deployments"), ("get", "namespaces")}
    found = look(run, s3_profile)
    for topic in ("capacity", "secrets", "kuberay", "namespace"):
        assert found[topic][-1].state == "warn", topic
        assert "may not" in found[topic][-1].seen


SHARED: Json = {"accessModes": ["ReadWriteMany"], "storageClassName": "nfs"}


@pytest.mark.parametrize(("spec", "phase", "state", "says"), [
    (None, "", "fail", "does not exist"),
    (SHARED, "Bound", "ok", "Bound"),
    ({**SHARED, "accessModes": ["ReadWriteOnce"]}, "Bound", "warn", "one node"),
    ({"accessModes": ["ReadWriteMany"]}, "Pending", "fail", "no storage class"),
    (SHARED, "Pending", "ok", "until its first pod"),
    (SHARED, "Lost", "fail", "lost"),
])
def test_volumes(spec: Json | None, phase: str, state: str, says: str, run: Run, api: Api) -> None:
    profile = load_profile(Path(__file__).parents[3] / "configs/profiles/dev-cpu.yaml")
    if spec is not None:
        api.put({"kind": "PersistentVolumeClaim", "spec": spec, "status": {"phase": phase},
                 "metadata": {"name": "kubealign-artifacts", "namespace": "align"}})
    found = look(run, profile)["volumes"]
    assert [item.state for item in found] == [state]
    assert says in found[0].seen


def test_permissions_by_target() -> None:
    needed, useful = permissions_for("rayjob")
    assert ("create", "rayjobs", "ray.io") in needed
    assert useful == []
    assert ("patch", "alignmentruns", "kubealign.dev") in permissions_for("run")[0]
    assert ("create", "pods/portforward", "") in permissions_for("job")[0]
    both = permissions_for("kubernetes")
    assert ("create", "pods/portforward", "") in both[1]
    assert not set(both[0]) & set(both[1])
