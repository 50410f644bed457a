"""A train stage on Ray Train V2: `compute.workers` processes, or this one.

Starts workers, restarts them after a crash (each resumes from the newest complete checkpoint) and collects the
outcome. Does not know methods, losses or models. Launched by the pipeline or by ray_jobs/train.py.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from typing import Any

from alignment.context import Outcome, StageContext
from alignment.distributed.local import ensure_ray, users_error
from alignment.errors import KubeAlignError, StageError

MAX_RESTARTS = 3


def train_stage(context: StageContext) -> Outcome:
    """Body of the stages of kind train."""
    compute = context.run.compute
    if compute.workers:
        ensure_ray(compute)  # before ray.train is imported, which reads its switches then
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        _worker,
        train_loop_config={"context": context},
        torch_config=TorchConfig(backend="nccl" if compute.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=compute.workers,
            use_gpu=compute.gpus_per_worker > 0,
            resources_per_worker={"CPU": compute.cpus_per_worker,
                                  **({"GPU": compute.gpus_per_worker} if compute.gpus_per_worker else {})}
            if compute.workers else None,
        ),
        run_config=RunConfig(
            name=context.key,
            storage_path=str(context.work / "ray") if context.store.is_local else context.store.url_of("work/ray"),
            failure_config=FailureConfig(max_failures=MAX_RESTARTS),
        ),
    )
    try:
        trainer.fit()
    except KubeAlignError:
        raise
    except Exception as error:
        cause = users_error(error)
        if cause is not None:
            raise cause from error
        problem = f"training failed: {type(error).__name__}: {error}"
        raise StageError(problem, where=f"stage {context.stage.name}") from error
    from alignment.training.fit import read_outcome

    if not context.store.is_local and compute.workers:
        shutil.rmtree(context.out, ignore_errors=True)
        context.store.pull_work(context.key, "out")
    return read_outcome(context)


def _worker(config: dict[str, Any]) -> None:
    """Runs in every worker process (or in this one, without workers)."""
    from alignment.training.fit import fit

    context: StageContext = config["context"]
    context = replace(context, work=context.store.workdir(context.key))
    workers = context.run.compute.workers
    fit(context, workers=max(1, workers), callbacks=_reports() if workers else ())


def _reports() -> tuple[Any, ...]:
    """A callback that tells Ray's dashboard the latest metrics at every checkpoint, on all ranks together."""
    import ray.train
    from transformers import TrainerCallback

    class Report(TrainerCallback):  # type: ignore[misc]
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            latest = {k: v for entry in state.log_history[-2:] for k, v in entry.items()}
            ray.train.report({**latest, "step": state.global_step})

    return (Report(),)
