"""A local port that leads to a pod's port through the API server, as `kubectl port-forward` does, for one block.

Each connection gets a tunnel of its own, so one that breaks breaks nothing else. For Ray's job API; needs the verb
create on pods/portforward.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

from kubernetes import client as kubernetes
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import portforward

from alignment.cluster.client.client import Client
from alignment.cluster.client.refusals import cluster_error


@contextlib.contextmanager
def forwarded(client: Client, pod: str, port: int) -> Iterator[int]:
    """A port of this machine (127.0.0.1) that leads to `port` of `pod` while the block runs.

    Raises:
        ClusterError: the API server refuses the tunnel.
    """
    _tunnel(client, pod, port).close()  # what would be refused is refused here, with its reason
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_serve, args=(server, client, pod, port), daemon=True, name=f"port {port}").start()
        yield int(server.getsockname()[1])


def ray_head(client: Client, cluster: str) -> str:
    """Name of the running head pod of a RayCluster.

    Raises:
        ClusterError: there is no such RayCluster, or its head does not run.
    """
    pods = client.list("Pod", {"ray.io/cluster": cluster, "ray.io/node-type": "head"})
    running = [pod for pod in pods if pod.get("status", {}).get("phase") == "Running"]
    if not running:
        there = client.find("RayCluster", cluster)
        raise cluster_error(
            "the RayCluster has no running head pod" if there else "there is no such RayCluster",
            where=f"namespace {client.namespace}", found=cluster, expected="the chart's RayCluster",
            hint=f"kubectl describe raycluster {cluster} -n {client.namespace}" if there else
            "install the chart with rayCluster.enabled=true, or use --target rayjob or run")
    return str(running[0]["metadata"]["name"])


def _tunnel(client: Client, pod: str, port: int) -> Any:
    try:
        # An ApiClient of its own: the library swaps a method of the one that it is called on.
        api = kubernetes.CoreV1Api(kubernetes.ApiClient(client.api.configuration))
        tunnel = portforward(api.connect_get_namespaced_pod_portforward, pod, client.namespace, ports=str(port))
    except ApiException as error:
        raise cluster_error(f"no tunnel to the pod: {error.reason}", where=f"pod {pod}, port {port}",
                            hint="this needs the verb create on pods/portforward; or give --address") from error
    return tunnel.socket(port)


def _serve(server: socket.socket, client: Client, pod: str, port: int) -> None:
    while True:
        try:
            near, _ = server.accept()
        except OSError:
            return  # the block has ended
        try:
            far = _tunnel(client, pod, port)
        except Exception:
            near.close()  # the caller sees a connection that is closed, and tries again
            continue
        for source, target in ((near, far), (far, near)):
            threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: Any, target: Any) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            end.close()
