"""Waiting for RayJobs and Jobs, and saying why they do not start.

A wait is a loop of looking and of sleeping in a watch until something changes, so a lost watch costs seconds and
nothing else; an API server that is away is the client's matter. Decides nothing about another attempt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from alignment.cluster.client.client import Client, Object, Objects
from alignment.cluster.client.refusals import cluster_error
from alignment.cluster.manifests.labels import labels_of
from alignment.cluster.status.reading import Ended, ended, in_words, state_of
from alignment.cluster.status.trouble import (
    Trouble,
    halved_trouble,
    in_short,
    pod_trouble,
    refused_trouble,
    unreached_trouble,
)

RESYNC = 10.0
"""Seconds between looks where nothing changes."""
UNTOUCHED = 45.0
"""Seconds after which a RayJob without any status means that no KubeRay is at work."""
GRACE = 120.0
"""Seconds beyond its deadline that KubeRay has to fail the RayJob itself."""


def troubles(client: Client, labels: Mapping[str, str], about: Iterable[tuple[str, str]] = ()) -> list[Trouble]:
    """What keeps the pods with these labels from running, and what admission refused.

    Args:
        about: (kind, name) of the objects that make the pods, where only an event tells of a refusal.
    """
    return _of_pods(client, client.list("Pod", labels), about)


def _of_pods(client: Client, pods: Objects, about: Iterable[tuple[str, str]]) -> list[Trouble]:
    found = []
    for pod in pods:
        trouble = pod_trouble(pod)
        if trouble is None and pod.get("status", {}).get("phase") == "Pending":
            trouble = pod_trouble(pod, client.events("Pod", pod["metadata"]["name"]))
        if trouble is not None:
            found.append(trouble)
    made = max((str(pod["metadata"].get("creationTimestamp", "")) for pod in pods), default="")
    for kind, name in about:
        # What was refused before the newest pod came was mended since.
        later = [event for event in client.events(kind, name) if str(event.get("lastTimestamp") or "9") > made]
        trouble = refused_trouble(later)
        if trouble is not None:
            found.append(trouble)
    return found


def ray_job_troubles(client: Client, job: Object) -> list[Trouble]:
    """All that can be said on why a RayJob does not get on."""
    name, status = job["metadata"]["name"], job.get("status", {})
    about = [("RayJob", name)]
    if status.get("rayClusterName"):
        about.append(("RayCluster", status["rayClusterName"]))
    pods = client.list("Pod", labels_of(job))
    more = (halved_trouble(pods), unreached_trouble(job, pods, time.time()))
    return [*_of_pods(client, pods, about), *(trouble for trouble in more if trouble is not None)]


def wait_ray_job(client: Client, name: str, *, on_change: Callable[[str, Object], None]) -> Ended:
    """Wait until a RayJob has ended, or has not started in its preRunningDeadlineSeconds, without time in a queue.

    Args:
        on_change: gets a sentence, and the RayJob, each time that there is something new to say.
    """
    said, began = "", time.monotonic()
    while True:
        job = client.find("RayJob", name)
        if job is None:
            return Ended("gone", "it was deleted")
        end, waiting = ended(job), state_of(job) == "pending"
        if state_of(job) == "queued":
            began = time.monotonic()
        spent, words = time.monotonic() - began, in_words(job)
        if waiting or (end is not None and end.how == "failed"):
            found = list(in_short(ray_job_troubles(client, job)))
            if found:
                words += ": " + "; ".join(found)
                end = end and Ended(end.how, "; ".join([*found, end.message]))
            elif waiting and not job.get("status") and spent > UNTOUCHED:
                words += ": no operator takes it up; is KubeRay running? kubealign preflight looks"
        if words != said:
            said = words
            on_change(words, job)
        if end is not None:
            return end
        limit = job["spec"].get("preRunningDeadlineSeconds")
        if waiting and limit and spent > limit + GRACE:
            return Ended("failed", f"it did not start within {limit} s: {words}")
        client.changed("RayJob", name, job["metadata"]["resourceVersion"], RESYNC)


def wait_job(
    client: Client, name: str, *, limit: float, on_change: Callable[[str], None] = lambda text: None,
    patience: float = 30.0, started: bool = False,
) -> bool:
    """Wait until a batch Job has ended; returns whether it succeeded.

    Args:
        limit: seconds in all.
        started: return as soon as its pod runs.
        patience: seconds that trouble which waiting might mend may last; trouble of another kind ends the wait at once.

    Raises:
        ClusterError: its pod does not start, or it takes too long.
    """
    began, troubled, said = time.monotonic(), 0.0, ""
    while True:
        job = client.get("Job", name)
        conditions = {item["type"] for item in job.get("status", {}).get("conditions", []) if item["status"] == "True"}
        if conditions & {"Complete", "Failed"}:
            return "Complete" in conditions
        if started and job.get("status", {}).get("ready"):
            return True
        found = troubles(client, {"batch.kubernetes.io/job-name": name}, [("Job", name)])
        words = "; ".join(in_short(found))
        if words and words != said:
            said = words
            on_change(words)
        troubled = (troubled or time.monotonic()) if found else 0.0
        lasting = any(trouble.lasting for trouble in found)
        if lasting or (found and time.monotonic() - troubled > patience):
            raise cluster_error(f"a pod does not start: {words}", where=f"Job {name}")
        if time.monotonic() - began > limit:
            raise cluster_error("a pod takes too long", where=f"Job {name}", found=words or _state(client, name),
                                expected=f"an end within {limit:.0f} s")
        client.changed("Job", name, job["metadata"]["resourceVersion"], 2.0)


def job_pod(client: Client, name: str) -> str | None:
    """The newest pod of a batch Job; None where there is none yet."""
    pods: Objects = client.list("Pod", {"batch.kubernetes.io/job-name": name})
    pods.sort(key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
    return str(pods[-1]["metadata"]["name"]) if pods else None


def head_pod(client: Client, name: str) -> str | None:
    """The head pod of a RayJob's Ray cluster, in which the stage runs; None where it is not there, or no more."""
    cluster = (client.find("RayJob", name) or {}).get("status", {}).get("rayClusterName")
    pods = client.list("Pod", {"ray.io/cluster": cluster, "ray.io/node-type": "head"}) if cluster else []
    return str(pods[0]["metadata"]["name"]) if pods else None


def _state(client: Client, job: str) -> Any:
    name = job_pod(client, job)
    pod = client.find("Pod", name) if name else None
    return f"pod {name}: {pod['status'].get('phase')}" if pod else "no pod"
