"""What a profile names and the namespace must have: secrets, volume claims, a queue. Part of `kubealign preflight`."""

from __future__ import annotations

from collections.abc import Iterator

from alignment.cluster.client.client import Client
from alignment.cluster.preflight.finding import Finding, fail, ok, warn
from alignment.config import Cluster, Profile, Run
from alignment.serving.hosts import KEY_FROM


def secrets(client: Client, run: Run, cluster: Cluster) -> Iterator[Finding]:
    """Whether they exist; their content is not fetched."""
    named = [name for name in (cluster.storage.secret, *cluster.env_from, *cluster.images.pull_secrets) if name]
    key = cluster.serve.api_key if run.serve is not None else None
    for name in dict.fromkeys([*named, *([key] if key else [])]):
        if client.exists("Secret", name):
            yield ok("secrets", f"{name} is there")
        else:
            given = f"{KEY_FROM}=$(openssl rand -hex 24)" if name == key else "KEY=VALUE ..."
            yield fail("secrets", f"Secret {name} does not exist in namespace {client.namespace}",
                       f"kubectl create secret generic {name} -n {client.namespace} --from-literal={given}")


def volumes(client: Client, run: Run, profile: Profile, cluster: Cluster) -> Iterator[Finding]:
    """Whether the claims exist, have or will get a volume, and can be shared where a stage spans nodes."""
    for name in dict.fromkeys(name for name in (cluster.storage.claim, cluster.cache_claim) if name):
        claim = client.find("PersistentVolumeClaim", name)
        if claim is None:
            yield fail("volumes", f"PersistentVolumeClaim {name} does not exist in namespace {client.namespace}",
                       "install the chart there, or name another in the profile")
            continue
        modes, phase = claim["spec"].get("accessModes", []), claim.get("status", {}).get("phase")
        events = [event for event in client.events("PersistentVolumeClaim", name) if event.get("type") == "Warning"]
        if phase == "Lost":
            yield fail("volumes", f"{name} lost its volume", f"kubectl describe pvc {name}")
        elif phase != "Bound" and (events or not claim["spec"].get("storageClassName")):
            why = events[-1].get("message", "") if events else "it names no storage class, and there is no default one"
            yield fail("volumes", f"{name} is {phase}: {why}", "kubectl get storageclass; set storage.storageClass in "
                       "the chart's values")
        elif "ReadWriteMany" not in modes and any(profile.pods_of(stage) for stage in run.stages):
            yield warn("volumes", f"{name} is {phase} with {', '.join(modes)}: all pods of a stage must be on one node",
                       "use ReadWriteMany or s3 for workers on several nodes")
        else:
            yield ok("volumes", f"{name} is {phase}" + ("" if phase == "Bound" else " until its first pod comes"))


def queue(client: Client, cluster: Cluster) -> Iterator[Finding]:
    """Whether the LocalQueue exists, where the profile names one."""
    if cluster.queue is None:
        return
    served = "LocalQueue" if client.has("LocalQueue") else "LocalQueue v1beta1"
    if client.exists(served, cluster.queue):
        yield ok("queue", f"LocalQueue {cluster.queue} is there")
    else:
        yield fail("queue", f"LocalQueue {cluster.queue} does not exist in namespace {client.namespace}",
                   "make it, or remove `queue` from the profile")
