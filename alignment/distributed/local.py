"""The Ray cluster of this process: the run's `compute.address`, the cluster it runs in, or a private local one.

Joins and starts clusters, never stops one that others may use: a private cluster ends with this process.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from alignment.config import Compute
from alignment.errors import ConfigError, KubeAlignError, StageError
from alignment.progress import waiting

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
_FORWARDED = ("OMP_WAIT_POLICY", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE",
              "TRANSFORMERS_VERBOSITY")
"""What the pipeline has set in this process; workers on other machines do not inherit it."""


class WorkersLost(StageError):
    """Worker processes or their machines went away too often. Nothing the user wrote need be wrong."""

    transient = True


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
    handler = signal.getsignal(signal.SIGTERM)
    needed = math.ceil(compute.workers * compute.cpus_per_worker)
    try:
        with waiting(lambda: "waits for Ray to start here" if own else f"waits for the Ray cluster at {address}"):
            ray.init(
                address=address,
                # One more than the workers need, since Ray's own tasks (reading, the train controller) take CPUs too.
                **({"num_cpus": max(os.cpu_count() or 1, needed + 1), "include_dashboard": False} if own else {}),
                runtime_env={"env_vars": _environment()},
                logging_level=logging.ERROR,
                # A terminal has our progress; where pods come and go, this is the only place that keeps their output.
                log_to_driver=not own,
            )
    except ConnectionError as error:
        raise ConfigError(f"no Ray cluster answers: {error}", where="compute.address", found=address,
                          expected="auto, HOST:PORT, ray://HOST:PORT, or nothing for a local one") from error
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray's own would raise where a training is about to be saved


def _environment() -> dict[str, str]:
    """ENVIRONMENT for the workers, without what the Ray job has set already: Ray refuses to hear it twice."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    told = (job.get("runtime_env") or {}).get("env_vars") or {}
    wanted = {**ENVIRONMENT, **{name: os.environ[name] for name in _FORWARDED if name in os.environ}}
    return {name: os.environ.get(name, value) for name, value in wanted.items() if name not in told}


def users_error(error: BaseException) -> KubeAlignError | None:
    """The user's error inside Ray's wrapping, if there is one: found along causes and in worker failures."""
    return next((item for item in _inside(error) if isinstance(item, KubeAlignError)), None)


def workers_lost(error: BaseException) -> BaseException | None:
    """What tells that processes or machines went away (killed, out of memory, not scheduled), if something does."""
    from ray.exceptions import RayError, RayTaskError, UserCodeException
    from ray.train.v2._internal.exceptions import RayTrainError, UserExceptionWithTraceback
    from ray.train.v2.api.exceptions import TrainingFailedError

    ours = (RayTaskError, UserExceptionWithTraceback, TrainingFailedError)  # wrappings of what a worker raised
    chain = list(_inside(error))
    if any(isinstance(item, UserCodeException) for item in chain):  # Ray Data: a worker lives and has raised
        return None
    return next((item for item in chain
                 if isinstance(item, RayError | RayTrainError) and not isinstance(item, ours)), None)


def _inside(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    queue: list[Any] = [error]
    while queue:
        item = queue.pop()
        if not isinstance(item, BaseException) or id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        queue += [getattr(item, name, None) for name in (
            "__cause__", "__context__", "cause", "controller_failure", "health_check_failure")]
        failures = getattr(item, "worker_failures", None)
        queue += list(failures.values()) if isinstance(failures, dict) else []
