"""A `Serving` on the Ray cluster at hand: deployed, waited for, told of, watched, and taken away again.

For ray_jobs/serve.py. On Kubernetes KubeRay does this, from the RayService's manifest. Stops no cluster and no Serve:
another application beside may go on.
"""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from alignment.config.serve import Serving
from alignment.distributed.local import ensure_ray
from alignment.distributed.room import wait_for_room
from alignment.distributed.serve import DEPLOYMENT, NAME, application, gpus_of
from alignment.errors import ConfigError, KubeAlignError, StageError
from alignment.progress import waiting

_OURS = re.compile(r"^(alignment(?:\.\w+)*)\.(\w+): (.*)", re.MULTILINE | re.DOTALL)
_LOOKS_S = 1.0


@contextmanager
def deployed(serving: Serving, host: str, port: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The application within the block: its endpoint, and each model's proof by name.

    Raises:
        ConfigError: there is no such cluster, it has no room, its Serve has another port, or serves this already.
        KubeAlignError: the replica could not start; what it said.
    """
    compute = serving.compute.model_copy(update={"gpus_per_worker": gpus_of(serving.compute)})
    ensure_ray(compute)
    serve.start(proxy_location=ProxyLocation.EveryNode, http_options=HTTPOptions(host=host, port=port))
    own = _get_global_client().http_config  # of a Serve that was there before, whatever was asked for
    if (own.host, own.port) != (host, port):
        raise ConfigError("Ray Serve runs on this cluster already, and listens elsewhere", where="--host, --port",
                          found=f"{host}:{port}", expected=f"--host {own.host} --port {own.port}")
    if NAME in serve.status().applications:
        raise ConfigError("models are served on this Ray cluster already", where="the Ray cluster at hand", found=NAME,
                          hint="end the job that serves them: ray job stop JOB")
    wait_for_room(compute, serving.serve.replicas, "serve")
    try:
        handle = _proved(serving)
        yield f"http://{_reached(own.host)}:{own.port}/v1", handle.proofs.remote().result()
    finally:
        serve.delete(NAME, _blocking=False)


def _proved(serving: Serving) -> DeploymentHandle[Any]:
    with waiting(lambda: f"models are loaded and proved: {_told()}"):
        try:
            return serve.run(application(serving.model_dump(mode="json")), name=NAME, route_prefix="/")
        except RuntimeError as error:
            raise not_served(status_words() or str(error)) from error


def _reached(host: str) -> str:
    """An address of this node at which others reach it."""
    return str(ray.util.get_node_ip_address()) if host in ("0.0.0.0", "::") else host


def status_words() -> str:
    """What the status of the application's deployment says of it; serve.run's own error only names the deployment."""
    found = serve.status().applications.get(NAME)
    return "" if found is None else "\n".join(part.message for part in found.deployments.values())


def not_served(message: str) -> KubeAlignError:
    """What a replica said, as the error that it raised, out of a status that has Ray's words around it."""
    said = list(_OURS.finditer(message))
    if not said:
        return StageError(message)
    module, kind, words = said[-1].groups()
    known: type[KubeAlignError] = getattr(importlib.import_module(module), kind, StageError)
    return known(words.strip())


def watched() -> Iterator[str]:
    """What is to be said of the application, as long as it is there."""
    before = ""
    while (now := _told()) != "gone":
        if now != before:
            yield now
        before = now
        time.sleep(_LOOKS_S)


def _told() -> str:
    """Status of the application and numbers of its replicas."""
    found = serve.status().applications.get(NAME)
    if found is None:
        return "gone"
    own = found.deployments.get(DEPLOYMENT)
    states = {} if own is None else own.replica_states
    replicas = ", ".join(f"{count} {state.lower()}" for state, count in states.items())
    return f"{found.status.value.lower()}, replicas: {replicas or 'none'}"
