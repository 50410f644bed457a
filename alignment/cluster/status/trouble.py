"""Why a pod is not running, in words: a pod's status and the events around it -> what is wrong and what to do.

Pure: reads plain dicts as the API gives them, asks no cluster. A healthy pod, or one that is merely starting, has no
trouble.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from alignment.cluster.status.reading import is_unreached

Object = dict[str, Any]


@dataclass(frozen=True)
class Trouble:
    """What keeps one object from running, and what to do about it. `lasting`: waiting alone will not mend it."""

    what: str
    do: str
    lasting: bool = True

    def __str__(self) -> str:
        return f"{self.what}; {self.do}" if self.do else self.what


_PULL = {"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError",
         "RegistryUnavailable"}
_MISSING = re.compile(r'(?P<kind>secret|configmap|persistentvolumeclaim) "(?P<name>[^"]+)" not found', re.IGNORECASE)
_SHORT_OF = re.compile(r"(\d+) (?:Insufficient|Too many) ([\w./-]+)")
_TAINT = re.compile(r"untolerated taint(?:\(s\))? \{?([^:}\s]+)")
_AFTERTHOUGHT = re.compile(r"[.,]? no new claims to deallocate|[.,]? preemption:")
"""From here the scheduler repeats its reasons for preemption."""
_HANDED_OVER = 60.0
"""Seconds; KubeRay's operator looks every three."""
_REFUSED = re.compile(r"^(FailedCreate|FailedToCreate)")


def pod_trouble(pod: Object, events: Iterable[Object] = ()) -> Trouble | None:
    """The first thing that keeps a pod from running or made it end badly, or None.

    Args:
        events: events about this pod, oldest first.
    """
    name, status = pod["metadata"]["name"], pod.get("status", {})
    if status.get("reason") in ("Evicted", "NodeLost", "Preempting", "UnexpectedAdmissionError"):
        return Trouble(f"pod {name} was removed from its node ({status['reason']}): {one_line(status.get('message'))}",
                       "ask for more scratch or memory in the profile" if status["reason"] == "Evicted" else "")
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        found = _container(name, pod, container)
        if found is not None:
            return found
    if status.get("phase", "Pending") != "Pending":
        return None
    for condition in status.get("conditions", []):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return _unscheduled(name, pod, condition)
    for event in reversed(list(events)):
        # The event comes before the condition.
        found = _unscheduled(name, pod, event) if event.get("reason") == "FailedScheduling" else _event(name, event)
        if found is not None:
            return found
    return None


def refused_trouble(events: Iterable[Object]) -> Trouble | None:
    """Pods that admission refused: they never exist, so only an event on what should have made them says so.

    Args:
        events: events about a RayJob, its RayCluster, or a Job, oldest first.
    """
    for event in reversed(list(events)):
        if event.get("type") != "Warning" or not _REFUSED.match(str(event.get("reason"))):
            continue
        message, about = str(event.get("message", "")), event.get("involvedObject", {})
        place = f"{about.get('kind', 'object')} {about.get('name', '')}"
        if "violates PodSecurity" in message:
            rule = message.split("violates PodSecurity", 1)[1].strip()
            return Trouble(f"{place}: the namespace's Pod Security refuses its pods: {one_line(rule)}",
                           "use images and manifests of this version, or another namespace")
        if "exceeded quota" in message:
            return Trouble(f"{place}: the namespace's quota refuses its pods: "
                           f"{one_line(message.split('exceeded quota', 1)[1].lstrip(': '))}",
                           "raise the ResourceQuota, or ask for less in the profile", lasting=False)
        if "serviceaccount" in message.lower() and "not found" in message:
            return Trouble(f"{place}: {one_line(message)}", "install the chart in this namespace")
        return Trouble(f"{place}: {one_line(message)}", "", lasting="forbidden" in message or "denied" in message)
    return None


