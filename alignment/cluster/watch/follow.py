"""An AlignmentRun followed to its end, from the client's side.

The operator does the work; this only reads the status that it writes. Losing the connection loses nothing.
"""

from __future__ import annotations

import time

from alignment.cluster.client.client import Client, Object
from alignment.cluster.manifests.alignment_run import RETRY, StageRow, Status, annotation, serves, status_of
from alignment.cluster.watch.logs import Follower
from alignment.cluster.watch.voice import Voice
from alignment.cluster.watch.wait import RESYNC, UNTOUCHED
from alignment.errors import StageError, Written


def wait_run(client: Client, name: str, voice: Voice) -> Status:
    """Follow an AlignmentRun until all its stages are finished and, where its run has `serve`, its models are served;
    shows each stage's steps and its driver's output.

    Raises:
        StageError: it failed, could not be served, or was suspended or deleted meanwhile.
    """
    said: dict[str, str] = {}
    followers: dict[str, Follower] = {}
    asked, since = (-1, ""), 0.0
    try:
        while True:
            body = client.find("AlignmentRun", name)
            if body is None:
                raise StageError("the AlignmentRun was deleted", where=f"AlignmentRun {name}",
                                 hint="finished stages are kept; submit it again")
            status = status_of(body)
            generation, retry = body["metadata"].get("generation", 0), annotation(body, RETRY)
            if (generation, retry) != asked:  # somebody edits, cancels or resumes it meanwhile
                asked, since = (generation, retry), time.monotonic()
            seen = status.observed_generation >= generation and not _unheard(status, retry)
            if not seen and time.monotonic() - since > UNTOUCHED:
                _once(said, "", "no operator takes it up; is the chart's operator running in this namespace?", voice)
            for row in status.stages:
                _once(said, row.name, _row(row), voice)
                if row.state == "Running" and row.ray_job and row.ray_job not in followers:
                    followers[row.ray_job] = Follower(client, row.ray_job, voice.write)
                elif row.state in ("Finished", "NotNeeded", "Failed") and row.ray_job in followers:
                    followers.pop(row.ray_job).end()
            if seen:
                _gates(status, client.namespace, said, voice)
                if _over(status, body) and (not serves(body) or _served(status, name, said, voice)):
                    return status
            client.changed("AlignmentRun", name, body["metadata"]["resourceVersion"], RESYNC)
    finally:
        for follower in followers.values():
            follower.end()


def _unheard(status: Status, retry: str) -> bool:
    """Whether what is said to have failed was given a new start that the operator has not seen yet. A spec that is
    refused gets none."""
    if status.retried == retry:
        return False
    if status.phase == "Failed":
        return any(item.type == "Failed" and item.reason in ("StageFailed", "GateFailed") for item in status.conditions)
    return status.serving is not None and status.serving.state == "Failed"


def _over(status: Status, body: Object) -> bool:
    """Whether it succeeded. Raises StageError where it will not go on by itself."""
    name = body["metadata"]["name"]
    if status.phase == "Succeeded":
        unmade = [row.name for row in status.stages if row.artifact is None and row.state != "NotNeeded"]
        if unmade:
            raise StageError("the operator calls the run finished, but names no artifact", where=f"AlignmentRun {name}",
                             found=", ".join(unmade))
        return True
    if status.phase in ("Failed", "Suspended"):
        why = [item.message for item in status.conditions if item.type == status.phase and item.status == "True"]
        rows = [f"{row.name}: {row.message}" for row in status.stages if row.state == "Failed" and row.message]
        raise StageError(f"the run is {status.phase.lower()}", where=f"AlignmentRun {name}",
                         found="; ".join([*why, *(row for row in rows if row not in why)]) or None,
                         hint="finished stages are kept; mend it, then kubealign resume")
    return False


def _served(status: Status, name: str, said: dict[str, str], voice: Voice) -> bool:
    """Whether the run's models are served. Raises StageError where they will not be by themselves."""
    serving = status.serving
    if serving is None:
        _once(said, "serving", "> serving: the operator has said nothing of it yet", voice)
        return False
    if serving.state == "Failed":
        # A new start mends neither a pin nor what `serve` names; what does is in the message.
        reasons = {item.reason for item in status.conditions if item.type == "Serving"}
        again = "" if reasons & {"UnknownRevision", "NotMade"} else "; kubealign resume tries it again"
        raise StageError("the run has succeeded, and its models are not served", where=f"AlignmentRun {name}",
                         found=Written(serving.message, serving.message) if serving.message else None,
                         hint=f"kubealign status says more{again}")
    ready = serving.state == "Ready"
    _once(said, "serving", (f"+ serving revision {serving.revision}" if ready else f"> serving {serving.state.lower()}")
          + (f", {serving.message}" if serving.message else ""), voice)
    return ready


def _row(row: StageRow) -> str:
    """One stage's state as a sentence; empty where there is nothing to say."""
    if row.state in ("Waiting", "Held"):
        return ""
    if row.state == "Finished":
        return f"+ {row.name} {(row.digest or '')[:12]} finished"
    if row.state == "NotNeeded":
        return f"- {row.name} {row.message}"
    parts = [f"> {row.name} {row.state.lower()}", f"RayJob {row.ray_job}" if row.ray_job else "", row.message or ""]
    return ", ".join(part for part in parts if part)


def _gates(status: Status, namespace: str, said: dict[str, str], voice: Voice) -> None:
    for item in status.conditions:
        if item.type == "GateWaiting" and item.status == "True":
            _once(said, "gate", f"a gate waits (namespace {namespace}): {item.message}", voice)


def _once(said: dict[str, str], about: str, text: str, voice: Voice) -> None:
    if text and said.get(about) != text:
        said[about] = text
        voice.say(text)
