"""Room for a stage's workers on the Ray cluster: there now, still to come, or never.

Ray waits for resources without a word, and for ever. `wait_for_room` asks it for them first: what can never be given is
an error at once, and what is awaited is said every 15 seconds. Starts no worker and keeps nothing: the room is given
back as soon as it is there, and Ray Train or Ray Data takes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from alignment.config import Compute
from alignment.errors import ConfigError
from alignment.progress import waiting

Resources = Mapping[str, float]
_SLACK = 1e-6
"""Ray counts resources in ten-thousandths."""


def wait_for_room(compute: Compute, workers: int, where: str) -> None:
    """Return once the cluster has room for `workers` workers at the same time.

    Args:
        where: the stage, for what is said.

    Raises:
        ConfigError: the cluster is as large as it gets, and that is too small.
    """
    from ray.util import placement_group, remove_placement_group

    need = needed(compute)
    asked = f"{workers} workers" if workers > 1 else "a worker"
    asked += f" of {_said(need)}" + (" each" if workers > 1 else "")
    # A placement group is demand: an autoscaler sees it, and Ray's own scheduler decides whether it fits.
    group = placement_group([dict(need)] * workers)
    try:
        with waiting(lambda: f"{where}: waits for {asked}; the cluster has {_seen()}"):
            while not group.wait(1.0):
                if not may_fit(compute, workers):
                    raise ConfigError(
                        f"the Ray cluster has no room for {asked}, and does not grow", where=where,
                        found=_seen(), expected=f"nodes with room for {asked}",
                        hint="lower compute.workers, compute.cpus_per_worker or compute.gpus_per_worker, or join a "
                             "larger cluster")
    finally:
        remove_placement_group(group)


def needed(compute: Compute) -> dict[str, float]:
    """What Ray sets aside for each worker."""
    return {"CPU": compute.cpus_per_worker} | ({"GPU": compute.gpus_per_worker} if compute.gpus_per_worker else {})


def fitting(nodes: Iterable[Resources], need: Resources) -> int:
    """How many workers fit on the nodes, each worker as a whole on one of them."""
    return sum(min(int(node.get(name, 0.0) / amount + _SLACK) for name, amount in need.items()) for node in nodes)


def may_fit(compute: Compute, workers: int) -> bool:
    """Whether the cluster holds so many workers when nothing else runs, or may grow until it does."""
    from ray._private.state import state

    need = needed(compute)
    if fitting(_nodes(), need) >= workers:
        return True
    most = state.get_max_resources_from_cluster_config()  # what Ray Train asks as well; None without an autoscaler
    if most is not None:
        return all(most.get(name, 0) + _SLACK >= amount * workers for name, amount in need.items())
    # KubeRay's pods come one by one. Other clusters are taken for whole: who starts nodes by hand starts them first.
    return "RAY_USAGE_STATS_KUBERAY_IN_USE" in os.environ


def _nodes() -> list[Resources]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _seen() -> str:
    """`2 CPU and 0 GPU on 1 node, 0 CPU and 0 GPU of them free`."""
    import ray

    nodes, free = _nodes(), ray.available_resources()
    whole: dict[str, Any] = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    return (f"{_said(whole)} on {len(nodes)} node{'' if len(nodes) == 1 else 's'}, "
            f"{_said({name: free.get(name, 0.0) for name in whole})} of them free")


def _said(resources: Resources) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())