def halved_trouble(pods: Iterable[Object]) -> Trouble | None:
    """Pods of one stage, of which some have their places and hold them while others find none."""
    there = list(pods)
    placed = sum(bool(pod.get("spec", {}).get("nodeName")) for pod in there)
    short = sum(_SHORT_OF.search(str(condition.get("message"))) is not None for pod in there
                for condition in pod.get("status", {}).get("conditions", [])
                if (condition.get("type"), condition.get("status")) == ("PodScheduled", "False"))
    if not placed or not short:
        return None
    return Trouble(f"of its {len(there)} pods {placed} found a place and {short} none",
                   "where another run holds its places likewise, the one whose start_within ends first gives them "
                   "back; with `queue` in the profile Kueue admits all pods of a stage at once", lasting=False)


def unreached_trouble(job: Object, pods: Iterable[Object], now: float) -> Trouble | None:
    """A RayJob whose head has long been ready, and to which KubeRay's operator has not handed its job.

    Args:
        pods: of its Ray cluster.
        now: seconds since the epoch.
    """
    if not is_unreached(job):
        return None
    ready = [condition["lastTransitionTime"] for pod in pods if (pod["metadata"].get("labels") or {}).get(
        "ray.io/node-type") == "head" for condition in pod.get("status", {}).get("conditions", [])
        if (condition.get("type"), condition.get("status")) == ("Ready", "True")]
    if not ready or now - datetime.fromisoformat(max(ready)).timestamp() < _HANDED_OVER:
        return None
    return Trouble("KubeRay's operator does not get through to port 8265 of its head",
                   "networkPolicy.kuberayNamespace of the chart must be the namespace of that operator, whose log "
                   "says more", lasting=False)


def requests_of(pod: Object) -> dict[str, str]:
    """What a pod's containers ask for, as text by resource; of several containers the largest text wins per name."""
    asked: dict[str, list[str]] = {}
    for container in pod.get("spec", {}).get("containers", []):
        for resource, amount in (container.get("resources", {}).get("requests") or {}).items():
            asked.setdefault(resource, []).append(str(amount))
    return {resource: " + ".join(amounts) for resource, amounts in asked.items()}


def _container(pod: str, whole: Object, container: Object) -> Trouble | None:
    waiting = container.get("state", {}).get("waiting") or {}
    reason, message, name = waiting.get("reason", ""), one_line(waiting.get("message")), container.get("name")
    if reason in _PULL:
        image = container.get("image", "")
        never = "load it into every node, or set images.pull_policy" if reason == "ErrImageNeverPull" else \
            "look at the name, the tag, images.pull_secrets and the registry's reachability from the nodes"
        return Trouble(f"pod {pod}: image {image} cannot be had ({reason}){': ' + message if message else ''}", never,
                       lasting=False)  # an image that comes late is pulled at the next try
    if reason in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
        missing = _MISSING.search(message)
        if missing:
            kind = {"secret": "Secret", "configmap": "ConfigMap"}.get(missing["kind"].lower(), missing["kind"])
            return Trouble(f"pod {pod}: {kind} {missing['name']} does not exist in the namespace",
                           _create(kind, missing["name"], whole), lasting=False)
        return Trouble(f"pod {pod}: container {name} cannot be made ({reason}): {message}", "")
    ended = container.get("state", {}).get("terminated") or (
        container.get("lastState", {}).get("terminated") if reason == "CrashLoopBackOff" else None)
    if ended and ended.get("reason") == "OOMKilled":
        limit = _limit(whole, str(name), "memory")
        return Trouble(f"pod {pod}: container {name} was killed for memory (OOMKilled), limit {limit or 'none'}",
                       "raise the pod's memory in the profile, or lower micro_batch_size")
    if ended and ended.get("reason") in ("ContainerCannotRun", "StartError", "DeadlineExceeded"):
        return Trouble(f"pod {pod}: container {name}: {ended['reason']}: {one_line(ended.get('message'))}", "")
    if ended and ended.get("exitCode", 0) != 0 and (reason == "CrashLoopBackOff" or _is_init(whole, str(name))):
        return Trouble(f"pod {pod}: container {name} ends with code {ended['exitCode']} again and again",
                       f"kubectl logs {pod} -c {name} --previous", lasting=False)
    return None


