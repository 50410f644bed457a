"""What a RayJob's status says: how it stands, how it ended, and why. The one place that knows KubeRay's words.

Pure: reads the object as the API server gives it. What follows from an end, another attempt or not, is not said here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from alignment.exits import Exit

State = Literal["pending", "queued", "running", "succeeded", "failed"]

_EXIT = re.compile(r"failed with exit code (\d+)")
"""In Ray's message about a failed entrypoint; a user's own output may speak of exit codes, too."""
_LOGS = re.compile(r"last available logs[^\n]*\n")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_NOISE = re.compile(r"\t(INFO|SUCC|ERR) \w+\.py:\d+ -- |^Running entrypoint for job|^Job entrypoint command failed")
_REFUSED = "ValidationFailed"
"""KubeRay 1.5 and later have it as the deployment's status, all as the reason."""
LINES, LENGTH = 6, 1500


@dataclass(frozen=True)
class Ended:
    """How an attempt at a stage ended. `user`: only a change of the run or profile can help; `gone`: somebody deleted
    it; `elsewhere`: it gave way to another run that makes the same."""

    how: Literal["succeeded", "failed", "user", "gone", "elsewhere"]
    message: str = ""


def state_of(job: Mapping[str, Any]) -> State:
    """How a RayJob stands."""
    deployment, ray = _said(job, "jobDeploymentStatus"), _said(job, "jobStatus")
    if deployment == "Complete" and ray == "SUCCEEDED":
        return "succeeded"
    if deployment in ("Complete", "Failed", _REFUSED):
        return "failed"
    if deployment in ("Suspended", "Suspending") or (not deployment and job.get("spec", {}).get("suspend")):
        return "queued"
    return "running" if deployment == "Running" and ray not in ("", "PENDING") else "pending"


def is_unreached(job: Mapping[str, Any]) -> bool:
    """Whether its Ray cluster is up and KubeRay's operator is still to hand it the job."""
    return _said(job, "jobDeploymentStatus") == "Running" and not _said(job, "jobStatus")


def is_refused(job: Mapping[str, Any]) -> bool:
    """Whether KubeRay finds the RayJob's spec wrong."""
    return _REFUSED in (_said(job, "jobDeploymentStatus"), _said(job, "reason"))


def is_permanent(job: Mapping[str, Any]) -> bool:
    """Of a failed RayJob: whether another attempt would end the same way."""
    return is_refused(job) or exit_code(_said(job, "message")) == Exit.USER


def gave_way(job: Mapping[str, Any]) -> bool:
    """Of a failed RayJob: whether it gave its pods back because another run makes the same."""
    return not is_refused(job) and exit_code(_said(job, "message")) == Exit.ELSEWHERE


def ended(job: Mapping[str, Any]) -> Ended | None:
    """How a RayJob ended, or None while it goes on."""
    state, message = state_of(job), _said(job, "message").strip()
    if state == "succeeded":
        return Ended("succeeded")
    if state != "failed":
        return None
    if is_refused(job):
        return Ended("user", f"KubeRay refuses the RayJob: {message}")
    if gave_way(job):
        return Ended("elsewhere", gist(message))
    return Ended("user" if is_permanent(job) else "failed",
                 message or _said(job, "reason") or _said(job, "jobStatus") or "it failed without a message")


def exit_code(text: str) -> int | None:
    """The exit code that Ray's message about a failed entrypoint names, or None."""
    found = _EXIT.search(text)
    return int(found[1]) if found else None


def gist(message: str) -> str:
    """What of a failed driver's output says why: from its last line that is not indented, where errors put it."""
    lines = [line for line in message.splitlines() if line.strip() and not _NOISE.search(line)]
    starts = [number for number, line in enumerate(lines) if not line[0].isspace()]
    return "\n".join(lines[starts[-1]:][:12]) if starts else message.strip()[-500:]


def why(job: Mapping[str, Any]) -> str:
    """A failed RayJob's reason in a few lines, for a status: the last of the log where there is one, else KubeRay's own
    words."""
    text = _said(job, "message")
    logs, code = _LOGS.split(text, 1), exit_code(text)
    head = " ".join(part for part in (_said(job, "reason"), _said(job, "jobStatus")) if part)
    head = head if code is None else f"exit code {code}"
    lines = [line.rstrip() for line in _COLOUR.sub("", logs[-1]).splitlines() if line.strip()]
    if len(logs) == 1 and code is not None:
        return head
    tail = "\n".join(lines[-LINES:])[-LENGTH:]
    return f"{head}: {tail}" if head and tail else head or tail or "no reason given"


def in_words(job: Mapping[str, Any]) -> str:
    """What a RayJob is doing, for a line of progress."""
    deployment, ray = _said(job, "jobDeploymentStatus"), _said(job, "jobStatus")
    if deployment == "Running":
        return {"RUNNING": "running", "": "submitting to Ray", "PENDING": "submitting to Ray"}.get(ray, "ending")
    if deployment == "Suspended" and job.get("spec", {}).get("suspend"):
        return "suspended: waits for its queue" if "kueue.x-k8s.io/queue-name" in job["metadata"].get("labels", {}) \
            else "suspended"
    known = {"": "accepted", "Initializing": "starting its Ray cluster", "Complete": "ended"}
    return known.get(deployment, deployment.lower())


def _said(job: Mapping[str, Any], key: str) -> str:
    return str((job.get("status") or {}).get(key) or "")
