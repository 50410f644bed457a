"""What a run has on the cluster now, looked at once: RayJobs and an AlignmentRun. Which stages are finished is not said
here: the storage knows.
"""

from __future__ import annotations

from typing import Any

from alignment.cluster.client.client import Client
from alignment.cluster.manifests.alignment_run import status_of
from alignment.cluster.manifests.labels import ATTEMPT_LABEL, STAGE_LABEL, labels
from alignment.cluster.status.reading import ended, gist, in_words
from alignment.cluster.status.trouble import in_short
from alignment.cluster.watch.wait import job_pod, ray_job_troubles


def live_states(client: Client, run: str) -> dict[str, dict[str, Any]]:
    """Stage -> what the cluster does about it ({state, note, rayjob}); under "" what an AlignmentRun says of itself."""
    found: dict[str, dict[str, Any]] = {}
    if not client.has("RayJob"):
        return found
    jobs = client.list("RayJob", labels(run))
    jobs.sort(key=lambda job: int(job["metadata"]["labels"].get(ATTEMPT_LABEL, "0")))
    for job in jobs:
        end, name = ended(job), job["metadata"]["name"]
        note = f"RayJob {name}"
        if end is None:
            note = "; ".join([note, *in_short(ray_job_troubles(client, job))])
        elif end.message:
            note += f": {gist(end.message).splitlines()[0][:200]}"
        found[job["metadata"]["labels"].get(STAGE_LABEL, "")] = {
            "state": in_words(job) if end is None else "failed" if end.how != "succeeded" else "ended",
            "note": note, "rayjob": name}
    body = client.find("AlignmentRun", run) if client.has("AlignmentRun") else None
    if body is not None:
        status = status_of(body)
        for row in status.stages:
            parts = (f"RayJob {row.ray_job}" if row.ray_job else "", row.message or "")
            note = "; ".join(part for part in parts if part)
            found[row.name] = {"state": row.state.lower(), "note": note, "rayjob": row.ray_job}
        why = [item.message for item in status.conditions if item.status == "True" and item.message]
        found[""] = {"state": status.phase, "note": f"AlignmentRun {run}: {status.phase}"
                     + (f"; {'; '.join(why)}" if why else "")}
    return found


def live_jobs(client: Client, run: str, stage: str | None = None) -> list[tuple[str, str, str]]:
    """RayJobs of a run whose submitter's pod is still there: (stage, attempt, RayJob's name), by stage and attempt."""
    found = []
    for job in client.list("RayJob", labels(run, stage)):
        given = job["metadata"]["labels"]
        name = job["metadata"]["name"]
        if job_pod(client, name) is not None:
            found.append((given.get(STAGE_LABEL, ""), given.get(ATTEMPT_LABEL, ""), name))
    return sorted(found, key=lambda item: (item[0], item[1].zfill(12)))
