"""What is seen: a stage's RayJobs and finished artifacts, as plain facts. Reads no clock and no network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from alignment.cluster.manifests.labels import ATTEMPT_LABEL, STAGE_LABEL
from alignment.cluster.status.losses import Loss
from alignment.cluster.status.reading import LENGTH, State, gave_way, gist, is_permanent, state_of, why

SETTLES = 15.0
"""Seconds after a pod's deletion until a stage that still goes on has lost it."""


@dataclass(frozen=True)
class Child:
    """A RayJob that carries the run's label.

    Attributes:
        mine: this very AlignmentRun owns it (not a deleted one of the same name).
        deleting: it was deleted and is still there.
        permanent: a new attempt would end the same way.
        gave_way: it ended because another run makes the same.
        ended: seconds since the epoch, for a child that ended.
        trouble: why its pods do not run, in words.
        losses: pods that it lost, oldest first.
    """

    name: str
    uid: str
    stage: str
    attempt: int
    state: State
    mine: bool = True
    deleting: bool = False
    permanent: bool = False
    gave_way: bool = False
    message: str = ""
    started: str | None = None
    ended: float = 0.0
    trouble: str = ""
    losses: tuple[Loss, ...] = ()

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


@dataclass(frozen=True)
class Held:
    """An artifact that is not finished, and that somebody is at; `words`: who, as a sentence."""

    words: str


def child_of(job: Mapping[str, Any], owner_uid: str) -> Child:
    """A RayJob as the API server holds it -> what matters of it."""
    metadata, status = job["metadata"], job.get("status") or {}
    labels = metadata.get("labels") or {}
    attempt = labels.get(ATTEMPT_LABEL, "0")
    state = state_of(job)
    failed = state == "failed"
    elsewhere = failed and gave_way(job)
    return Child(
        metadata["name"], metadata["uid"], labels.get(STAGE_LABEL, ""), int(attempt) if attempt.isdecimal() else 0,
        state,
        mine=any(owner.get("uid") == owner_uid for owner in metadata.get("ownerReferences") or []),
        deleting="deletionTimestamp" in metadata,
        permanent=failed and is_permanent(job), gave_way=elsewhere,
        message=gist(job["status"]["message"])[:LENGTH] if elsewhere else why(job) if failed else "",
        started=status.get("startTime") or metadata.get("creationTimestamp"),
        ended=seconds_of(status.get("endTime") or metadata.get("creationTimestamp")),
    )


def with_losses(child: Child, losses: Iterable[Loss], now: float) -> tuple[Child, float | None]:
    """The child with those losses that are its own, and when to look again at one that is not known to be one yet.

    A pod that was deleted is lost while the stage goes on without it, or failed after it. Else it went in good order:
    KubeRay removes the pods of a stage that ended, or that its queue has stopped.
    """
    found, wake = [], None
    for loss in sorted(losses, key=lambda loss: (loss.at, loss.pod)):
        if loss.cluster.rpartition("-")[0] != child.name:
            continue
        at = seconds_of(loss.at)
        if not loss.asked or (child.state == "failed" and at < child.ended):
            found.append(loss)
        elif child.state in ("running", "pending") and not child.deleting:
            if at + SETTLES <= now:
                found.append(loss)
            else:
                wake = min(at + SETTLES, wake or at + SETTLES)
    return replace(child, losses=tuple(found)), wake


def seconds_of(stamp: str | None) -> float:
    """Kubernetes' time stamp -> seconds since the epoch; 0 where there is none."""
    return datetime.fromisoformat(stamp).timestamp() if stamp else 0.0


def stamp_of(seconds: float) -> str:
    """Seconds since the epoch -> Kubernetes' time stamp."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
