"""The client against a server that speaks Kubernetes' paths: refusals in words, an API server that goes away, waits,
logs that break off."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment.cluster.client import client as client_module
from alignment.cluster.client.client import Client
from alignment.cluster.client.refusals import ClusterError, is_missing_api, refusal
from alignment.cluster.status.reading import Ended, ended, exit_code, in_words
from alignment.cluster.watch.logs import Follower
from alignment.cluster.watch.wait import wait_job, wait_ray_job
from tests.cluster.api_server import Api, Json, serving


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with serving(tmp_path) as (made, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield made


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def client(api: Api, said: list[str]) -> Client:
    return Client(say=said.append)


def rayjob(name: str = "r-sft-11112222-1", **status: Any) -> Json:
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "status": status,
            "metadata": {"name": name, "namespace": "align", "labels": {
                "kubealign.dev/run": "r", "kubealign.dev/stage": "sft", "kubealign.dev/attempt": "1"}}, "spec": {}}


def pod(name: str, labels: dict[str, str], **status: Any) -> Json:
    return {"apiVersion": "v1", "kind": "Pod", "status": status, "spec": {},
            "metadata": {"name": name, "namespace": "align", "labels": labels}}


def later(seconds: float, action: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()


def test_objects_come_and_go(client: Client) -> None:
    assert client.namespace == "align"
    made = client.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": {"x": "1"}},
                         "data": {"k": "v"}})
    assert made["data"] == {"k": "v"}
    assert client.find("ConfigMap", "a") == client.get("ConfigMap", "a")
    assert [item["metadata"]["name"] for item in client.list("ConfigMap", {"x": "1"})] == ["a"]
    assert client.list("ConfigMap", {"x": "2"}) == []
    assert client.delete("ConfigMap", "a")
    assert not client.delete("ConfigMap", "a")
    assert client.find("ConfigMap", "a") is None


def test_apply_names_its_manager_and_is_strict(client: Client, api: Api) -> None:
    client.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}})
    assert api.requests[-1].startswith("PATCH /api/v1/namespaces/align/configmaps/a?")
    for part in ("fieldManager=kubealign", "fieldValidation=Strict", "force=true"):
        assert part in api.requests[-1]


def test_refusals_name_what_is_missing(client: Client, api: Api) -> None:
    api.denied = {("create", "rayjobs"), ("patch", "rayjobs")}
    with pytest.raises(ClusterError, match=r"dev may not patch rayjobs\.ray\.io in namespace align") as refused:
        client.apply(rayjob())
    assert refused.value.status == 403
    elsewhere = Client("nowhere")
    with pytest.raises(ClusterError, match="the namespace does not exist") as absent:
        elsewhere.apply({"kind": "ConfigMap", "metadata": {"name": "a"}})
    assert absent.value.found == "nowhere"
    api.absent = {"ray.io"}
    asks: list[Callable[[], Any]] = [lambda: client.find("RayJob", "x"), lambda: client.list("RayJob"),
                                     lambda: client.delete("RayJob", "x")]
    for ask in asks:
        with pytest.raises(ClusterError, match="does not have KubeRay") as missing:
            ask()
        assert is_missing_api(missing.value)
        assert "helm install kuberay-operator" in str(missing.value)
    assert not client.has("RayJob")
    assert client.has("ConfigMap")


def test_wrong_context_and_no_kubeconfig(api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="no such context") as wrong:
        Client(context="there")
    assert "here" in (wrong.value.expected or "")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ClusterError, match="there is no kubeconfig"):
        Client()
    broken = tmp_path / "broken"
    broken.write_text("contexts: 3")
    monkeypatch.setenv("KUBECONFIG", str(broken))
    with pytest.raises(ClusterError, match="the kubeconfig cannot be used"):
        Client()


def test_a_server_that_never_answered_is_an_error_at_once(client: Client, api: Api) -> None:
    api.down = True
    began = time.monotonic()
    with pytest.raises(ClusterError, match="does not answer") as gone:
        client.get("ConfigMap", "a")
    assert time.monotonic() - began < 2
    assert "get-contexts" in (gone.value.hint or "")


def test_a_server_that_goes_away_is_waited_for(client: Client, api: Api, said: list[str]) -> None:
    client.apply({"kind": "ConfigMap", "metadata": {"name": "a"}})
    api.down = True
    later(2.5, lambda: setattr(api, "down", False))
    assert client.get("ConfigMap", "a")["metadata"]["name"] == "a"
    assert any("the API server is away" in sentence for sentence in said)
    assert said[-1] == "the API server is back"


def test_patience_ends(client: Client, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PATIENCE", 1.0)
    client.list("ConfigMap")
    api.down = True
    with pytest.raises(ClusterError, match="does not answer"):
        client.list("ConfigMap")


@pytest.mark.parametrize(("status", "body", "expected"), [
    (403, {"message": 'pods "x" is forbidden: exceeded quota: q, requested: cpu=2, used: cpu=1, limited: cpu=2'},
     "refused on admission: .*exceeded quota"),
    (500, {"message": "failed to create typed patch object (align/x; ray.io/v1, Kind=RayJob): "
                      ".spec.preRunningDeadlineSeconds: field not declared in schema"}, "does not know a field"),
    (400, {"message": 'strict decoding error: unknown field "spec.typo"'}, "does not know a field"),
    (401, {"message": "Unauthorized"}, "does not know who asks"),
    (422, {"message": "spec.entrypoint: Required value"}, "422: spec.entrypoint"),
])
def test_refusals_in_words(status: int, body: Json, expected: str) -> None:
    import json

    error = refusal(status, json.dumps({"kind": "Status", **body}), verb="PATCH", path="/apis/ray.io/v1/x")
    assert error.status == status
    with pytest.raises(ClusterError, match=expected):
        raise error


@pytest.mark.parametrize(("group", "command"), [
    ("ray.io", "helm upgrade --install kuberay-operator"), ("kubealign.dev", "helm upgrade kubealign charts/kubealign"),
])
def test_an_old_definition_is_upgraded_by_its_own_chart(group: str, command: str) -> None:
    body = '{"kind": "Status", "message": ".spec.new: field not declared in schema"}'
    error = refusal(500, body, verb="PATCH", path=f"/apis/{group}/v1/namespaces/align/x/y")
    assert command in (error.hint or "")
    other = refusal(500, body, verb="PATCH", path="/apis/apps/v1/namespaces/align/deployments/y")
    assert other.expected == "a newer version of apps"
    assert other.hint is None


# --- waiting ---

MESSAGE = "Job entrypoint command failed with exit code 2, last available logs (truncated to 20,000 chars):\nno rows"


@pytest.mark.parametrize(("status", "how"), [
    ({}, None),
    ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, None),
    # Ray has failed, KubeRay has not yet looked at the submitter.
    ({"jobDeploymentStatus": "Running", "jobStatus": "FAILED", "message": MESSAGE}, None),
    ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, "succeeded"),
    ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, "failed"),
    ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": MESSAGE}, "user"),
    ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED",
      "message": MESSAGE.replace("code 2", "code 3")}, "failed"),
    ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED",
      "message": MESSAGE.replace("code 2", "code 21")}, "failed"),
    ({"jobDeploymentStatus": "Failed", "reason": "PreRunningDeadlineExceeded", "message": "passed"}, "failed"),
    ({"jobDeploymentStatus": "Failed", "reason": "ValidationFailed", "message": "spec is wrong"}, "user"),
    # KubeRay 1.5 and later.
    ({"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": "spec is wrong"}, "user"),
])
def test_how_a_rayjob_ended(status: Json, how: str | None) -> None:
    end = ended(rayjob(**status))
    assert (end.how if end else None) == how


def test_exit_codes_and_words() -> None:
    assert exit_code(MESSAGE) == 2
    assert exit_code("the head pod was lost") is None
    assert in_words(rayjob()) == "accepted"
    assert in_words(rayjob(jobDeploymentStatus="Running", jobStatus="RUNNING")) == "running"
    queued = {**rayjob(jobDeploymentStatus="Suspended"), "spec": {"suspend": True}}
    queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "q"
    assert "queue" in in_words(queued)


def test_a_wait_says_each_change_once_and_outlives_an_outage(client: Client, api: Api, said: list[str]) -> None:
    api.put(rayjob(jobDeploymentStatus="Initializing"))
    changes: list[str] = []
    steps = [(0.3, {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}),
             (3.5, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"})]
    for seconds, status in steps:
        later(seconds, lambda status=status: api.status("RayJob", "r-sft-11112222-1", **status))  # type: ignore[misc]
    later(0.8, lambda: setattr(api, "down", True))
    later(3.0, lambda: setattr(api, "down", False))
    end = wait_ray_job(client, "r-sft-11112222-1", start_within=60, on_change=lambda words, _: changes.append(words))
    assert end == Ended("succeeded")
    assert changes == ["starting its Ray cluster", "running", "ended"]
    assert any("away" in sentence for sentence in said)


def test_a_wait_names_the_pods_reason(client: Client, api: Api) -> None:
    job = rayjob(jobDeploymentStatus="Initializing", rayClusterName="r-sft-11112222-1-abcde")
    api.put(job)
    api.put(pod("head", job["metadata"]["labels"], phase="Pending", containerStatuses=[
        {"name": "ray-head", "image": "docker.io/x:1", "state": {"waiting": {"reason": "ErrImageNeverPull"}}}]))
    later(1.0, lambda: api.status("RayJob", "r-sft-11112222-1", jobDeploymentStatus="Failed",
                                  reason="PreRunningDeadlineExceeded", message="passed the deadline"))
    changes: list[str] = []
    end = wait_ray_job(client, "r-sft-11112222-1", start_within=60, on_change=lambda words, _: changes.append(words))
    assert "image docker.io/x:1 cannot be had (ErrImageNeverPull)" in changes[0]
    assert end.how == "failed"
    assert "docker.io/x:1" in end.message
    assert "deadline" in end.message


def test_a_wait_finds_refused_pods_in_events(client: Client, api: Api) -> None:
    api.put(rayjob(jobDeploymentStatus="Initializing", rayClusterName="c"))
    api.put({"kind": "Event", "type": "Warning", "reason": "FailedToCreateHeadPod",
             "message": 'Failed to create head Pod align/, pods "h" is forbidden: violates PodSecurity '
                        '"restricted:latest": allowPrivilegeEscalation != false',
             "metadata": {"name": "e", "namespace": "align"}, "involvedObject": {"kind": "RayCluster", "name": "c"}})
    changes: list[str] = []
    later(0.5, lambda: api.objects.pop(("RayJob", "align", "r-sft-11112222-1")) and None)
    end = wait_ray_job(client, "r-sft-11112222-1", start_within=60, on_change=lambda words, _: changes.append(words))
    assert "Pod Security refuses its pods" in changes[0]
    assert end.how == "gone"


def test_a_wait_that_never_starts_ends(client: Client, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignment.cluster.watch.wait.GRACE", 0.0)
    monkeypatch.setattr("alignment.cluster.watch.wait.RESYNC", 1.0)
    monkeypatch.setattr("alignment.cluster.watch.wait.UNTOUCHED", 0.5)
    api.put({**rayjob(), "status": {}})
    changes: list[str] = []
    end = wait_ray_job(client, "r-sft-11112222-1", start_within=2, on_change=lambda words, _: changes.append(words))
    assert end.how == "failed"
    assert "did not start within 2 s" in end.message
    assert "is KubeRay running?" in changes[-1]


def test_a_small_job_that_cannot_start_is_not_waited_for_to_its_limit(client: Client, api: Api) -> None:
    api.put({"kind": "Job", "metadata": {"name": "look", "namespace": "align"}, "spec": {}})
    api.put({"kind": "Event", "type": "Warning", "reason": "FailedCreate",
             "message": 'Error creating: pods "look-1" is forbidden: violates PodSecurity "restricted:latest": x',
             "metadata": {"name": "e", "namespace": "align"}, "involvedObject": {"kind": "Job", "name": "look"}})
    with pytest.raises(ClusterError, match="does not start") as stuck:
        wait_job(client, "look", limit=60)
    assert "Pod Security" in stuck.value.problem


# --- logs ---

def test_a_log_that_breaks_off_is_taken_up_without_a_line_twice(client: Client, api: Api) -> None:
    lines = [f"2026-01-01T00:00:{second:02}.{nano:09}Z line {second * 2 + half}"
             for second in range(5) for half, nano in ((0, 1), (1, 500))]
    api.put(pod("submitter", {"batch.kubernetes.io/job-name": "j"}, phase="Running"))
    api.logs["submitter"] = lines[:4]
    api.cut_logs_after = 3
    shown: list[str] = []
    follower = Follower(client, "j", shown.append)
    time.sleep(0.6)
    assert shown == ["line 0", "line 1", "line 2"]
    api.cut_logs_after = None
    api.logs["submitter"] = lines
    tail = follower.end()
    assert shown == [f"line {number}" for number in range(10)]
    assert tail == shown


def test_a_follower_whose_pod_never_came_ends(client: Client) -> None:
    assert Follower(client, "none", print).end() == []
