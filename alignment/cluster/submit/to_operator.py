"""`--target run`: a run handed to the operator as an AlignmentRun, and let go on after it was suspended or has failed.

The operator does the work; `watch.follow` shows how it goes.
"""

from __future__ import annotations

from datetime import UTC, datetime

from alignment.cluster.client.client import Client
from alignment.cluster.client.refusals import cluster_error
from alignment.cluster.manifests.alignment_run import RETRY, SERVE, Gate, annotation, status_of
from alignment.cluster.manifests.bundle import bundle, config_map
from alignment.cluster.manifests.submission import alignment_run
from alignment.cluster.watch.voice import Voice
from alignment.config import Profile, Run


def submit_run(
    run: Run, profile: Profile, client: Client, voice: Voice, *, gates: tuple[Gate, ...] = (), retries: int = 2
) -> None:
    """Apply the run's ConfigMap and its AlignmentRun; one that was suspended goes on.

    Raises:
        KubeAlignError: the run cannot go to a cluster, or the cluster refuses.
    """
    if not client.has("AlignmentRun"):
        raise cluster_error("the cluster does not have KubeAlign's operator", where=f"namespace {client.namespace}",
                            expected="the CRD alignmentruns.kubealign.dev",
                            hint=f"helm install kubealign charts/kubealign -n {client.namespace}; or --target rayjob")
    packed = bundle(run, profile)
    name = packed.name_for(run.name)
    before = client.find("AlignmentRun", run.name)
    client.apply(config_map(packed, name=name, namespace=client.namespace))
    client.apply(alignment_run(run, profile, packed, namespace=client.namespace, config_map=name, gates=gates,
                               retries=retries))
    voice.say(f"AlignmentRun {run.name} is {'applied' if before else 'made'} in namespace {client.namespace}")
    pin = annotation(before, SERVE) if before else ""
    if pin and run.serve is not None:
        voice.say(f"! it is pinned to revision {pin}: what it makes now is not served before kubealign rollback "
                  f"{run.name} -n {client.namespace} --latest")
    if before is not None:
        resume(client, run.name)


def resume(client: Client, name: str) -> None:
    """Let an AlignmentRun go on: no longer suspended, and what failed, stages or serving, gets a new start. Raises
    ClusterError (404)."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    status = status_of(client.get("AlignmentRun", name))
    failed = status.phase == "Failed" or (status.serving is not None and status.serving.state == "Failed")
    client.patch("AlignmentRun", name, {"spec": {"suspend": False},
                                        **({"metadata": {"annotations": {RETRY: stamp}}} if failed else {})})
