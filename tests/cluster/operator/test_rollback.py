"""`kubealign rollback`: which revision it asks for, and what it refuses; against a small API server."""

from __future__ import annotations

from typing import Any

import pytest

from alignment.cluster.client.client import Client
from alignment.cluster.client.refusals import ClusterError
from alignment.cluster.manifests.alignment_run import KIND, SERVE, ServedRevision, ServingStatus, Status, status_json
from alignment.cluster.submit.cancel import cancel
from alignment.cluster.submit.rollback import rollback
from alignment.errors import ConfigError
from tests.cluster.api_server import Api


def put(api: Api, serving: ServingStatus | None, pin: str | None = None) -> None:
    api.put({"apiVersion": "kubealign.dev/v1alpha1", "kind": KIND, "spec": {},
             "status": status_json(Status(serving=serving)),
             "metadata": {"name": "r", "namespace": "align", **({"annotations": {SERVE: pin}} if pin else {})}})


def serving(revision: int | None, wanted: int, *refuted: int, last: int = 3) -> ServingStatus:
    history = tuple(ServedRevision(number=number, models={"sft": f"sft-{number}"}, when="2026-01-01T00:00:00Z",
                                   proved=number not in refuted) for number in range(1, last + 1))
    return ServingStatus(state="Ready", revision=revision, wanted=wanted, history=history)


def pinned(api: Api) -> Any:
    return api.objects[KIND, "align", "r"]["metadata"].get("annotations", {}).get(SERVE)


@pytest.mark.parametrize(("revision", "wanted", "refuted", "expected"), [
    (3, 3, (), "2"),  # the one before the one that serves
    (2, 3, (3,), "2"),  # the newest failed its proof: the one that still serves
    (None, 3, (3,), "2"),
    (3, 3, (2,), "1"),  # one that never was proved is no place to go back to
])
def test_by_default_it_goes_to_the_last_one_that_was_well(
    api: Api, client: Client, revision: int | None, wanted: int, refuted: tuple[int, ...], expected: str
) -> None:
    put(api, serving(revision, wanted, *refuted))
    done = rollback(client, "r")
    assert pinned(api) == expected
    assert f"revision {expected} is to be served (sft=sft-{expected})" in done[0]


def test_to_and_latest(api: Api, client: Client) -> None:
    put(api, serving(3, 3))
    rollback(client, "r", 1)
    assert pinned(api) == "1"
    assert "from now on" in rollback(client, "r", latest=True)[0]
    assert pinned(api) is None
    assert "was not pinned" in rollback(client, "r", latest=True)[0]


def test_what_cannot_be_gone_back_to_is_refused_and_nothing_is_written(api: Api, client: Client) -> None:
    with pytest.raises(ClusterError, match="no AlignmentRun of this name"):
        rollback(client, "r")
    put(api, None)
    with pytest.raises(ConfigError, match="nothing of this run was served yet"):
        rollback(client, "r")
    put(api, serving(1, 1, last=1))
    with pytest.raises(ConfigError, match="no revision before"):
        rollback(client, "r")
    with pytest.raises(ConfigError, match="no such revision") as refused:
        rollback(client, "r", 7)
    assert "one of 1" in str(refused.value)
    assert pinned(api) is None


def test_cancel_says_that_what_serves_goes_on(api: Api, client: Client) -> None:
    put(api, serving(3, 3))
    done = cancel(client, "r")
    assert done[0] == "AlignmentRun r is suspended"
    assert "what it serves (revision 3) goes on" in done[1]
