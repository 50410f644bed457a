"""A run's models, a profile and a revision -> the RayService that serves them.

Pure: the same arguments give the same dict, and nothing is read or asked. Any change of models, settings, pods or
their number is another Ray cluster, which takes over once its replicas have proved their models; until then the one
before goes on. KubeRay 1.6 alone would not do so: it gives other arguments to the replicas that answer, which then
answer nobody for a while, and takes no notice of another number of pods or of tolerations. So the templates carry a
digest of the whole. Does not know the operator, which decides when there is another revision.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import yaml

from alignment.cluster.manifests.autoscaler import autoscaler, with_token
from alignment.cluster.manifests.labels import COMPONENT_LABEL, REVISION_LABEL, RUN_LABEL, labels, service_name
from alignment.cluster.manifests.pods import (
    CACHE,
    CAUGHT,
    HOME,
    Json,
    before_stop,
    cluster_of,
    container_of,
    healthy,
    object_store_bytes,
    placed,
    ports_of,
    spec_of,
    spread,
    storage_of,
    writable,
)
from alignment.cluster.manifests.ray_job import RAY_VERSION, refuse_small_shm
from alignment.config import Cluster, Pod, Profile, Serving, bytes_of
from alignment.errors import ConfigError
from alignment.serving.draining import DRAIN_FILE, IN_FLIGHT
from alignment.serving.hosts import NO_KEY, REVISION, SERVICE

APPLICATION = "kubealign"
IMPORT_PATH = "alignment.distributed.serve:application"
PORT = 8000
DIGEST = "kubealign.dev/digest"
"""Annotation of the templates, by which any change is another Ray cluster."""
DRAIN = "/tmp/kubealign-drain"
_BEYOND = 15
"""Seconds of waiting in a preStop hook beyond the longest request."""


def ray_service(
    serving: Serving, profile: Profile, *, run: str, revision: int, namespace: str,
    owner: dict[str, Any] | None = None, annotations: Mapping[str, str] | None = None,
) -> Json:
    """The RayService of a run: a head that answers nobody, and one pod for each replica.

    Args:
        serving: all that a replica is told. Its `compute` becomes the pod's: a replica asks Ray for all the CPUs
            (`cpus_per_worker`) and GPUs (`gpus_per_worker`) of one, so that there is one in each.
        revision: stands in the pods' labels and environment, so that proofs in the store say whose they are.
        owner: an ownerReference, so that it goes with its owner.
        annotations: of the RayService; KubeRay copies them to the Ray clusters that it makes.

    Raises:
        ConfigError: the profile has no cluster, or its pods cannot hold a replica.
    """
    cluster = cluster_of(profile)
    head, worker = cluster.serve.head or cluster.head, cluster.serve.worker or cluster.worker
    _check(profile, head, worker)
    name, number = service_name(run), serving.serve
    mark = {**labels(run), REVISION_LABEL: str(revision)}
    pods = {**mark, COMPONENT_LABEL: "serve"}
    cpus, gpus = math.ceil(bytes_of(worker.cpu)), 0 if serving.compute.device == "cpu" else worker.gpus
    told = serving.model_copy(update={"compute": serving.compute.model_copy(update={
        "workers": 0, "cpus_per_worker": float(cpus), "gpus_per_worker": float(gpus)})})
    env = {**_env(cluster, worker), REVISION: str(revision), SERVICE: name}
    whole: Json = {
        "rayVersion": RAY_VERSION, "authOptions": {"mode": "token"},
        **autoscaler(cluster, number.max_replicas is not None),
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0",
                               "object-store-memory": str(object_store_bytes(head))},
            "template": with_token(_head(head, cluster, env, pods, serving), number.max_replicas is not None),
        },
        "workerGroupSpecs": [{
            "groupName": "replicas", "replicas": number.replicas, "minReplicas": number.replicas,
            "maxReplicas": number.max_replicas or number.replicas,
            "rayStartParams": {"num-cpus": str(cpus), "num-gpus": str(gpus),
                               "object-store-memory": str(object_store_bytes(worker))},
            "template": _replica(worker, cluster, env, pods, serving),
        }],
    }
    config = yaml.safe_dump(_serve_config(told), sort_keys=False, allow_unicode=True)
    digest = hashlib.sha256(json.dumps([whole, config], sort_keys=True).encode()).hexdigest()[:16]
    for group in (whole["headGroupSpec"], *whole["workerGroupSpecs"]):
        group["template"]["metadata"]["annotations"] = {DIGEST: digest}
    return {
        "apiVersion": "ray.io/v1", "kind": "RayService",
        "metadata": {"name": name, "namespace": namespace, "labels": mark,
                     **({"annotations": dict(annotations)} if annotations else {}),
                     **({"ownerReferences": [owner]} if owner else {})},
        "spec": {
            "upgradeStrategy": {"type": "NewCluster"}, "rayClusterDeletionDelaySeconds": cluster.serve.keep_old,
            "excludeHeadPodFromServeSvc": True, "serveConfigV2": config, "rayClusterConfig": whole,
        },
    }


def endpoint_of(run: str, namespace: str) -> str:
    """The base URL that clients within the cluster use, whichever revision answers."""
    return f"http://{service_name(run)}-serve-svc.{namespace}.svc:{PORT}/v1"


def _serve_config(serving: Serving) -> Json:
    return {
        # KubeRay's service asks each replica's own pod, by the proxy in it.
        "proxy_location": "EveryNode", "http_options": {"host": "0.0.0.0", "port": PORT},
        "applications": [{
            "name": APPLICATION, "route_prefix": "/", "import_path": IMPORT_PATH,
            "args": serving.model_dump(mode="json"),
        }],
    }


def _env(cluster: Cluster, worker: Pod) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": str(max(1, math.floor(bytes_of(worker.cpu)))),
        "HF_HOME": f"{CACHE}/huggingface", "RAY_USAGE_STATS_ENABLED": "0",
        # The pod was drained by then.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "5",
        **cluster.env,
        "HOME": HOME, "KUBEALIGN_CACHE": CACHE,
        # KubeRay says it too, unless it is said: so no Secret in `env_from` can say otherwise.
        "RAY_AUTH_MODE": "token",
    }


def _replica(pod: Pod, cluster: Cluster, env: dict[str, str], labels: dict[str, str], serving: Serving) -> Json:
    volumes = {
        **writable(), **storage_of(cluster), **_shm(pod),
        "cache": (CACHE, {"persistentVolumeClaim": {"claimName": cluster.cache_claim}} if cluster.cache_claim
                  else {"emptyDir": {}}),
    }
    env = {**env, DRAIN_FILE: DRAIN, **({} if cluster.serve.api_key else {NO_KEY: "1"})}
    made = container_of(
        "ray-worker", cluster.images.train, cluster, pod, env,
        [cluster.storage.secret, *cluster.env_from, cluster.serve.api_key], volumes,
        ports=ports_of({"serve": PORT, "metrics": 8080}),
        readinessProbe=_listens(),
        livenessProbe=healthy(failures=60), lifecycle=before_stop(drained(_longest(serving))), workingDir=HOME,
    )
    template = _template(pod, cluster, made, volumes, labels, serving)
    if cluster.spread:
        template["spec"]["topologySpreadConstraints"] = spread(
            {key: labels[key] for key in (RUN_LABEL, REVISION_LABEL, COMPONENT_LABEL)})
    return template


def _listens() -> Json:
    """Probe of the proxy of Ray Serve in a replica's pod, which listens while the replica still proves its models.

    KubeRay turns its service to a new cluster when all replicas run. Were a pod ready by /-/healthz, which waits for
    the same, it would be ready some seconds later, and who connects meanwhile would be refused. Nobody is answered too
    early: no service leads to a cluster whose application does not run, and a proxy sends requests to replicas alone
    that run, on whichever node.
    """
    return {"tcpSocket": {"port": PORT}, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 2}


def _head(pod: Pod, cluster: Cluster, env: dict[str, str], labels: dict[str, str], serving: Serving) -> Json:
    """Knows neither the storage's keys nor the clients': it schedules, and opens no model."""
    volumes = {**writable(), **_shm(pod)}
    made = container_of(
        "ray-head", cluster.images.train, cluster, pod, {**env, "OMP_NUM_THREADS": "1"}, [], volumes,
        # KubeRay makes its service of the head's port of this name, though no head answers there.
        ports=ports_of({"gcs-server": 6379, "dashboard": 8265, "serve": PORT, "metrics": 8080}),
        readinessProbe=healthy(failures=10), livenessProbe=healthy(failures=60),
        lifecycle=before_stop(alone(_longest(serving))), workingDir=HOME,
    )
    return _template(pod, cluster, made, volumes, labels, serving)


def _template(
    pod: Pod, cluster: Cluster, container: Json, volumes: dict[str, tuple[str, Json]], labels: dict[str, str],
    serving: Serving,
) -> Json:
    spec = {**spec_of(cluster, container, volumes), "terminationGracePeriodSeconds": _longest(serving) + 30,
            **placed(pod)}
    return {"metadata": {"labels": dict(labels)}, "spec": spec}


def _shm(pod: Pod) -> dict[str, tuple[str, Json]]:
    return {"shm": ("/dev/shm", {"emptyDir": {"medium": "Memory", "sizeLimit": pod.shm}})}


def _longest(serving: Serving) -> int:
    """Seconds that a hook waits at most for the answers that a replica is at: as long as one may take."""
    return math.ceil(serving.serve.limits.seconds) + _BEYOND


def drained(seconds: int) -> str:
    """Shell script that has a replica end its clients' connections with their next answers, and waits until, for two
    seconds on end, it is at no answer (it counts them beside the file) and nobody is connected to its pod's proxy
    (port 8000 is 1F40 in the kernel's table, and 01 a connection that stands)."""
    proxy = "grep -qE '^ *[0-9]+: [0-9A-F]+:1F40 [0-9A-F]+:[0-9A-F]+ 01 ' /proc/net/tcp /proc/net/tcp6 2>/dev/null"
    return (f"touch {DRAIN}; sleep 2; idle=0; for i in $(seq {2 * seconds}); do "
            f"n=$(cat {DRAIN}{IN_FLIGHT} 2>/dev/null || echo 0); "
            f'if [ "$n" = 0 ] && ! {proxy}; then idle=$((idle + 1)); else idle=0; fi; '
            f"[ $idle -lt 4 ] || break; sleep 0.5; done; {CAUGHT}")


def alone(seconds: int) -> str:
    """Shell script that waits until the replicas are gone, which would not outlive their head by long: until no other
    address is connected to the head's GCS (port 6379 is 18EB)."""
    connected = ('awk \'$2 ~ /:18EB$/ && $4 == "01" {split($2, a, ":"); split($3, b, ":"); if (a[1] != b[1]) n++} '
                 "END {exit !n}' /proc/net/tcp /proc/net/tcp6 2>/dev/null")
    return f"for i in $(seq {seconds}); do {connected} || break; sleep 1; done; {CAUGHT}"


def _check(profile: Profile, head: Pod, worker: Pod) -> None:
    """Refuse what would never start, or what nothing obeys."""
    where = f"profile {profile.name}, cluster.serve"
    for which, pod in (("head", head), ("worker", worker)):
        refuse_small_shm(pod, f"{where}.{which}")
    if profile.compute.device == "cuda" and not worker.gpus:
        raise ConfigError("a replica has no GPU, and compute.device asks for one", where=where,
                          found="worker.gpus: 0, compute.device: cuda",
                          expected="cluster.serve.worker.gpus of 1 or more")
