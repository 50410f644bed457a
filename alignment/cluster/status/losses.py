"""Pods that a stage lost while it was made: which, on which node, and why. Pure: plain dicts in, facts out.

A stage goes on after a loss, or starts again, and KubeRay removes what is left of the pod: so this is read as it
happens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from alignment.cluster.status.trouble import one_line

_DISRUPTED = {
    "PreemptionByScheduler": "preempted by a pod of higher priority",
    "DeletionByTaintManager": "its node is gone or was tainted",
    "DeletionByPodGC": "its node is gone",
    "EvictionByEvictionAPI": "evicted, as by a drain of its node",
    "TerminationByKubelet": "ended by its node",
}
_REMOVED = ("Evicted", "NodeLost", "NodeShutdown", "Terminated", "Preempting", "Shutdown", "UnexpectedAdmissionError")


@dataclass(frozen=True)
class Loss:
    """One pod that was lost, or whose container ended by itself.

    Attributes:
        cluster: name of its RayCluster.
        at: when, as Kubernetes writes it; of a deletion, when it was asked for.
        container: that ended, while the pod stays; None: the whole pod.
        asked: somebody deleted it, and nothing says why: at a stage's end KubeRay does.
    """

    pod: str
    cluster: str
    node: str
    reason: str
    at: str
    container: str | None = None
    asked: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """The same loss, whenever it is seen, has the same."""
        return self.pod, self.at if self.container else ""


def loss_of(pod: Mapping[str, Any]) -> Loss | None:
    """What a Ray pod's object says of its loss, or None for one that is well or ends in good order."""
    metadata, status, spec = pod["metadata"], pod.get("status") or {}, pod.get("spec") or {}
    cluster = (metadata.get("labels") or {}).get("ray.io/cluster", "")
    node = spec.get("nodeName") or status.get("nominatedNodeName") or "none yet"
    deleted = metadata.get("deletionTimestamp")

    def lost(reason: str, at: str | None, *, container: str | None = None, asked: bool = False) -> Loss:
        return Loss(metadata["name"], cluster, node, reason, at or metadata["creationTimestamp"], container, asked)

    ended = [(item["name"], state) for item in status.get("containerStatuses") or ()
             if (state := _terminated(item)) and state.get("exitCode", 0) != 0]
    for name, state in ended:
        if state.get("reason") == "OOMKilled":
            return lost(f"OOMKilled, memory limit {_memory(spec, name)}", state.get("finishedAt"), container=name)
    conditions: list[Mapping[str, Any]] = status.get("conditions") or []
    told = [part for part in conditions if (part["type"], part["status"]) == ("DisruptionTarget", "True")]
    disrupted = told[0] if told else {}
    if status.get("reason") in _REMOVED:
        why = one_line(status.get("message"), 200)
        return lost(status["reason"] + (f": {why}" if why else ""), disrupted.get("lastTransitionTime", deleted))
    if disrupted:
        reason = str(disrupted.get("reason"))
        why = one_line(disrupted.get("message"), 200)
        return lost(f"{_DISRUPTED.get(reason, 'disrupted')} ({reason})" + (f": {why}" if why else ""),
                    disrupted.get("lastTransitionTime"))
    if deleted:
        began = _minus(deleted, metadata.get("deletionGracePeriodSeconds") or 0)
        return lost("deleted", began, asked=True)
    for name, state in ended:
        return lost(f"its container ended with code {state['exitCode']}", state.get("finishedAt"), container=name)
    return None


def in_words(pod: str, node: str, reason: str) -> str:
    return f"pod {pod} on node {node}: {reason}"


def _terminated(container: Mapping[str, Any]) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = (container.get("state") or {}).get("terminated") or (
        container.get("lastState") or {}).get("terminated")
    return found


def _memory(spec: Mapping[str, Any], container: str) -> str:
    for item in spec.get("containers") or ():
        if item.get("name") == container:
            return str((item.get("resources") or {}).get("limits", {}).get("memory", "none"))
    return "none"


def _minus(stamp: str, seconds: float) -> str:
    return (datetime.fromisoformat(stamp) - timedelta(seconds=seconds)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
