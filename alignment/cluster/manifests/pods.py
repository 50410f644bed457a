"""What pods of a stage look like: security, volumes, environment, resources. Pure functions to plain dicts.

Every pod passes Pod Security `restricted` with a read-only root file system; what Ray, torch and the hub write goes to
/tmp, HOME, /dev/shm and the cache. Does not know KubeRay's objects around the pods: `ray_job` does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from alignment.cluster.manifests.bundle import items
from alignment.cluster.manifests.labels import ATTEMPT_LABEL, COMPONENT_LABEL, RUN_LABEL, STAGE_LABEL
from alignment.config import Cluster, Pod, Profile, Run, bytes_of
from alignment.errors import ConfigError
from alignment.interrupt import SAVE_FILE
from alignment.pipeline.echo import ECHO
from alignment.pipeline.job import OWN_CLUSTER

Json = dict[str, Any]

HOME, CACHE, RUN_FOLDER = "/home/kubealign", "/cache", "/etc/kubealign/run"
AGENT_PORT = 52365
"""Of Ray's agent in every Ray pod, which knows whether its node is well; needs no token."""
POD_SECURITY: Json = {
    "runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000,
    "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Json = {
    "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True,
}
GRACE = 120
"""Seconds from a pod's SIGTERM to its end; of them `KUBEALIGN_GRACE_S` are for a training to save."""
_TO_SAVE = GRACE - 30
SAVE = "/tmp/kubealign-save"
CAUGHT = (f"for i in $(seq {GRACE - _TO_SAVE - 15}); do "
          "grep -Eq '^SigCgt:.*[4-7c-f][0-9a-f]{3}$' /proc/1/status && break; sleep 1; done; true")
"""Waits until `ray start` catches SIGTERM (bit 15 of SigCgt), which takes it some seconds: the kernel drops a signal
that process 1 does not catch, and the pod would keep its GPU to the end of its grace."""
STOP_STAGE = ('pid=$(cat /tmp/kubealign-stage.pid 2>/dev/null) && kill -TERM "$pid" && '
              f'for i in $(seq {_TO_SAVE + 10}); do kill -0 "$pid" 2>/dev/null || break; sleep 1; done; {CAUGHT}')
"""Ends the stage's driver on the head before `ray start` is told, which would not tell it: its training is saved, the
lease is given back, and the log is complete. Nothing is at work, nothing is ended."""
SAVE_FIRST = (f'pid=$(cat {SAVE}.pid 2>/dev/null) && kill -0 "$pid" 2>/dev/null && touch {SAVE} && '
              f'for i in $(seq {_TO_SAVE}); do [ -e {SAVE} ] && kill -0 "$pid" 2>/dev/null || break; sleep 1; done; '
              f'{CAUGHT}')
"""Has a training that is at work in a worker's pod saved, by all of its workers, before `ray start` is told."""
_SMALL = Pod(cpu="200m", memory="512Mi", shm="64Mi", scratch="1Gi")
"""A pod that only speaks to others: a look into the storage."""


def ray_pod(
    pod: Pod, cluster: Cluster, run: Run, *, container: str, labels: dict[str, str], config_map: str, attempt: str
) -> Json:
    """Pod template of a Ray head or worker.

    Args:
        run: names the files in `config_map`; either the bundle's run or the one that it was made from.
        container: the name that KubeRay's documents give it: ray-head or ray-worker.
        attempt: what its log is called by, after the stage.
    """
    workers = container == "ray-worker"
    volumes = {
        **writable(), **storage_of(cluster),
        "run": (RUN_FOLDER, {"configMap": {"name": config_map, "items": items(run)}}),
        "cache": (CACHE, {"persistentVolumeClaim": {"claimName": cluster.cache_claim}} if cluster.cache_claim
                  else {"emptyDir": {}}),
        "shm": ("/dev/shm", {"emptyDir": {"medium": "Memory", "sizeLimit": pod.shm}}),
    }
    env = {
        # Ray gives a process one thread where it was given no whole CPU, and every stage's driver is such a process.
        "OMP_NUM_THREADS": str(max(1, math.floor(bytes_of(pod.cpu) / (pod.workers if workers else 1)))),
        "HF_HOME": f"{CACHE}/huggingface", "RAY_USAGE_STATS_ENABLED": "0",
        # A pod that is told to go has one stage, which was stopped by then (or resumes elsewhere): Ray's 30 s of
        # waiting for other work would only keep the GPU.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "5",
        **cluster.env,
        "HOME": HOME, "KUBEALIGN_CACHE": CACHE, "KUBEALIGN_ATTEMPT": attempt,
        "KUBEALIGN_GRACE_S": str(_TO_SAVE),
        # KubeRay says it too, unless it is said: so no Secret in `env_from` can say otherwise.
        "RAY_AUTH_MODE": "token",
        # ECHO: into the container's own output, which `kubectl logs` and collectors of logs read.
        **({SAVE_FILE: SAVE} if workers else {ECHO: "/proc/1/fd/1", OWN_CLUSTER: "1"}),
    }
    ports = {"metrics": 8080} if workers else {"gcs-server": 6379, "dashboard": 8265, "metrics": 8080}
    made = container_of(
        container, cluster.images.train, cluster, pod, env, [cluster.storage.secret, *cluster.env_from], volumes,
        # A stage takes all the CPU that its pod has, and the agent then answers late.
        ports=ports_of(ports), readinessProbe=healthy(failures=10), livenessProbe=healthy(failures=60),
        lifecycle=before_stop(SAVE_FIRST if workers else STOP_STAGE), workingDir=RUN_FOLDER,
    )
    spec = {**spec_of(cluster, made, volumes), "terminationGracePeriodSeconds": GRACE, **placed(pod)}
    if workers and cluster.spread:
        spec["topologySpreadConstraints"] = spread(
            {key: labels[key] for key in (RUN_LABEL, STAGE_LABEL, ATTEMPT_LABEL, COMPONENT_LABEL)})
    return {"metadata": {"labels": dict(labels)}, "spec": spec}


