"""Stops what a run has on the cluster and keeps its artifacts, checkpoints and logs. Jobs on a RayCluster that is there
already are `ray_cluster`'s to stop.
"""

from __future__ import annotations

from alignment.cluster.client.client import Client
from alignment.cluster.manifests.alignment_run import status_of
from alignment.cluster.manifests.labels import labels


def cancel(client: Client, run: str) -> list[str]:
    """Stop what a run has on the cluster and keep its artifacts: suspend its AlignmentRun, delete RayJobs that are not
    the operator's. What is served goes on. Jobs on a RayCluster that is there already are not seen here.

    Returns:
        What was done, one sentence for each object; nothing where there was nothing.
    """
    done, kinds = [], ["RayJob", "ConfigMap"]
    body = client.find("AlignmentRun", run) if client.has("AlignmentRun") else None
    if body is not None:
        client.patch("AlignmentRun", run, {"spec": {"suspend": True}})
        done.append(f"AlignmentRun {run} is suspended")
        serving = status_of(body).serving
        if serving is not None and serving.wanted is not None:
            done.append(f"what it serves (revision {serving.wanted}) goes on; it ends without `serve` in the run, or "
                        f"with kubectl delete alignmentrun {run} -n {client.namespace}")
        kinds.remove("ConfigMap")  # one that its operator has not taken over yet is needed when it goes on
    for kind in kinds:
        for item in client.list(kind, labels(run)):
            if item["metadata"].get("ownerReferences"):
                continue
            if client.delete(kind, item["metadata"]["name"]):
                done.append(f"{kind} {item['metadata']['name']} is deleted")
    return done
