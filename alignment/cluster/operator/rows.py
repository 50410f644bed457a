"""One stage: its row of the status and its RayJobs as they are -> its row as it should read, and what to delete.

Pure. Whether a stage that could start does start is reconcile's to say (it needs all the others for that).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignment.cluster.manifests.alignment_run import LostPod, StageRow, State
from alignment.cluster.operator.plan import Plan, PlannedStage
from alignment.cluster.operator.world import Child, Finished, seconds_of, stamp_of
from alignment.cluster.status.losses import Loss, in_words

GRACE = 30.0
"""Seconds after a RayJob's success in which its manifest may still become visible (network file systems lag)."""
LOSSES = 16
"""Lost pods of a stage that are named."""
BACKOFF, BACKOFF_MOST = 10.0, 300.0
"""Seconds before the second attempt; three times as long before each further one."""
ELSEWHERE, ELSEWHERE_MOST = 60, 300
"""Seconds until a stage that gave way is looked at again; twice as long for each further attempt."""
_NOT_MADE = dict.fromkeys(("artifact", "digest", "metrics", "rows_in", "rows_out", "finished"))
_SEEN_ALIVE = ("Queued", "Pending", "Running")
_STATES: dict[str, State] = {"pending": "Pending", "queued": "Queued", "running": "Running"}


@dataclass(frozen=True)
class Delete:
    """Delete a RayJob; one with this uid only."""

    name: str
    uid: str
    why: str


@dataclass(frozen=True)
class Settled:
    """A stage looked at. `ready`: nothing of its own keeps it from starting. `wake`: when to look again, at latest."""

    row: StageRow
    deletes: tuple[Delete, ...] = ()
    ready: bool = False
    wake: float | None = None


def carried(row: StageRow | None, stage: PlannedStage, anew: bool) -> StageRow:
    """The row to go on from: an empty one for a changed key; without past failures when `anew`."""
    if row is None or row.key != stage.key:
        return StageRow(name=stage.name, key=stage.key)
    if anew and row.state in ("Failed", "Retrying"):
        return _with(row, state="Waiting", failures=0, retry_at=None, message=None)
    return _with(row, failures=0, retry_at=None) if anew else row


def settle(plan: Plan, stage: PlannedStage, row: StageRow, own: Sequence[Child], artifact: Finished | None,
           now: float) -> Settled:
    """Look at one stage.

    Args:
        row: as `carried` gave it.
        own: this AlignmentRun's RayJobs for the stage's present key, in any order.
        artifact: the finished artifact, if there is one.
    """
    children = sorted(own, key=lambda child: (child.attempt, child.name))
    live = [child for child in children if child.live]
    row = _lost(_with(row, tries=max([row.tries, *(child.attempt for child in children)])), children)
    if artifact is not None:
        return _finished(plan, row, children, artifact, now)
    row = _with(row, **_NOT_MADE)
    if plan.suspend:
        if row.state != "Failed":
            row = _with(row, state="Suspended", message="its RayJob is going away" if live else None, retry_at=None)
        return Settled(row, _deletes(live, "the run is suspended"))
    staying = [child for child in live if not child.deleting]
    if staying:
        surplus = _deletes(staying[:-1], f"{staying[-1].name} makes this stage")
        return Settled(_alive(row, staying[-1]), surplus)
    if live:
        # One that somebody else deletes is missed when it is gone; one that we deleted is not.
        state: State = row.state if row.state in _SEEN_ALIVE else "Waiting"
        return Settled(_with(row, state=state, message=f"RayJob {live[-1].name} is going away"))
    return _dead(plan, row, children, now)


def unneeded(row: StageRow, own: Sequence[Child], why: str) -> Settled:
    """A stage that is not made, since a round before its own did not meet its gate; an edit may have come to that."""
    row = _with(row, **_NOT_MADE, state="NotNeeded", message=why, retry_at=None)
    return Settled(row, _deletes(own, "the stage is not needed"))


def _finished(plan: Plan, row: StageRow, children: Sequence[Child], artifact: Finished, now: float) -> Settled:
    row = _with(
        row, state="Finished", artifact=artifact.url, digest=artifact.digest, metrics=dict(artifact.metrics),
        rows_in=artifact.rows_in, rows_out=artifact.rows_out, started=artifact.started, finished=artifact.finished,
        message=None, retry_at=None,
    )
    # One at work is left alone: it has published and is about to write its report and logs.
    idle = [child for child in children if child.live and child.state != "running"]
    deletes, wake = _deletes(idle, "the stage is finished"), None
    for child in children:
        if not child.live and not child.deleting:
            until = child.ended + plan.keep_finished
            if until <= now:
                deletes += _deletes([child], "the stage is finished")
            else:
                wake = until if wake is None else min(wake, until)
    return Settled(row, deletes, wake=wake)