def store_pod(
    cluster: Cluster, labels: dict[str, str], args: list[str], run: Run | None, config_map: str | None
) -> Json:
    """Pod template of the control image with the storage: runs `args`, a whole command line."""
    volumes = {**writable(), **storage_of(cluster), "cache": (CACHE, {"emptyDir": {}})}
    if run is not None and config_map is not None:
        volumes["run"] = (RUN_FOLDER, {"configMap": {"name": config_map, "items": items(run)}})
    made = container_of(
        "store", cluster.images.control, cluster, _SMALL, {"HOME": HOME, "KUBEALIGN_CACHE": CACHE},
        [cluster.storage.secret], volumes, command=list(args), workingDir=RUN_FOLDER if "run" in volumes else HOME,
    )
    spec = {**spec_of(cluster, made, volumes), "restartPolicy": "Never"}
    return {"metadata": {"labels": dict(labels)}, "spec": spec}


def cluster_of(profile: Profile) -> Cluster:
    """What the profile says of the cluster. Raises ConfigError where it is for this machine."""
    if profile.cluster is None:
        raise ConfigError("the profile is for this machine, not for Kubernetes", where=f"profile {profile.name}",
                          expected="a profile with `cluster`", hint="for example --profile dev-cpu")
    return profile.cluster


def object_store_bytes(pod: Pod) -> int:
    """Ray's object store: half of /dev/shm; the other half is for NCCL, gloo and torch."""
    return int(bytes_of(pod.shm)) // 2


Volumes = dict[str, tuple[str, Json]]
"""Name -> where it is mounted, and what it is."""


def writable() -> Volumes:
    """What a pod with a read-only root needs to write to."""
    return {"tmp": ("/tmp", {"emptyDir": {}}), "home": (HOME, {"emptyDir": {}})}


def storage_of(cluster: Cluster) -> Volumes:
    """The volume that holds the artifacts; none with object storage."""
    storage = cluster.storage
    if storage.claim is None:
        return {}
    return {"artifacts": (storage.mount, {"persistentVolumeClaim": {"claimName": storage.claim}})}


def container_of(
    name: str, image: str, cluster: Cluster, pod: Pod, env: dict[str, str], secrets: list[str | None],
    volumes: Volumes, **more: Any,
) -> Json:
    """A container with the pod's whole resources, and the keys of `secrets` in its environment."""
    resources = {"cpu": pod.cpu, "memory": pod.memory, "ephemeral-storage": pod.scratch, **pod.extra_resources}
    if pod.gpus:
        resources[pod.gpu_resource] = str(pod.gpus)
    return {
        "name": name, "image": image, "imagePullPolicy": cluster.images.pull_policy,
        "env": [{"name": key, "value": env[key]} for key in sorted(env)],
        "envFrom": [{"secretRef": {"name": secret}} for secret in dict.fromkeys(secrets) if secret is not None],
        # Asked for is what may be used: the last to be evicted, and no stage that is fast only while others sleep.
        "resources": {"requests": resources, "limits": dict(resources)},
        "securityContext": copy.deepcopy(CONTAINER_SECURITY), "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": key, "mountPath": path, **({"readOnly": True} if key == "run" else {})}
                         for key, (path, _) in volumes.items()],
        **more,
    }


def spec_of(cluster: Cluster, container: Json, volumes: Volumes) -> Json:
    """A pod's spec around its one container."""
    spec: Json = {
        "automountServiceAccountToken": False,
        # Variables of a service called `ray` would be read by Ray as its own.
        "enableServiceLinks": False,
        "securityContext": copy.deepcopy(POD_SECURITY), "containers": [container],
        "volumes": [{"name": key, **source} for key, (_, source) in volumes.items()],
    }
    if cluster.images.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in cluster.images.pull_secrets]
    return spec


def placed(pod: Pod) -> Json:
    """What a pod's spec says of the nodes that may hold it."""
    tolerations = [entry.model_dump(exclude_none=True) for entry in pod.tolerations]
    if pod.gpus:
        tolerations.append({"key": pod.gpu_resource, "operator": "Exists", "effect": "NoSchedule"})
    return {**({"nodeSelector": dict(pod.node_selector)} if pod.node_selector else {}),
            **({"tolerations": tolerations} if tolerations else {})}


def spread(same: Mapping[str, str]) -> list[Json]:
    """Constraints that spread Ray workers with these labels over nodes, where that is possible."""
    return [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
             "labelSelector": {"matchLabels": {**same, "ray.io/node-type": "worker"}}}]


def ports_of(named: Mapping[str, int]) -> list[Json]:
    """A container's ports."""
    return [{"name": name, "containerPort": port} for name, port in named.items()]


def before_stop(script: str) -> Json:
    """A container's lifecycle whose shell script ends before it is sent SIGTERM."""
    return {"preStop": {"exec": {"command": ["/bin/sh", "-c", script]}}}


def healthy(failures: int) -> Json:
    """Probe of Ray's agent, which may fail so many times in a row."""
    return {"httpGet": {"path": "/api/healthz", "port": AGENT_PORT}, "initialDelaySeconds": 5, "periodSeconds": 5,
            "timeoutSeconds": 10, "failureThreshold": failures}
