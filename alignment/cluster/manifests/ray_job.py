"""A run, a stage and a profile -> the RayJob that makes the stage.

Pure: the same arguments give the same dict, and nothing is read or asked. Fields are those that KubeRay 1.6 and 1.7
both have. A RayJob ends `SUCCEEDED` only when the stage's artifact exists; whoever made it decides on another attempt.
"""

from __future__ import annotations

import hashlib
import math
import shlex
from typing import Any

from alignment.cluster.manifests.bundle import RUN_FILE
from alignment.cluster.manifests.labels import COMPONENT_LABEL, QUEUE_LABEL, labels, log_attempt
from alignment.cluster.manifests.pods import RUN_FOLDER, Json, cluster_of, object_store_bytes, ray_pod
from alignment.config import AnyStage, Cluster, Pod, Profile, Run, bytes_of
from alignment.errors import ConfigError

RAY_VERSION = "2.60.0"
CODE = "/opt/kubealign"
"""Where the images have the project."""
_LEAST_SHM = 160 * 2**20
"""Half of it is the least that Ray accepts for its object store, and a little."""


def ray_job(
    run: Run, stage: AnyStage, profile: Profile, *, namespace: str, name: str, config_map: str, attempt: int,
    owner: dict[str, Any] | None = None,
) -> Json:
    """The RayJob of one attempt at a stage: a Ray cluster of its own that goes when the stage ends.

    With a Kueue queue it starts suspended, and Kueue starts it: applying it once more would stop that again.

    Args:
        run: as in the bundle, or the one it was made from.
        config_map: name of the ConfigMap that holds the bundle.
        owner: an ownerReference, so that it goes with its owner.

    Raises:
        ConfigError: the profile has no cluster, or its pods cannot hold the stage's workers.
    """
    cluster = cluster_of(profile)
    _check(profile, stage)
    mark = labels(run.name, stage.name, attempt)
    ray = {**mark, COMPONENT_LABEL: "ray"}
    queue = {QUEUE_LABEL: cluster.queue} if cluster.queue is not None else {}
    pods = profile.pods_of(stage)
    pod, head = profile.pod_of(stage), cluster.head if pods else profile.pod_of(stage)

    def template(of: Pod, container: str) -> Json:
        return ray_pod(of, cluster, run, container=container, labels=ray, config_map=config_map,
                       attempt=log_attempt(name))

    group = {
        "groupName": "workers", "replicas": pods, "minReplicas": pods, "maxReplicas": pods,
        "rayStartParams": {
            "num-cpus": str(math.ceil(pod.workers * profile.compute.cpus_per_worker)), "num-gpus": str(pod.gpus),
            "object-store-memory": str(object_store_bytes(pod)),
        },
        "template": template(pod, "ray-worker"),
    }
    return {
        "apiVersion": "ray.io/v1", "kind": "RayJob",
        "metadata": {"name": name, "namespace": namespace, "labels": {**mark, **queue},
                     **({"ownerReferences": [owner]} if owner else {})},
        "spec": {
            "entrypoint": entrypoint(profile, stage),
            # KubeRay's operator asks Ray itself. A pod that submits would be asked for once the Ray pods hold their
            # resources: two runs that fill a node between them then waited for each other without end. (SidecarMode's
            # container has no security context, so `restricted` refuses it.)
            "submissionMode": "HTTPMode",
            "backoffLimit": 0,
            "suspend": cluster.queue is not None,
            # Its Ray pods go at once, and their GPUs with them; the RayJob itself stays.
            "shutdownAfterJobFinishes": True, "ttlSecondsAfterFinished": 0,
            "preRunningDeadlineSeconds": start_within(cluster, name), "activeDeadlineSeconds": cluster.run_within,
            "rayClusterSpec": {
                "rayVersion": RAY_VERSION, "authOptions": {"mode": "token"}, "enableInTreeAutoscaling": False,
                "headGroupSpec": {
                    "rayStartParams": {
                        # With workers the head computes nothing; else it is the stage's one pod.
                        "num-cpus": "0" if pods else str(math.ceil(bytes_of(head.cpu))), "num-gpus": str(head.gpus),
                        "object-store-memory": str(object_store_bytes(head)), "dashboard-host": "0.0.0.0",
                    },
                    "template": template(head, "ray-head"),
                },
                "workerGroupSpecs": [group] if pods else [],
            },
        },
    }


def start_within(cluster: Cluster, name: str) -> int:
    """Seconds that a RayJob of this name may wait for its pods: the profile's, and up to a fifth more.

    Without a queue, two stages may each hold a part of what both need. By different deadlines one gives up first, and
    the other has its pods; with one and the same both would give up, and meet again.
    """
    return cluster.start_within + int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % (cluster.start_within // 5)


def entrypoint(profile: Profile, stage: AnyStage) -> str:
    """The shell command that makes a stage inside a pod that has the bundle."""
    return shlex.join(["python", f"{CODE}/ray_jobs/{stage.script}.py", f"{RUN_FOLDER}/{RUN_FILE}", stage.name,
                       f"compute.workers={profile.workers_of(stage)}"])


def _check(profile: Profile, stage: AnyStage) -> None:
    """Refuse what Ray would wait for without end, or die of at its start."""
    cluster, pod = cluster_of(profile), profile.pod_of(stage)
    where, workers = f"profile {profile.name}, pods of stage {stage.name}", profile.workers_of(stage)
    needed = pod.workers * profile.compute.gpus_per_worker
    if workers and needed > pod.gpus:
        raise ConfigError("a pod has fewer GPUs than its workers ask for, so they would never start", where=where,
                          found=f"gpus: {pod.gpus}, workers: {pod.workers}",
                          expected=f"gpus of {math.ceil(needed)} or more, since compute.gpus_per_worker is "
                                   f"{profile.compute.gpus_per_worker:g}")
    for which in (pod, cluster.head):
        refuse_small_shm(which, where)


def refuse_small_shm(pod: Pod, where: str) -> None:
    """Raise ConfigError where Ray's object store would not start."""
    if bytes_of(pod.shm) < _LEAST_SHM:
        raise ConfigError("/dev/shm is too small for Ray's object store", where=where, found=f"shm: {pod.shm}",
                          expected=f"{_LEAST_SHM // 2**20}Mi or more")
