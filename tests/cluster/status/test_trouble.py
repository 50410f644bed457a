"""Pods in trouble, as the API server describes them, in words that say what to do."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from alignment.cluster.status.trouble import (
    halved_trouble,
    in_short,
    pod_trouble,
    refused_trouble,
    unreached_trouble,
)

Json = dict[str, Any]


def pod(phase: str = "Pending", spec: Json | None = None, **status: Any) -> Json:
    container = {"name": "ray-worker", "resources": {"requests": {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": "1"},
                                                    "limits": {"memory": "8Gi"}}}
    return {"metadata": {"name": "w-1", "namespace": "align"}, "spec": spec or {"containers": [container]},
            "status": {"phase": phase, **status}}


def waiting(reason: str, message: str = "", name: str = "ray-worker", **more: Any) -> Json:
    return {"name": name, "image": "docker.io/local/kubealign-train:0.1.0",
            "state": {"waiting": {"reason": reason, "message": message}}, **more}


def unschedulable(message: str, reason: str = "Unschedulable") -> Json:
    return pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": reason, "message": message}])


@pytest.mark.parametrize(("made", "says", "does"), [
    (pod(containerStatuses=[waiting("ErrImageNeverPull", "Container image is not present")]),
     "kubealign-train:0.1.0 cannot be had (ErrImageNeverPull)", "load it into every node"),
    (pod(containerStatuses=[waiting("ImagePullBackOff", 'Back-off pulling image: 401 Unauthorized')]),
     "401 Unauthorized", "pull_secrets"),
    (pod(initContainerStatuses=[waiting("ErrImagePull", name="wait-gcs-ready")]), "cannot be had", "registry"),
    (pod(containerStatuses=[waiting("CreateContainerConfigError", 'secret "kubealign-s3" not found')]),
     "Secret kubealign-s3 does not exist", "kubectl create secret generic kubealign-s3 -n align"),
    (pod(containerStatuses=[waiting("CreateContainerConfigError", "runAsNonRoot and image will run as root")]),
     "will run as root", ""),
    (pod("Running", containerStatuses=[{"name": "ray-worker", "state": {"terminated": {
        "reason": "OOMKilled", "exitCode": 137}}}]), "killed for memory (OOMKilled), limit 8Gi", "micro_batch_size"),
    (pod("Running", containerStatuses=[waiting("CrashLoopBackOff", lastState={"terminated": {
        "reason": "OOMKilled", "exitCode": 137}})]), "OOMKilled", "memory"),
    (pod("Running", containerStatuses=[waiting("CrashLoopBackOff", lastState={"terminated": {
        "reason": "Error", "exitCode": 1}})]), "ends with code 1 again and again", "kubectl logs w-1"),
    (pod("Failed", reason="Evicted", message="The node was low on resource: ephemeral-storage."), "ephemeral-storage",
     "scratch"),
    (unschedulable("0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: 0/2 nodes are available: 2 No "
                   "preemption victims found for incoming pod."),
     "no node has enough free nvidia.com/gpu (the pod asks for 1): 0/2 nodes are available: 2 Insufficient",
     "such a node"),
    (unschedulable("0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes "
                   "are available: 1 Preemption is not helpful for scheduling."), "1 Insufficient cpu", "such a node"),
    (unschedulable("0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory."),
     "cpu (the pod asks for 2) and memory (the pod asks for 8Gi)", "ask for less"),
    (unschedulable("0/1 nodes are available: 1 node(s) had untolerated taint {gpu: yes}."), "untolerated taint",
     "tolerations"),
    (unschedulable("0/1 nodes are available: 1 node(s) were unschedulable. preemption: 0/1 nodes are available: 1 "
                   "Preemption is not helpful for scheduling."), "were unschedulable", "kubectl uncordon NODE"),
    (unschedulable("0/2 nodes are available: 1 node(s) were unschedulable, 1 node(s) had untolerated taint(s)."),
     "were unschedulable", "cordoned"),
    (unschedulable("0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }."),
     "not-ready", "a node is not ready: kubectl get nodes"),
    (unschedulable("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."), "selector",
     "node_selector"),
    (unschedulable('0/1 nodes are available: persistentvolumeclaim "kubealign-artifacts" not found.'),
     "PersistentVolumeClaim kubealign-artifacts does not exist", "create"),
    (unschedulable("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."), "not bound",
     "storage class"),
    (unschedulable("Scheduling is blocked", "SchedulingGated"), "scheduling gate", "queue"),
])
def test_a_pods_own_reason(made: Json, says: str, does: str) -> None:
    trouble = pod_trouble(made)
    assert trouble is not None
    assert says in trouble.what
    assert does in trouble.do
    assert "preemption" not in trouble.what


@pytest.mark.parametrize("made", [
    pod("Running", containerStatuses=[{"name": "ray-worker", "state": {"running": {}}}]),
    pod(containerStatuses=[waiting("ContainerCreating")]),
    pod(containerStatuses=[waiting("PodInitializing")]),
    pod("Succeeded", containerStatuses=[{"name": "ray-worker", "state": {"terminated": {"exitCode": 0}}}]),
    pod(),
    # Seen after a job that succeeded: the head is stopped, and its container ends with an error.
    pod("Failed", containerStatuses=[{"name": "h", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]),
])
def test_no_trouble(made: Json) -> None:
    assert pod_trouble(made, [{"type": "Normal", "reason": "Pulled", "message": "Container image is present"}]) is None


@pytest.mark.parametrize("message", [
    "0/1 nodes are available: 1 node(s) were unschedulable.",
    "0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }."])
def test_a_node_that_is_closed_is_not_explained_by_the_profile(message: str) -> None:
    assert "profile" not in str(pod_trouble(unschedulable(message)))


def test_pods_that_hold_places_while_others_find_none() -> None:
    short = unschedulable("0/1 nodes are available: 1 Insufficient cpu.")
    placed = {**pod("Running"), "spec": {"nodeName": "n1"}}
    trouble = halved_trouble([placed, short, short])
    assert trouble is not None
    assert trouble.what == "of its 3 pods 1 found a place and 2 none"
    assert "queue" in trouble.do
    for pods in ([placed, placed], [short, short], [], [placed, unschedulable("1 node(s) were unschedulable.")]):
        assert halved_trouble(pods) is None


@pytest.mark.parametrize(("ready", "status", "found"), [
    (100, {"jobDeploymentStatus": "Running"}, True),
    (10, {"jobDeploymentStatus": "Running"}, False),
    (None, {"jobDeploymentStatus": "Running"}, False),
    (100, {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, False),
    (100, {"jobDeploymentStatus": "Initializing"}, False),
])
def test_a_job_that_is_not_handed_to_a_head_that_is_long_ready(
    ready: float | None, status: dict[str, str], found: bool
) -> None:
    since = "2026-01-01T00:00:00Z"
    head = pod("Running", conditions=[{"type": "Ready", "status": "True" if ready else "False",
                                       "lastTransitionTime": since}])
    head["metadata"]["labels"] = {"ray.io/node-type": "head"}
    now = datetime.fromisoformat(since).timestamp() + (ready or 1000)
    trouble = unreached_trouble({"status": status}, [head], now)
    assert (trouble is not None and "8265" in trouble.what) == found


def test_a_volume_that_cannot_be_mounted_stands_in_events_only() -> None:
    event = {"type": "Warning", "reason": "FailedMount",
             "message": 'MountVolume.SetUp failed for volume "run" : configmap "r-1" not found'}
    trouble = pod_trouble(pod(containerStatuses=[waiting("ContainerCreating")]), [event])
    assert trouble is not None
    assert 'configmap "r-1" not found' in trouble.what
    assert "create configmap r-1" in trouble.do


def test_the_schedulers_event_says_the_same_as_the_condition_after_it() -> None:
    message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. no new claims to deallocate, preemption: 0/1"
    event = {"type": "Warning", "reason": "FailedScheduling", "message": message}
    assert pod_trouble(pod(), [event]) == pod_trouble(unschedulable(message))


def refused(reason: str, message: str, kind: str = "RayCluster") -> Json:
    return {"type": "Warning", "reason": reason, "message": message, "involvedObject": {"kind": kind, "name": "c"}}


@pytest.mark.parametrize(("event", "says", "lasting"), [
    (refused("FailedToCreateHeadPod", 'Failed to create head Pod a/, pods "h" is forbidden: violates PodSecurity '
             '"restricted:latest": seccompProfile'), 'Pod Security refuses its pods: "restricted:latest"', True),
    (refused("FailedToCreateWorkerPod", 'Failed to create worker Pod, pods "w" is forbidden: exceeded quota: q, '
             "requested: limits.memory=8Gi, used: limits.memory=2Gi, limited: limits.memory=8Gi"),
     "quota refuses its pods: q, requested: limits.memory=8Gi", False),
    (refused("FailedCreate", 'Error creating: pods "x" is forbidden: error looking up service account a/b: '
             'serviceaccount "b" not found', "Job"), 'serviceaccount "b" not found', True),
    (refused("FailedCreate", 'admission webhook "x" denied the request: no', "Job"), "denied the request", True),
])
def test_pods_that_admission_refused(event: Json, says: str, lasting: bool) -> None:
    trouble = refused_trouble([{"type": "Normal", "reason": "CreatedHeadPod"}, event])
    assert trouble is not None
    assert says in trouble.what
    assert trouble.lasting is lasting


def test_other_events_are_no_refusal() -> None:
    assert refused_trouble([{"type": "Warning", "reason": "FailedToDeletePodCollection", "message": "x"},
                            {"type": "Normal", "reason": "FailedCreate", "message": "x"}]) is None


def test_the_same_trouble_of_many_pods_is_one_line() -> None:
    troubles = [pod_trouble(unschedulable("0/1 nodes are available: 1 Insufficient cpu."))] * 3
    assert list(in_short(troubles)) == [f"{troubles[0]} (3 times)"]  # type: ignore[arg-type]
