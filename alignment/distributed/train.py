"""A train stage: on Ray Train V2 in `compute.workers` processes, or in this one, without Ray.

Starts workers, restarts them after a crash (each resumes from the newest complete checkpoint) and collects the
outcome. The workers may be on other machines that share only the store. Does not know methods, losses or models.
Launched by the pipeline or by ray_jobs/train.py.
"""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from alignment import interrupt
from alignment.config import TrainBase
from alignment.config.sharding import unfit
from alignment.context import Outcome, StageContext
from alignment.distributed.asks import Asks
from alignment.distributed.local import WorkersLost, ensure_ray, users_error, workers_lost
from alignment.distributed.room import needed, wait_for_room
from alignment.errors import ConfigError, KubeAlignError, StageError
from alignment.progress import console

MAX_RESTARTS = 3
ANSWER_WITHIN = 1800
"""Seconds after which a rank that waits for another in a collective gives up. Nothing of ours takes longer between two:
columns are waited for outside of one; the first rank's saving of a very large model is what it must hold."""


def train_stage(context: StageContext) -> Outcome:
    """Body of the stages of kind train.

    Raises:
        WorkersLost: workers died or were lost more often than they are restarted.
        StageError: the training itself failed.
    """
    compute = context.run.compute
    for finding in unfit(compute.sharding, compute.deepspeed, compute.workers, context.stage_as(TrainBase)):
        raise ConfigError(finding.problem, where=f"stage {context.stage.name}", found=finding.found,
                          expected=finding.expected)
    context.store.drop_work(context.key, "out")  # of an earlier attempt
    _on_workers(context) if compute.workers else _here(context)
    from alignment.training.fit import read_outcome

    if compute.workers and not context.store.is_local:
        context.store.fetch_work(context.key, "out", "training.json")  # the rest never comes here: see Store.publish
    return read_outcome(context)


def _here(context: StageContext) -> None:
    """In this process, which needs no Ray."""
    from alignment.training import ranks

    ranks.begin(context.key)  # before what takes long to import
    try:
        from alignment.training.fit import fit
        from alignment.training.preemption import InThisProcess

        try:
            fit(context, workers=1, callbacks=(InThisProcess(),))
        finally:
            interrupt.saving(None)
    except KubeAlignError:
        raise
    except Exception as error:
        raise _failed(context, error) from error


def _on_workers(context: StageContext) -> None:
    compute = context.run.compute
    ensure_ray(compute)  # before ray.train is imported, which reads its switches then
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    # Restarts are ours: Ray's would also try again what only the user can mend. Anything else is worth another try, as
    # a lost rank may first show as a broken connection of another.
    asks = Asks(context.key)
    for left in reversed(range(1 + MAX_RESTARTS)):
        try:
            wait_for_room(compute, compute.workers, f"stage {context.stage.name}")
            asks.begin()
            _trainer(context).fit()
            break
        except KubeAlignError:
            raise
        except Exception as error:
            cause = users_error(error)
            if cause is not None and (not left or not cause.transient):
                raise cause from error
            if not left:
                _give_up(context, error)
            why = next(iter(str(workers_lost(error) or error).splitlines()), "")[:300]
            console.print(f"! {context.stage.name} starts its workers again: {why}", markup=False)
        finally:
            asks.end()


def _give_up(context: StageContext, error: Exception) -> NoReturn:
    lost = workers_lost(error)
    if lost is not None:
        raise WorkersLost(f"workers were lost more than {MAX_RESTARTS} times, last: {lost}",
                          where=f"stage {context.stage.name}",
                          hint="look at their pods or processes (memory?); run again to resume") from error
    raise _failed(context, error) from error


def _failed(context: StageContext, error: Exception) -> StageError:
    stage = context.stage_as(TrainBase)
    key = _key_in(str(error), stage)
    passed = ", ".join(stage.trl)
    return StageError(f"training failed: {type(error).__name__}: {error}",
                      where=f"stage {stage.name}" + (f", {key}" if key else ""),
                      hint=f"trl hands on {passed}: see whether that is what it asks about" if passed else None)


def _key_in(text: str, stage: TrainBase) -> str | None:
    """The key of a stage that a library's error speaks of, where it speaks of one that the user has written."""
    given = [f"trl.{key}" for key in stage.trl] + [key for key in sorted(stage.model_fields_set) if "_" in key]
    return next((key for key in given if re.search(rf"\b{key.removeprefix('trl.')}\b", text)), None)


def _trainer(context: StageContext) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    compute = context.run.compute
    return TorchTrainer(
        _worker,
        train_loop_config={"context": context},
        torch_config=TorchConfig(backend="nccl" if compute.gpus_per_worker else "gloo", timeout_s=ANSWER_WITHIN),
        scaling_config=ScalingConfig(
            num_workers=compute.workers,
            use_gpu=compute.gpus_per_worker > 0,
            resources_per_worker=needed(compute),
        ),
        run_config=RunConfig(name=context.key, failure_config=FailureConfig(max_failures=0), **_storage(context)),
    )


def _storage(context: StageContext) -> dict[str, Any]:
    """Where Ray Train keeps its own notes (nothing of ours): a place that every node sees.

    Through the store's client, so that there is one way to say endpoint and credentials.
    """
    if context.store.is_local:
        return {"storage_path": str(context.work / "ray")}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return {"storage_path": f"{context.store.root}/work/{context.key}/ray",
            "storage_filesystem": PyFileSystem(FSSpecHandler(context.store.fs))}


def _worker(config: dict[str, Any]) -> None:
    """Runs in every worker process."""
    from alignment.training import ranks

    context: StageContext = config["context"]
    ranks.begin(context.key)  # before what takes long to import
    from alignment.training.fit import fit

    store, workers = context.store, context.run.compute.workers
    import ray.train

    # Ray sets the root logger to INFO in its workers; some of Ray Train's own loggers are called by their file.
    files = [name for name in logging.root.manager.loggerDict if name.startswith(str(Path(ray.train.__file__).parent))]
    for name in ("ray.train", "aiobotocore", "botocore", *files):
        logging.getLogger(name).setLevel(logging.WARNING)
    context = replace(context, work=store.workdir(context.key))  # of this machine
    first = ray.train.get_context().get_world_rank() == 0
    if first:
        shutil.rmtree(context.out, ignore_errors=True)  # of an attempt that was cut short
        context.out.mkdir(parents=True)
    from alignment.distributed.asked import AskedWorkers

    asked = AskedWorkers(context.key, first)
    try:
        fit(context, workers=workers, callbacks=(*_reports(), asked))
    finally:
        asked.leave()
    if first and not store.is_local:
        store.push_work(context.key, "out")
        shutil.rmtree(context.out, ignore_errors=True)


def _reports() -> tuple[Any, ...]:
    """A callback that tells Ray's dashboard the latest metrics at every checkpoint, on all ranks together."""
    import ray.train
    from transformers import TrainerCallback

    class Report(TrainerCallback):  # type: ignore[misc]
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            latest = {k: v for entry in state.log_history[-2:] for k, v in entry.items()}
            ray.train.report({**latest, "step": state.global_step})

    return (Report(),)