def _unscheduled(name: str, pod: Object, condition: Object) -> Trouble:
    """From the pod's PodScheduled condition, or from the scheduler's event with the same words."""
    message = str(condition.get("message", ""))
    if condition.get("reason") == "SchedulingGated":
        return Trouble(f"pod {name} is held back by a scheduling gate", "it waits for its queue", lasting=False)
    reasons = _AFTERTHOUGHT.split(message)[0].rstrip("., ")
    short = [resource for _, resource in _SHORT_OF.findall(reasons)]
    asked = requests_of(pod)
    wants = ", ".join(f"{resource} {amount}" for resource, amount in asked.items())
    missing = _MISSING.search(reasons)
    if missing:
        kind = "PersistentVolumeClaim" if "claim" in missing["kind"].lower() else missing["kind"]
        return Trouble(f"pod {name}: {kind} {missing['name']} does not exist in the namespace",
                       _create(kind, missing["name"], pod), lasting=False)
    if "unbound immediate PersistentVolumeClaims" in reasons:
        return Trouble(f"pod {name} waits for its PersistentVolumeClaim, which is not bound",
                       "kubectl describe pvc: a storage class may be missing", lasting=False)
    if short:
        lacks = " and ".join(f"{name} (the pod asks for {asked.get(name, '?')})" for name in dict.fromkeys(short))
        return Trouble(f"pod {pod['metadata']['name']}: no node has enough free {lacks}: {reasons}",
                       "wait, add such a node, or ask for less in the profile", lasting=False)
    return Trouble(f"pod {name} fits no node: {reasons or 'no reason given'}; it asks for {wants or 'nothing'}",
                   "; ".join(_mended(reasons)) or "kubectl describe nodes", lasting=False)


def _mended(reasons: str) -> Iterator[str]:
    """What helps against each of the scheduler's reasons."""
    if "were unschedulable" in reasons or "node.kubernetes.io/unschedulable" in reasons:
        yield "a node is closed to new pods (cordoned): kubectl get nodes, then kubectl uncordon NODE"
    if "node.kubernetes.io/not-ready" in reasons or "node.kubernetes.io/unreachable" in reasons:
        yield "a node is not ready: kubectl get nodes"
    if "affinity/selector" in reasons:
        yield "look at node_selector in the profile"
    if any(not taint.startswith("node.kubernetes.io/") for taint in _TAINT.findall(reasons)):
        yield "look at tolerations in the profile"
    if "volume node affinity" in reasons:
        yield "its volume can be mounted on another node only: use ReadWriteMany or s3"


def _event(pod: str, event: Object) -> Trouble | None:
    reason, message = event.get("reason", ""), one_line(event.get("message"))
    if event.get("type") != "Warning":
        return None
    if reason in ("FailedMount", "FailedAttachVolume"):
        missing = _MISSING.search(message)
        todo = f"create {missing['kind']} {missing['name']}" if missing else f"kubectl describe pod {pod}"
        return Trouble(f"pod {pod}: a volume cannot be mounted: {message}", todo, lasting=False)
    if reason in ("FailedCreatePodSandBox", "NetworkNotReady"):
        return Trouble(f"pod {pod}: {reason}: {message}", "", lasting=False)
    return None


def _create(kind: str, name: str, pod: Object) -> str:
    space = pod["metadata"].get("namespace", "NAMESPACE")
    if kind.lower() == "secret":
        return f"kubectl create secret generic {name} -n {space} --from-literal=KEY=VALUE"
    return f"create {kind} {name} in namespace {space}, or name another in the profile"


def _limit(pod: Object, container: str, resource: str) -> str | None:
    for item in pod.get("spec", {}).get("containers", []):
        if item.get("name") == container:
            return (item.get("resources", {}).get("limits") or {}).get(resource)
    return None


def _is_init(pod: Object, container: str) -> bool:
    return any(item.get("name") == container for item in pod.get("spec", {}).get("initContainers", []))


def one_line(text: object, limit: int = 400) -> str:
    """A message as one line of bounded length."""
    line = " ".join(str(text or "").split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def in_short(troubles: Iterable[Trouble]) -> Iterator[str]:
    """One line per distinct trouble, those of many pods counted."""
    counted = Counter(str(trouble) for trouble in troubles)
    for text, times in counted.items():
        yield text if times == 1 else f"{text} ({times} times)"
