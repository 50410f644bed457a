"""Waits that outlive an outage and say why nothing starts; logs that break off."""

from __future__ import annotations

import time

import pytest

from alignment.cluster.client.client import Client
from alignment.cluster.client.refusals import ClusterError
from alignment.cluster.status.reading import Ended
from alignment.cluster.watch.logs import Follower
from alignment.cluster.watch.wait import wait_job, wait_ray_job
from tests.cluster.api_server import Api
from tests.cluster.objects import later, pod, rayjob


def test_a_wait_says_each_change_once_and_outlives_an_outage(client: Client, api: Api, said: list[str]) -> None:
    api.put(rayjob(jobDeploymentStatus="Initializing"))
    changes: list[str] = []
    steps = [(0.3, {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}),
             (3.5, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"})]
    for seconds, status in steps:
        later(seconds, lambda status=status: api.status("RayJob", "r-sft-11112222-1", **status))  # type: ignore[misc]
    later(0.8, lambda: setattr(api, "down", True))
    later(3.0, lambda: setattr(api, "down", False))
    end = wait_ray_job(client, "r-sft-11112222-1", on_change=lambda words, _: changes.append(words))
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
    end = wait_ray_job(client, "r-sft-11112222-1", on_change=lambda words, _: changes.append(words))
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
    end = wait_ray_job(client, "r-sft-11112222-1", on_change=lambda words, _: changes.append(words))
    assert "Pod Security refuses its pods" in changes[0]
    assert end.how == "gone"


def test_a_wait_that_never_starts_ends(client: Client, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignment.cluster.watch.wait.GRACE", 0.0)
    monkeypatch.setattr("alignment.cluster.watch.wait.RESYNC", 1.0)
    monkeypatch.setattr("alignment.cluster.watch.wait.UNTOUCHED", 0.5)
    api.put({**rayjob(), "status": {}, "spec": {"preRunningDeadlineSeconds": 2}})
    changes: list[str] = []
    end = wait_ray_job(client, "r-sft-11112222-1", on_change=lambda words, _: changes.append(words))
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

def test_a_log_that_breaks_off_is_taken_up_without_a_line_twice_or_a_line_of_rays(client: Client, api: Api) -> None:
    lines = [f"2026-01-01T00:00:{second:02}.{nano:09}Z {'stage | ' if half else ''}line {second * 2 + half}"
             for second in range(5) for half, nano in ((0, 1), (1, 500))]
    api.put(rayjob("j", rayClusterName="j-abcde"))
    api.put(pod("head", {"ray.io/cluster": "j-abcde", "ray.io/node-type": "head"}, phase="Running"))
    api.put(pod("other", {"ray.io/cluster": "k-abcde", "ray.io/node-type": "head"}, phase="Running"))
    api.logs["head"] = lines[:4]
    api.cut_logs_after = 3
    shown: list[str] = []
    follower = Follower(client, "j", shown.append)
    time.sleep(0.6)
    assert shown == ["line 1"]
    api.cut_logs_after = None
    api.logs["head"] = lines
    follower.end()
    assert shown == [f"line {number}" for number in range(1, 10, 2)]


def test_a_follower_whose_pod_never_came_ends(client: Client) -> None:
    Follower(client, "none", print).end()
