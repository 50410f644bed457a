"""What is seen: a stage's RayJobs and finished artifacts, as plain facts. Reads no clock and no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from alignment.cluster.manifests.labels import ATTEMPT_LABEL, STAGE_LABEL
from alignment.cluster.status.reading import State, is_permanent, state_of, why


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
    state: State
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
    state = state_of(job)
    failed = state == "failed"
    return Child(
        metadata["name"], metadata["uid"], labels.get(STAGE_LABEL, ""), int(attempt) if attempt.isdecimal() else 0,
        state,
        mine=any(owner.get("uid") == owner_uid for owner in metadata.get("ownerReferences") or []),
        deleting="deletionTimestamp" in metadata,
        permanent=failed and is_permanent(job), message=why(job) if failed else "",
        started=status.get("startTime") or metadata.get("creationTimestamp"),
        ended=seconds_of(status.get("endTime") or metadata.get("creationTimestamp")),
    )


def seconds_of(stamp: str | None) -> float:
    """Kubernetes' time stamp -> seconds since the epoch; 0 where there is none."""
    return datetime.fromisoformat(stamp).timestamp() if stamp else 0.0


def stamp_of(seconds: float) -> str:
    """Seconds since the epoch -> Kubernetes' time stamp."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
