"""What a run has on the cluster now, looked at once: RayJobs and an AlignmentRun. Which stages are finished is not said
here: the storage knows.
"""

from __future__ import annotations

from typing import Any

from alignment.cluster.client.client import Client, Object
from alignment.cluster.manifests.alignment_run import Status, serves, status_of
from alignment.cluster.manifests.labels import ATTEMPT_LABEL, STAGE_LABEL, labels
from alignment.cluster.status.reading import ended, gist, in_words
from alignment.cluster.status.trouble import in_short
from alignment.cluster.watch.wait import ray_job_troubles

_ENDS = {"succeeded": "ended", "elsewhere": "elsewhere"}


def live_states(client: Client, run: str) -> dict[str, dict[str, Any]]:
    """Stage -> what the cluster does about it ({state, note, rayjob}); under "" what an AlignmentRun says of itself,
    whether its run has `serve` (`serves`) and, as `serving`, how that stands."""
    found: dict[str, dict[str, Any]] = {}
    jobs = client.list("RayJob", labels(run)) if client.has("RayJob") else []
    jobs.sort(key=lambda job: int(job["metadata"]["labels"].get(ATTEMPT_LABEL, "0")))
    for job in jobs:
        end, name = ended(job), job["metadata"]["name"]
        note = f"RayJob {name}"
        if end is None:
            note = "; ".join([note, *in_short(ray_job_troubles(client, job))])
        elif end.message:
            note += f": {gist(end.message).splitlines()[0][:200]}"
        found[job["metadata"]["labels"].get(STAGE_LABEL, "")] = {
            "state": in_words(job) if end is None else _ENDS.get(end.how, "failed"),
            "note": note, "rayjob": name}
    body = client.find("AlignmentRun", run) if client.has("AlignmentRun") else None
    if body is not None:
        status = status_of(body)
        for row in status.stages:
            parts = (f"RayJob {row.ray_job}" if row.ray_job else "", row.message or "")
            note = "; ".join(part for part in parts if part)
            state = "not needed" if row.state == "NotNeeded" else row.state.lower()
            found[row.name] = {"state": state, "note": note, "rayjob": row.ray_job}
        why = [item.message for item in status.conditions
               if item.status == "True" and item.message and item.type != "Serving"]
        found[""] = {"state": status.phase, "note": f"AlignmentRun {run}: {status.phase}"
                     + (f"; {'; '.join(why)}" if why else ""),
                     "serves": serves(body), **_serving(status)}
    return found


def _serving(status: Status) -> dict[str, Any]:
    """What a run's status says of its serving, as JSON; nothing where it is not served."""
    if status.serving is None:
        return {}
    condition = next((item for item in status.conditions if item.type == "Serving"), None)
    return {"serving": {**status.serving.model_dump(mode="json", by_alias=True, exclude_none=True),
                        "reason": condition.reason if condition is not None else ""}}


def live_jobs(client: Client, run: str, stage: str | None = None) -> list[tuple[str, str, str]]:
    """RayJobs of a run whose head pod is still there: (stage, attempt, RayJob's name), by stage and attempt."""
    heads = client.list("Pod", {**labels(run, stage), "ray.io/node-type": "head"})
    clusters = {head["metadata"]["labels"].get("ray.io/cluster") for head in heads}
    return [(_stage(job), _attempt(job), job["metadata"]["name"]) for job in _in_order(client, run, stage)
            if job.get("status", {}).get("rayClusterName") in clusters]


def last_words(client: Client, run: str, stage: str | None = None) -> list[tuple[str, str, str]]:
    """(stage, attempt, the end of what it printed) of the RayJobs that failed, as Ray told KubeRay; by stage and
    attempt. For a stage that failed before it could write its log."""
    return [(_stage(job), _attempt(job), end.message) for job in _in_order(client, run, stage)
            if (end := ended(job)) is not None and end.message]


def _in_order(client: Client, run: str, stage: str | None) -> list[Object]:
    return sorted(client.list("RayJob", labels(run, stage)), key=lambda job: (_stage(job), _attempt(job).zfill(12)))


def _stage(job: Object) -> str:
    return str(job["metadata"]["labels"].get(STAGE_LABEL, ""))


def _attempt(job: Object) -> str:
    return str(job["metadata"]["labels"].get(ATTEMPT_LABEL, ""))
