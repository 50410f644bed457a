"""What of a pod's object is a loss, and what is its good end."""

from __future__ import annotations

from typing import Any

import pytest

from alignment.cluster.status.losses import Loss, loss_of

AT, END = "2026-01-01T00:01:00Z", "2026-01-01T00:02:00Z"


def pod(status: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "labels": {"ray.io/cluster": "chain-sft-12345678-1-abcde"},
                     "creationTimestamp": "2026-01-01T00:00:00Z", **metadata},
        "spec": {"nodeName": "n1", "containers": [
            {"name": "ray-worker", "resources": {"limits": {"memory": "2Gi"}}}]},
        "status": {"phase": "Running", **(status or {})},
    }


def container(**state: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "ray-worker", "restartCount": 0, **state}]}


def disrupted(reason: str, message: str = "") -> dict[str, Any]:
    return {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message,
                            "lastTransitionTime": AT}]}


KILLED = {"terminated": {"reason": "OOMKilled", "exitCode": 137, "finishedAt": AT}}


@pytest.mark.parametrize(("found", "reason"), [
    (pod(container(state=KILLED)), "OOMKilled, memory limit 2Gi"),
    (pod(container(state={"running": {}}, lastState=KILLED)), "OOMKilled, memory limit 2Gi"),
    (pod({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."}),
     "Evicted: The node was low on resource: ephemeral-storage."),
    (pod(disrupted("PreemptionByScheduler", "default-scheduler: preempting to accommodate a higher priority pod")),
     "preempted by a pod of higher priority (PreemptionByScheduler): default-scheduler: preempting to accommodate a "
     "higher priority pod"),
    (pod(disrupted("DeletionByTaintManager"), deletionTimestamp=END, deletionGracePeriodSeconds=30),
     "its node is gone or was tainted (DeletionByTaintManager)"),
    (pod(disrupted("DeletionByPodGC")), "its node is gone (DeletionByPodGC)"),
    (pod(disrupted("EvictionByEvictionAPI")), "evicted, as by a drain of its node (EvictionByEvictionAPI)"),
    (pod(disrupted("SomethingNew")), "disrupted (SomethingNew)"),
    (pod(container(state={"terminated": {"reason": "Error", "exitCode": 139, "finishedAt": AT}})),
     "its container ended with code 139"),
    (pod(deletionTimestamp=END, deletionGracePeriodSeconds=30), "deleted"),
])
def test_a_loss_names_pod_node_and_reason(found: dict[str, Any], reason: str) -> None:
    loss = loss_of(found)
    assert loss is not None
    assert (loss.pod, loss.node, loss.reason) == ("p", "n1", reason)
    assert loss.asked == (reason == "deleted")


@pytest.mark.parametrize("found", [
    pod(), pod({"phase": "Pending"}), pod({"phase": "Succeeded"}),
    pod(container(state={"running": {}}, lastState={})),
    pod(container(state={"terminated": {"reason": "Completed", "exitCode": 0, "finishedAt": AT}})),
    pod({"conditions": [{"type": "DisruptionTarget", "status": "False", "reason": "x"}]}),
])
def test_a_pod_that_is_well_or_ends_well_is_no_loss(found: dict[str, Any]) -> None:
    assert loss_of(found) is None


def test_the_end_of_a_cluster_is_a_deletion_whatever_its_containers_say() -> None:
    """KubeRay removes the pods of a stage that ended; they may show Error while they go."""
    loss = loss_of(pod(container(state={"terminated": {"reason": "Error", "exitCode": 1, "finishedAt": END}}),
                       deletionTimestamp=END, deletionGracePeriodSeconds=60))
    assert loss == Loss("p", "chain-sft-12345678-1-abcde", "n1", "deleted", AT, None, asked=True)


def test_one_loss_seen_twice_is_one() -> None:
    first = loss_of(pod(container(state=KILLED)))
    again = loss_of(pod(container(state={"running": {}}, lastState=KILLED)))
    assert first is not None
    assert again is not None
    assert first.key == again.key
