"""The Ray cluster of this process: the run's `compute.address`, the cluster it runs in, or a private local one.

Joins and starts clusters, never stops one that others may use: a private cluster ends with this process.
"""

from __future__ import annotations

import logging
import math
import os
from typing import Any

from alignment.config import Compute
from alignment.errors import ConfigError, KubeAlignError

ENVIRONMENT = {
    # Ray Train: no second copy of every print; a dead worker is noticed in a fifth of a second, not two.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Workers read models from artifacts; none of them should ever ask a hub.
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Set in this process and in its workers, where the user has set nothing else."""


def ensure_ray(compute: Compute) -> None:
    """Connect this process to Ray, once.

    Raises:
        ConfigError: there is no cluster at the address.
    """
    for name, value in ENVIRONMENT.items():
        if name != "HF_HUB_OFFLINE":  # the driver may still have a model to fetch in a later stage
            os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return
    # A Ray job and a pod of a cluster have RAY_ADDRESS set.
    address = compute.address or os.environ.get("RAY_ADDRESS") or "local"
    own = address == "local"
    needed = math.ceil(compute.workers * compute.cpus_per_worker)
    try:
        ray.init(
            address=address,
            # One more than the workers need, since Ray's own tasks (reading, the train controller) take CPUs too.
            **({"num_cpus": max(os.cpu_count() or 1, needed + 1), "include_dashboard": False} if own else {}),
            runtime_env={"env_vars": {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}},
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except ConnectionError as error:
        raise ConfigError(f"no Ray cluster answers: {error}", where="compute.address", found=address,
                          expected="auto, HOST:PORT, ray://HOST:PORT, or nothing for a local one") from error


def users_error(error: BaseException) -> KubeAlignError | None:
    """The user's error inside Ray's wrapping, if there is one: found along causes and in worker failures."""
    seen: set[int] = set()
    queue: list[Any] = [error]
    while queue:
        item = queue.pop()
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, KubeAlignError):
            return item
        queue += [getattr(item, name, None) for name in ("__cause__", "__context__", "cause")]
        failures = getattr(item, "worker_failures", None)
        queue += list(failures.values()) if isinstance(failures, dict) else []
    return None
