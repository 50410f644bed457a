"""A run whose stages wait in a Kueue queue, on a cluster (KUBECONFIG) with KubeRay and Kueue; skipped without Kueue."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from alignment.cluster.client.client import Client
from alignment.cluster.manifests.alignment_run import StageRow, Status, status_of
from tests.e2e.cluster_helpers import ROOT, World, world
from tests.waiting import until

pytestmark = [pytest.mark.k8s, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1200)]
GROUP = "kueue.x-k8s.io"
KUEUE = f"/apis/{GROUP}/v1beta2"
START_WITHIN = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if "KUBECONFIG" not in os.environ or not Client().exists("CustomResourceDefinition", f"clusterqueues.{GROUP}"):
        pytest.skip("KUBECONFIG names no cluster with Kueue")
    with world(tmp_path_factory.mktemp("kueue")) as made:
        made.write_profile("queued", "s3", lambda tree: tree["cluster"].update(
            queue="align", start_within=START_WITHIN,
            storage={**tree["cluster"]["storage"], "url": made.url("queued")}))
        quota = [{"name": name, "nominalQuota": amount} for name, amount in
                 (("cpu", "4"), ("memory", "8Gi"), ("ephemeral-storage", "100Gi"))]
        flavor = {"name": made.space, "resources": quota}
        groups = [{"coveredResources": [item["name"] for item in quota], "flavors": [flavor]}]
        parts = (
            ("ResourceFlavor", "resourceflavors", made.space, {}),
            ("ClusterQueue", "clusterqueues", made.space,
             {"namespaceSelector": {}, "stopPolicy": "Hold", "resourceGroups": groups}),
            ("LocalQueue", f"namespaces/{made.space}/localqueues", "align", {"clusterQueue": made.space}),
        )
        try:
            for kind, path, name, spec in parts:
                made.client.request("POST", f"{KUEUE}/{path}", {}, {
                    "apiVersion": f"{GROUP}/v1beta2", "kind": kind, "metadata": {"name": name}, "spec": spec})
            yield made
        finally:
            for _, path, name, _ in reversed(parts):
                made.client.request("DELETE", f"{KUEUE}/{path}/{name}")


def test_a_stage_waits_for_its_queue_and_then_runs(place: World) -> None:
    tree = yaml.safe_load((ROOT / "configs/runs/tiny.yaml").read_text(encoding="utf-8"))
    tree = {**tree, "name": "queued", "stages": tree["stages"][:1], "aims": []}
    (place.folder / "run-queued.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    look = place.kubealign("preflight", "run-queued.yaml", profile="queued")
    assert "LocalQueue align is there" in look.out, look
    done = place.kubealign("submit", "run-queued.yaml", "--target", "run", profile="queued")
    assert done.code == 0, done

    def status() -> Status:
        return status_of(place.client.get("AlignmentRun", "queued"))

    def row() -> StageRow | None:
        return next(iter(status().stages), None)

    def queued() -> Any:
        now = row()
        return now is not None and now.state == "Queued"

    until(queued, 60, "the stage is queued")
    time.sleep(START_WITHIN + 30)  # longer than a stage may take to start: time in the queue does not count
    now = row()
    assert now is not None
    assert (now.state, now.tries, now.message) == ("Queued", 1, "waits for its queue")
    place.client.request("PATCH", f"{KUEUE}/clusterqueues/{place.space}", {}, {"spec": {"stopPolicy": "None"}},
                         content_type="application/merge-patch+json")
    until(lambda: status().phase in ("Succeeded", "Failed"), 300, "the run ends")
    assert status().phase == "Succeeded", status()
    now = row()
    assert now is not None
    assert now.tries == 1
