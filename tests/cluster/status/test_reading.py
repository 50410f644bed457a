"""How a RayJob ended, by its status: the client and the operator read the same."""

from __future__ import annotations

import pytest

from alignment.cluster.operator.world import child_of
from alignment.cluster.status.reading import ended, exit_code, in_words
from tests.cluster.api_server import Json
from tests.cluster.objects import rayjob

MESSAGE = "Job entrypoint command failed with exit code 2, last available logs (truncated to 20,000 chars):\nno rows"


@pytest.mark.parametrize(("status", "how"), [
    ({}, None),
    ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, None),
    # Ray has failed, KubeRay has not yet looked at the submitter.
    ({"jobDeploymentStatus": "Running", "jobStatus": "FAILED", "message": MESSAGE}, None),
    ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, "succeeded"),
    ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, "failed"),
    ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": MESSAGE}, "user"),
    ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED",
      "message": MESSAGE.replace("code 2", "code 3")}, "failed"),
    ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED",
      "message": MESSAGE.replace("code 2", "code 21")}, "failed"),
    ({"jobDeploymentStatus": "Failed", "reason": "PreRunningDeadlineExceeded", "message": "passed"}, "failed"),
    ({"jobDeploymentStatus": "Failed", "reason": "ValidationFailed", "message": "spec is wrong"}, "user"),
    # KubeRay 1.5 and later.
    ({"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": "spec is wrong"}, "user"),
])
def test_how_a_rayjob_ended(status: Json, how: str | None) -> None:
    job = rayjob(**status)
    end = ended(job)
    assert (end.how if end else None) == how
    job["metadata"]["uid"] = "u"
    child = child_of(job, "me")
    assert child.live == (how is None)
    assert child.permanent == (how == "user")
    assert (child.state == "succeeded") == (how == "succeeded")


def test_exit_codes_and_words() -> None:
    assert exit_code(MESSAGE) == 2
    assert exit_code("the head pod was lost") is None
    assert exit_code("a tool of the user's says: exit code 2") is None
    assert in_words(rayjob()) == "accepted"
    assert in_words(rayjob(jobDeploymentStatus="Running", jobStatus="RUNNING")) == "running"
    queued = {**rayjob(jobDeploymentStatus="Suspended"), "spec": {"suspend": True}}
    queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "q"
    assert "queue" in in_words(queued)
