"""Serving against a real API server (KUBECONFIG): the operator's own process applies RayServices by server-side apply,
once for each revision, whatever KubeRay writes beside; goes back to an earlier one; deletes; leaves others' alone.

No replica ever starts: its pods ask for a node that is not there.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest

from alignment.cluster.client.client import Client
from alignment.cluster.manifests.alignment_run import KIND, ServingStatus, status_of
from alignment.cluster.manifests.bundle import bundle, config_map
from alignment.cluster.manifests.submission import alignment_run
from alignment.cluster.operator.served import REVISIONS
from alignment.cluster.submit.rollback import rollback
from alignment.pipeline.keys import keys
from tests.cluster.operator_world import chain, profile, revision_of
from tests.cluster.test_operator_cluster import client, operator, pods
from tests.waiting import until

__all__ = ["client"]
pytestmark = [
    pytest.mark.k8s,
    pytest.mark.skipif("KUBECONFIG" not in os.environ, reason="KUBECONFIG names no cluster"),
]
NOWHERE: dict[str, Any] = {"node_selector": {"kubealign.dev/nowhere": "true"}, "cpu": "1", "memory": "1Gi",
                           "shm": "256Mi"}


def submitted(client: Client, folder: Path, name: str) -> dict[str, Any]:
    """A served AlignmentRun whose store is a folder of this machine; gives its keys."""
    storage = {"url": str(folder / "store"), "claim": "none", "mount": str(folder)}
    of = profile(storage=storage, keep_finished=0, serve={"worker": NOWHERE, "head": NOWHERE})
    run = chain(folder, name=name, serve={"models": ["sft", "dpo"]})
    packed = bundle(run, of)
    files = f"{name}-{packed.digest[:8]}"
    client.apply(config_map(packed, name=files, namespace=client.namespace))
    client.apply(alignment_run(run, of, packed, namespace=client.namespace, config_map=files, queue="nobody"))
    return keys(run)


def serving(client: Client, name: str) -> ServingStatus:
    return status_of(client.get(KIND, name)).serving or ServingStatus()


def edited(client: Client, name: str, serve: Any) -> None:
    run = copy.deepcopy(client.get(KIND, name)["spec"]["run"])
    client.patch(KIND, name, {"spec": {"run": {**run, "serve": serve}}})


def test_a_served_run_is_upgraded_rolled_back_and_withdrawn(client: Client, tmp_path: Path) -> None:
    name = "served"
    known = submitted(client, tmp_path, name)

    def over() -> bool:
        pods(client, tmp_path, name, known)
        return client.find("RayService", name) is not None

    with operator(client, tmp_path / "log"):
        until(over, 180)
        first = client.get("RayService", name)
        body = client.get(KIND, name)
        assert (revision_of(first), first["metadata"]["generation"]) == (1, 1)
        assert [owner["uid"] for owner in first["metadata"]["ownerReferences"]] == [body["metadata"]["uid"]]
        until(lambda: serving(client, name).history)
        got = serving(client, name)
        assert (got.state, got.wanted, got.revision) == ("Starting", 1, None)
        assert {one.type: one.status for one in status_of(client.get(KIND, name)).conditions}["Ready"] == "False"
        edited(client, name, {"models": {"sft": "sft", "dpo": "dpo"}, "replicas": 2})
        until(lambda: revision_of(client.get("RayService", name)) == 2, 60)
        assert rollback(client, name, 1)[0].startswith(f"run {name}: revision 1 is to be served")
        until(lambda: revision_of(client.get("RayService", name)) == 1, 60)
        until(lambda: serving(client, name).pinned == 1)
        assert "pinned to revision 1; the newest is 2" in (serving(client, name).message or "")
        rollback(client, name, latest=True)
        until(lambda: revision_of(client.get("RayService", name)) == 2, 60)
        now = client.get("RayService", name)
        assert now["metadata"]["generation"] == 4, "applied once for each change"
        assert now["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["replicas"] == 2
        assert REVISIONS in now["metadata"]["annotations"]
        edited(client, name, None)
        until(lambda: client.find("RayService", name) is None, 90)
        until(lambda: status_of(client.get(KIND, name)).serving is None)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_somebody_elses_rayservice_stays_as_it_is(client: Client, tmp_path: Path) -> None:
    name = "taken"
    theirs = {"apiVersion": "ray.io/v1", "kind": "RayService",
              "metadata": {"name": name, "namespace": client.namespace},
              "spec": {"rayClusterConfig": {"rayVersion": "2.0.0", "headGroupSpec": {
                  "rayStartParams": {}, "template": {"spec": {"containers": [{"name": "x", "image": "none:1"}],
                                                              "nodeSelector": NOWHERE["node_selector"]}}}}}}
    made = client.create(theirs)
    known = submitted(client, tmp_path, name)

    def told() -> bool:
        pods(client, tmp_path, name, known)
        found = {one.type: one.reason for one in status_of(client.get(KIND, name)).conditions}
        return found.get("Serving") == "NameTaken"

    with operator(client, tmp_path / "log"):
        until(told, 180)
        there = client.get("RayService", name)
    assert there["metadata"]["uid"] == made["metadata"]["uid"]
    assert there["spec"]["rayClusterConfig"]["rayVersion"] == "2.0.0"
    assert "ownerReferences" not in there["metadata"]
    client.delete("RayService", name)
