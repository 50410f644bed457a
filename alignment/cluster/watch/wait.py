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
from alignment.cluster.status.reading import Ended, ended, in_words, is_starting
from alignment.cluster.status.trouble import Trouble, in_short, pod_trouble, refused_trouble

RESYNC = 10.0
"""Seconds between looks where nothing changes."""
UNTOUCHED = 45.0
"""Seconds after which a RayJob without any status means that no KubeRay is at work."""
GRACE = 120.0
"""Seconds beyond the profile's start_within that KubeRay has to fail the RayJob itself."""


def troubles(client: Client, labels: Mapping[str, str], about: Iterable[tuple[str, str]] = ()) -> list[Trouble]:
    """What keeps the pods with these labels from running, and what admission refused.

    Args:
        about: (kind, name) of the objects that make the pods, where only an event tells of a refusal.
    """
    found = []
    pods = client.list("Pod", labels)
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
    about = [("RayJob", name), ("Job", name)]
    if status.get("rayClusterName"):
        about.append(("RayCluster", status["rayClusterName"]))
    return troubles(client, labels_of(job), about)


def wait_ray_job(
    client: Client, name: str, *, start_within: float, on_change: Callable[[str, Object], None]
) -> Ended:
    """Wait until a RayJob has ended.

    Args:
        start_within: seconds, as in its preRunningDeadlineSeconds; time that it is suspended does not count.
        on_change: gets a sentence, and the RayJob, each time that there is something new to say.
    """
    said, began, last = "", time.monotonic(), Ended("gone", "it was deleted")
    while True:
        job = client.find("RayJob", name)
        if job is None:
            return last
        end = ended(job)
        waiting, status = is_starting(job), job.get("status", {})
        if status.get("jobDeploymentStatus") in ("Suspended", "Suspending"):
            began = time.monotonic()
        spent = time.monotonic() - began
        words = in_words(job)
        if waiting or (end is not None and end.how == "failed"):
            found = list(in_short(ray_job_troubles(client, job)))
            if found:
                words += ": " + "; ".join(found)
                end = end and Ended(end.how, "; ".join([*found, end.message]))
            elif waiting and not status and spent > UNTOUCHED:
                words += ": no operator takes it up; is KubeRay running? kubealign preflight looks"
        if words != said:
            said = words
            on_change(words, job)
        if end is not None:
            return end
        if waiting and spent > start_within + GRACE:
            return Ended("failed", f"it did not start within {start_within:.0f} s: {words}")
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
    """The newest pod of a batch Job, the submitter of a RayJob for one; None where there is none yet."""
    pods: Objects = client.list("Pod", {"batch.kubernetes.io/job-name": name})
    pods.sort(key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
    return str(pods[-1]["metadata"]["name"]) if pods else None


def _state(client: Client, job: str) -> Any:
    name = job_pod(client, job)
    pod = client.find("Pod", name) if name else None
    return f"pod {name}: {pod['status'].get('phase')}" if pod else "no pod"
