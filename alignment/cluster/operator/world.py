"""What is seen: a stage's RayJobs and finished artifacts, as plain facts. Reads no clock and no network."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from alignment.artifacts import Artifact
from alignment.cluster.labels import ATTEMPT_LABEL, STAGE_LABEL
from alignment.exits import Exit

_EXIT = re.compile(r"failed with exit code (\d+)")
_LOGS = re.compile(r"last available logs[^\n]*\n")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
Look = Literal["pending", "queued", "running", "succeeded", "failed"]
LINES, LENGTH = 6, 1500


@dataclass(frozen=True)
class Child:
    """A RayJob that carries the run's label.

    Attributes:
        mine: this very AlignmentRun owns it (not a deleted one of the same name).
        deleting: it was deleted and is still there.
        permanent: a new attempt would end the same way.
        ended: seconds since the epoch, for a child that ended.
        trouble: why its pods do not run, in words.
    """

    name: str
    uid: str
    stage: str
    attempt: int
    state: Look
    mine: bool = True
    deleting: bool = False
    permanent: bool = False
    message: str = ""
    started: str | None = None
    ended: float = 0.0
    trouble: str = ""

    @property
    def live(self) -> bool:
        return self.state in ("pending", "queued", "running")


@dataclass(frozen=True)
class Finished:
    """What a finished artifact's manifest says of a stage."""

    url: str
    digest: str
    metrics: Mapping[str, float]
    rows_in: int
    rows_out: int
    started: str
    finished: str


def child_of(job: Mapping[str, Any], owner_uid: str) -> Child:
    """A RayJob as the API server holds it -> what matters of it."""
    metadata, status = job["metadata"], job.get("status") or {}
    labels = metadata.get("labels") or {}
    attempt = labels.get(ATTEMPT_LABEL, "0")
    state, permanent, message = _state(job)
    return Child(
        metadata["name"], metadata["uid"], labels.get(STAGE_LABEL, ""), int(attempt) if attempt.isdecimal() else 0,
        state,
        mine=any(owner.get("uid") == owner_uid for owner in metadata.get("ownerReferences") or []),
        deleting="deletionTimestamp" in metadata, permanent=permanent, message=message,
        started=status.get("startTime") or metadata.get("creationTimestamp"),
        ended=seconds_of(status.get("endTime") or metadata.get("creationTimestamp")),
    )


def _state(job: Mapping[str, Any]) -> tuple[Look, bool, str]:
    status = job.get("status") or {}
    deployment, ray, text = (status.get(key, "") for key in ("jobDeploymentStatus", "jobStatus", "message"))
    if deployment == "Complete" and ray == "SUCCEEDED":
        return "succeeded", False, ""
    if deployment in ("Complete", "Failed", "ValidationFailed"):
        code = _EXIT.search(text)
        permanent = deployment == "ValidationFailed" or (code is not None and int(code[1]) == Exit.USER)
        return "failed", permanent, _why(status.get("reason", ""), ray, text)
    if deployment in ("Suspended", "Suspending") or (not deployment and job.get("spec", {}).get("suspend")):
        return "queued", False, ""
    return ("running" if deployment == "Running" and ray not in ("", "PENDING") else "pending"), False, ""


def _why(reason: str, ray: str, text: str) -> str:
    """A failure in a few lines: the last of the log where there is one, else KubeRay's own words."""
    logs = _LOGS.split(text, 1)
    code = _EXIT.search(text)
    head = f"exit code {code[1]}" if code else " ".join(part for part in (reason, ray) if part)
    lines = [line.rstrip() for line in _COLOUR.sub("", logs[-1]).splitlines() if line.strip()]
    if len(logs) == 1 and code:
        return head
    tail = "\n".join(lines[-LINES:])[-LENGTH:]
    return f"{head}: {tail}" if head and tail else head or tail or "no reason given"


def finished_of(artifact: Artifact) -> Finished:
    """What the status shows of an artifact."""
    manifest = artifact.manifest
    metrics = {name: value for name, value in manifest.metrics.items() if math.isfinite(value)}
    return Finished(artifact.url, manifest.digest, metrics, manifest.rows.read, sum(manifest.rows.written.values()),
                    manifest.started, manifest.finished)


def seconds_of(stamp: str | None) -> float:
    """Kubernetes' time stamp -> seconds since the epoch; 0 where there is none."""
    return datetime.fromisoformat(stamp).timestamp() if stamp else 0.0


def stamp_of(seconds: float) -> str:
    """Seconds since the epoch -> Kubernetes' time stamp."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
