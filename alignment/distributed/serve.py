"""A served replica on Ray Serve: the models of a `Serving`, each proved before anybody is answered.

    serveConfigV2: {applications: [{name: kubealign, route_prefix: /,
                                    import_path: alignment.distributed.serve:application,
                                    args: Serving.model_dump(mode="json")}]}

Launched by KubeRay on a cluster, or by ray_jobs/serve.py (deploy.py). A replica finds its artifacts by key, loads them,
asks their recorded rows by its own application and raises where one model is not what was recorded, so that Ray never
sends it a request. One whose engine has ended is replaced. The application is that of `kubealign serve`, its limits
too: Ray only hands requests on, and refuses none that it would not.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

from ray import serve

from alignment.artifacts import Artifact, Store
from alignment.config import Compute
from alignment.config.serve import Serve, Serving
from alignment.config.yaml_file import parse_tree, validated
from alignment.config.yaml_text import dump
from alignment.errors import ArtifactError, ConfigError, KubeAlignError, ModelError, StageError
from alignment.serving.hosts import KEY_FROM, NO_KEY, checked_key

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from alignment.serving.service import Model, Service

NAME = "kubealign"
"""Of the application."""
DEPLOYMENT = "models"
_BEYOND = 64
"""Requests that a replica takes beside those that it answers: to refuse them, and to tell of itself."""
_LOOKS_S = 2.0
"""Seconds between two looks at a replica's engines; after three that failed it is replaced."""


class Models:
    """One replica."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._arguments = arguments

    async def __serve_build_asgi_app__(self) -> Starlette:
        """Called once, before Ray knows of the replica. Raises KubeAlignError where it has nothing that is proved."""
        try:
            self._service, app = await _proved(read(self._arguments))
        except KubeAlignError:
            # Ray's status has the traceback as text, above what was said. This process has no other error to tell of.
            # Not 0: of what comes of it Ray takes two lines away, which it holds for a frame.
            sys.tracebacklimit = 1
            raise
        return app

    async def check_health(self) -> None:
        """Raises StageError where an engine has ended."""
        if self._service.trouble is not None:
            raise StageError("an engine of this replica has ended", found=self._service.trouble)

    async def proofs(self) -> dict[str, dict[str, Any]]:
        """By name, what became of each model's proof."""
        return {model.name: {"artifact": model.artifact.key, **model.proof} for model in self._service.models.values()}


def application(arguments: dict[str, Any]) -> serve.Application:
    """What Ray Serve runs of a `Serving`, which comes as a dict.

    Raises:
        ConfigErrors: it is none.
    """
    serving = read(arguments)
    said, compute = serving.serve, serving.compute
    actor: dict[str, Any] = {"num_cpus": compute.cpus_per_worker, "num_gpus": gpus_of(compute)}
    if NO_KEY in os.environ:
        actor["runtime_env"] = {"env_vars": {NO_KEY: os.environ[NO_KEY]}}
    most = 2 * said.limits.in_flight + _BEYOND
    made: Any = serve.deployment(serve.ingress()(Models), name=DEPLOYMENT)
    bound: serve.Application = made.options(
        **_number(said),
        ray_actor_options=actor,
        max_ongoing_requests=most,
        # Beyond those: of as many, each proxy lets some wait for a moment, and refuses the others as we do.
        max_queued_requests=most,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        # An answer that has begun is ended, and takes no longer than this.
        graceful_shutdown_timeout_s=said.limits.seconds,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=_LOOKS_S,
        # A proof that fails will fail again; a replica that met a store which did not answer has another go.
        max_constructor_retry_count=said.replicas + 1,
    ).bind(serving.model_dump(mode="json"))
    return bound


def read(arguments: dict[str, Any]) -> Serving:
    """Raises ConfigErrors, which name the keys."""
    _, tree = parse_tree(dump(arguments), "args", "serving", "store: ..., models: {...}, compute: {...}, serve: {...}")
    return validated(Serving, tree)


def gpus_of(compute: Compute) -> float:
    """GPUs of one replica."""
    return compute.gpus_per_worker or (1.0 if compute.device == "cuda" else 0.0)


def _number(said: Serve) -> dict[str, Any]:
    """How many replicas, as Ray Serve has it."""
    if said.max_replicas is None:
        return {"num_replicas": said.replicas}
    return {"autoscaling_config": {"min_replicas": said.replicas, "initial_replicas": said.replicas,
                                   "max_replicas": said.max_replicas, "target_ongoing_requests": said.target}}


# --- in the replica ------------------------------------------------------------------------------------------


async def _proved(serving: Serving) -> tuple[Service, Starlette]:
    """A server whose models all are what was recorded, and its application.

    Raises:
        KubeAlignError: one of them is not, or nothing can be served; says which model, and how it differs.
    """
    from alignment.serving.app import build
    from alignment.serving.opened import opened
    from alignment.serving.proving import prove_all

    said, key = serving.serve, _key()
    service = await asyncio.to_thread(opened, _found(serving), _compute(serving.compute), said.limits,
                                      unproved=said.unproved, key=key,
                                      pooling=said.pooling)
    app = build(service, prove=False)
    try:
        await asyncio.to_thread(service.load)
        await prove_all(service, app)
        if failed := [model for model in service.models.values() if model.state != "ready"]:
            raise _error(failed)
    except BaseException:
        await asyncio.to_thread(service.close)
        raise
    return service, app


def _key() -> str | None:
    """Raises ConfigError where there is no key, and nobody said that there should be none."""
    given = os.environ.get(KEY_FROM)
    if given:
        return checked_key(given, KEY_FROM)
    if os.environ.get(NO_KEY) == "1":
        return None
    raise ConfigError("a replica that other machines reach needs an API key, and its environment has none",
                      where=KEY_FROM, expected=f"the key, or {NO_KEY}=1 where whoever reaches it may ask")


def _found(serving: Serving) -> dict[str, Artifact]:
    store, found, missing = Store(serving.store), dict[str, Artifact](), list[str]()
    for name, key in serving.models.items():
        try:
            artifact = store.find(key)
        except ArtifactError as error:
            error.where = f"model {name} ({key}), {error.where}"
            raise
        if artifact is None:
            missing.append(f"{name} ({key})")
        else:
            found[name] = artifact
    if missing:
        raise ModelError(f"no finished artifact in the store {store.url}", where=f"model {missing[0]}",
                         expected="every model that is served to be finished there",
                         hint=f"also {', '.join(missing[1:])}" if missing[1:] else None)
    return found


def _compute(compute: Compute) -> Compute:
    """As it is in this process, which is the one that computes."""
    return compute.model_copy(update={"workers": 0, "address": None, "device": "cuda" if gpus_of(compute) else "cpu"})


def _error(failed: list[Model]) -> ModelError:
    first, *others = failed
    record = "" if first.record is None else f", as {first.record.source} has it"
    return ModelError(f"not proved, so this replica answers nobody: {first.trouble}",
                      where=f"model {first.name} ({first.artifact.key})",
                      expected=f"what was recorded of it{record}",
                      hint="; ".join(f"also {model.name} ({model.artifact.key}): {model.trouble}" for model in others)
                      or None)