def _alive(row: StageRow, child: Child) -> StageRow:
    message = child.trouble or ("waits for its queue" if child.state == "queued" else None)
    if row.losses and not message:
        message = f"{row.lost} lost so far, the last: {_named(row.losses[-1])}"
    return _with(row, state=_STATES[child.state], ray_job=child.name, started=child.started, message=message,
                 retry_at=None)


def _dead(plan: Plan, row: StageRow, children: Sequence[Child], now: float) -> Settled:
    """No RayJob is alive: judge the newest that ended, or miss the one that is gone."""
    fresh = [child for child in children if child.attempt > row.last_failed
             and (not child.deleting or row.state in _SEEN_ALIVE)]
    wake = None
    if fresh and fresh[-1].gave_way:
        child = fresh[-1]
        again = now + min(ELSEWHERE * 2 ** (child.attempt - 1), ELSEWHERE_MOST)
        row = _with(row, state="Elsewhere", last_failed=child.attempt, ray_job=child.name, message=child.message,
                    retry_at=stamp_of(again))
    elif fresh:
        child = fresh[-1]
        if child.state == "succeeded" and now < child.ended + GRACE:
            row = _with(row, state="Running", ray_job=child.name, message="ended; its manifest is not visible yet")
            return Settled(row, wake=child.ended + GRACE)
        message = child.message if child.state == "failed" else (
            f"RayJob {child.name} succeeded, and the store has no manifest of {row.key}: look at its log, and whether "
            "image and client are of one version")
        if row.state == "Pending" and row.message:  # why its pods did not run, which the RayJob does not know
            message += f" ({row.message})"
        if child.losses:
            message += f"\nlost before: {'; '.join(map(_named, child.losses[-3:]))}"
        row = _failed(plan, row, child.attempt, message, child.permanent, now, child.name)
    elif row.state in _SEEN_ALIVE and row.tries > row.last_failed:
        row = _failed(plan, row, row.tries, f"RayJob {row.ray_job} vanished", False, now, row.ray_job)
    if row.state == "Failed":  # its RayJob stays, for a look
        return Settled(row)
    deletes = _deletes(children, "it gave way" if row.state == "Elsewhere" else "a fresh attempt follows")
    if row.state in ("Retrying", "Elsewhere") and row.retry_at is not None:
        wake = seconds_of(row.retry_at)
        if now < wake:
            return Settled(row, deletes, wake=wake)
    return Settled(row, deletes, ready=True)


def _failed(plan: Plan, row: StageRow, attempt: int, message: str, permanent: bool, now: float,
            name: str | None) -> StageRow:
    failures = row.failures + 1
    row = _with(row, failures=failures, last_failed=attempt, ray_job=name, retry_at=None)
    if permanent:
        return _with(row, state="Failed", message=message)
    if failures > plan.retries:
        return _with(row, state="Failed", message=f"given up after {failures} failures, the last: {message}")
    wait = min(BACKOFF * 3 ** (failures - 1), BACKOFF_MOST)
    return _with(row, state="Retrying", message=message, retry_at=stamp_of(now + wait))


def _lost(row: StageRow, children: Sequence[Child]) -> StageRow:
    """The row with the pods that its RayJobs have lost since."""
    known = row.losses or ()
    new = {loss.key: LostPod(pod=loss.pod, node=loss.node, reason=loss.reason, at=loss.at, container=loss.container)
           for child in children for loss in child.losses if loss.key not in {each.key for each in known}}
    if not new:
        return row
    return _with(row, lost=(row.lost or 0) + len(new), losses=(*known, *new.values())[-LOSSES:])


def _named(loss: LostPod | Loss) -> str:
    return in_words(loss.pod, loss.node, loss.reason)


def _deletes(children: Sequence[Child], why: str) -> tuple[Delete, ...]:
    return tuple(Delete(child.name, child.uid, why) for child in children if not child.deleting)


def _with(row: StageRow, **changes: Any) -> StageRow:
    return row.model_copy(update=changes)
