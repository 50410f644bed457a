"""Train one stage in this process: the function every worker runs, with or without a process group.

Builds model, columns and TRL's trainer, resumes from the newest complete checkpoint, trains, and on the first
rank saves `out/model` and `training.json`. Does not start workers (alignment.distributed does) and does not
decide whether the stage has to run (alignment.pipeline does).
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.distributed as dist
from datasets import Dataset
from peft import PeftModel
from transformers import TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from alignment.artifacts import RowCounts
from alignment.config import TrainBase
from alignment.config.stages.base import plural
from alignment.config.trl_keys import lacks_tracker
from alignment.context import Outcome, StageContext
from alignment.errors import ConfigError, StageError
from alignment.inference.adapters import save_adapter
from alignment.inference.draws import choose_of
from alignment.inference.info import base_folder, base_key, template_of, write_info
from alignment.inference.loading import load_tokenizer, resolve_device, resolve_dtype, without_router_logits
from alignment.progress import console
from alignment.records import Record
from alignment.training import ranks, sharding, shares
from alignment.training.checkpoints import Checkpoints, barrier, disk_of, naming_the_disk, over_all
from alignment.training.columns import made_once
from alignment.training.frozen import load_frozen
from alignment.training.guards import Recorder, Rows
from alignment.training.methods import Method, method_of
from alignment.training.model import build, settle_adapter
from alignment.training.preemption import SaveBeforeEnd
from alignment.training.prepare import Prepared, prepare
from alignment.training.quantised import base_difference
from alignment.training.room import room_for
from alignment.training.shared_prefix import OneSequence


def fit(context: StageContext, *, workers: int = 1, callbacks: tuple[TrainerCallback, ...] = ()) -> None:
    """Train `context.stage`.

    Args:
        workers: processes that take part; the group must have exactly so many (a silent group of one is refused).
        callbacks: more transformers callbacks, for example to report to Ray.
    """
    _check_world(workers)
    stage, compute = context.stage_as(TrainBase), context.run.compute
    ranks.begin(context.key)
    ranks.meet(context.digest)
    method, where = method_of(stage), f"stage {stage.name}"
    for name in ("transformers", "trl", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    sharding.join(compute)
    device = resolve_device(compute)
    dtype = resolve_dtype(compute, device)
    set_seed(context.run.seed)
    start = context.inputs[stage.model]
    tokenizer = load_tokenizer(start.path() / "model", side="right")
    extras = method.extras(context)
    disk = disk_of(context.work)
    prepared, rows = made_once(context.work, disk, "train", partial(_train_columns, context, tokenizer, method))
    held, held_rows = (None, None) if stage.eval_rows is None else made_once(
        context.work, disk, "eval", partial(_eval_columns, context, tokenizer, method))
    model, facts = build(stage, start, dtype, tokenizer.pad_token_id, device)
    frozen = None if stage.frozen is None else context.inputs[stage.frozen.stage]
    fits = room_for(stage, start, device, dtype, max(prepared.lengths, default=0), compute, frozen)
    arguments = _arguments(context, stage, method, device, dtype, workers, fits)
    if frozen is not None:
        with sharding.still_whole():
            extras |= {method.frozen_as: load_frozen(stage, start, frozen, dtype)}
    trainer = _trainer(method, model, arguments, tokenizer, rows, held_rows, prepared.ids, extras)
    extras.clear()  # a trainer that needs its frozen model no longer lets it go
    if stage.adapter is not None:
        facts |= {"adapter": settle_adapter(trainer.model, stage.adapter)}
    with sharding.still_whole():
        if stage.makes == "policy":
            method.prove(trainer, dtype if stage.adapter is not None else torch.float32, where)
        if isinstance(trainer, OneSequence):
            trainer.settle_layout(stage.name)
            facts |= trainer.layout_facts()
    with _no_bars():
        trainer.settled()
    trainer.save_to = lambda model, folder, state: _save(model, folder, stage, start, tokenizer, state)
    if stage.checkpoints.final == "best":
        trainer.last_dir = context.out / "last"
    _check_world(workers, trainer.args.world_size)
    if sharding.is_shared_out(trainer) != bool(arguments.deepspeed):
        raise StageError("the trainer shares the model out otherwise than was asked for", where=where,
                         found="by DeepSpeed" if sharding.is_shared_out(trainer) else "not at all",
                         expected=f"sharding: {compute.sharding}")
    ranks.agree("the arguments of the stage", _shared(arguments))
    timing = _train(context, trainer, Checkpoints(context, disk), callbacks)
    state = sharding.gathered(trainer)
    if trainer.is_world_process_zero():
        trainer.kept.still_there()
        with naming_the_disk(context.out):
            trainer.save_to(trainer.accelerator.unwrap_model(trainer.model), context.out / "model", state)
        outcome = _outcome(stage, method, trainer, prepared, held, facts, start)
        outcome.facts |= method.facts(stage, trainer, frozen or start)
        outcome.facts |= {"timing": timing, "micro_batch_size": arguments.per_device_train_batch_size,
                          "learning_rate": stage.rate}
        if stage.adapter is not None and stage.adapter.quantised is not None:
            with sharding.still_whole():
                outcome.facts["base_difference"] = base_difference(
                    stage.makes, base_folder(start), context.out / "model", rows, device, tokenizer.pad_token_id)
        outcome.compute = {"device": device, "dtype": str(dtype).removeprefix("torch."),
                           **({"sharding": compute.sharding} if arguments.deepspeed else {})}
        write_outcome(context, outcome)
    barrier()
    trainer.kept.clear()


def _train(
    context: StageContext, trainer: Any, checkpoints: Checkpoints, callbacks: tuple[TrainerCallback, ...]
) -> dict[str, Any]:
    """Resume, train to the end; how long it took, and from where."""
    total = _steps(trainer.args, trainer, trainer.rows_of_epoch())
    shown = context.track(context.stage.name, total, "steps") if trainer.is_world_process_zero() else nullcontext()
    with shown as tracker:
        trainer.kept = checkpoints
        for callback in (*callbacks, Recorder(context, tracker), checkpoints):
            if isinstance(callback, SaveBeforeEnd):
                callback.checkpoints = checkpoints
            trainer.add_callback(callback)
        resume = checkpoints.resume()
        if resume is not None and sharding.is_shared_out(trainer):
            shares.read_whole(trainer.accelerator.state.deepspeed_plugin.hf_ds_config.config, resume)
        began = time.monotonic()
        try:
            with ranks.naming_the_silent():
                trainer.train(resume_from_checkpoint=str(resume) if resume else None)
            seconds = time.monotonic() - began
        finally:
            checkpoints.finish()
    tokens = over_all(trainer.tokens_here)
    return {"train_seconds": round(seconds, 2), "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
            "resumed_from_step": int(resume.name.rsplit("-", 1)[1]) if resume else 0}


def _train_columns(context: StageContext, tokenizer: Any, method: Method, into: Prepared) -> None:
    stage = context.stage_as(TrainBase)
    records, there = choose_of(lambda: (record for ref in stage.rows for record in context.each_row(ref)),
                               context.run.scaled(stage.take), context.run.seed)
    with _counted(context, records, into) as rows:
        prepare(rows, tokenizer, stage, f"stage {stage.name}, rows {', '.join(stage.rows)}", method.columns, into)
    into.not_taken = 0 if there is None else there - into.read


def _eval_columns(context: StageContext, tokenizer: Any, method: Method, into: Prepared) -> None:
    stage = context.stage_as(TrainBase)
    with _counted(context, context.each_row(stage.eval_rows or ""), into) as rows:
        prepare(rows, tokenizer, stage, f"stage {stage.name}, eval_rows {stage.eval_rows}", method.columns, into)


@contextmanager
def _counted(context: StageContext, records: Iterable[Record], into: Prepared) -> Iterator[Iterator[Record]]:
    """The records, and progress as they are gone through, with the tokens a second that they became."""
    began, at, tokens = time.monotonic(), 0, 0

    def speed() -> str:
        nonlocal at, tokens
        tokens += sum(into.lengths[at:])
        at = len(into.lengths)
        return f"{tokens / max(1e-9, time.monotonic() - began):,.0f} tokens/s"

    with context.track(f"{context.stage.name}: token columns", None, "rows") as tracker:
        yield tracker.counted(records, speed)


def _shared(arguments: Any) -> dict[str, Any]:
    """What the arguments of all ranks have in common: without what is a rank's or a machine's own."""
    own = {"local_rank", "output_dir", "logging_dir", "deepspeed_plugin", "accelerator_config"}
    return {key: repr(value) for key, value in arguments.to_dict().items() if key not in own}


def write_outcome(context: StageContext, outcome: Outcome) -> None:
    """Leave the outcome in out/training.json, for the driver (another process, perhaps another machine)."""
    body = {"rows": outcome.rows.model_dump(), "metrics": outcome.metrics, "facts": outcome.facts,
            "compute": outcome.compute}
    (context.out / "training.json").write_text(json.dumps(body, indent=2), encoding="utf-8")


def read_outcome(context: StageContext) -> Outcome:
    """Inverse of write_outcome."""
    body = json.loads((context.out / "training.json").read_text(encoding="utf-8"))
    return Outcome(RowCounts(**body["rows"]), body["metrics"], body["facts"], body["compute"])


def _trainer(
    method: Method, model: Any, arguments: Any, tokenizer: Any, rows: Dataset, held: Dataset | None, ids: list[str],
    extras: dict[str, Any],
) -> Any:
    """TRL's trainer under our guards, silent; a reference may be computed here."""
    with _no_bars():
        trainer = method.trainer(model=model, args=arguments, processing_class=tokenizer, train_dataset=rows,
                                 eval_dataset=held, **extras)
    trainer.row_ids = ids
    trainer.autocast = torch.bfloat16 if "torch_autocast" in (arguments.deepspeed or {}) else None
    trainer.data_collator = Rows(trainer.data_collator)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the libraries' progress bars, which fill the logs of pods; TRL's own ask the environment only."""
    hidden, tqdm = datasets.are_progress_bars_disabled(), os.environ.get("TQDM_DISABLE")
    datasets.disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if not hidden:
            datasets.enable_progress_bars()
        os.environ.pop("TQDM_DISABLE")
        if tqdm is not None:
            os.environ["TQDM_DISABLE"] = tqdm


def _arguments(
    context: StageContext, stage: TrainBase, method: Method, device: str, dtype: torch.dtype, workers: int,
    fits: Callable[[int], bool] = lambda rows: True,
) -> Any:
    micro = stage.micro_batch(workers, fits)
    if not micro:
        raise ConfigError(
            "batch_size cannot be shared out over the workers", where=f"stage {stage.name}",
            found=f"{stage.batch_size}, {workers} workers", expected=f"a multiple of {workers}",
        )
    if os.environ.get("RANK", "0") == "0":
        if stage.micro_batch_size is None:
            console.print(f"  {stage.name}: {plural(micro, 'row')} per forward pass, as micro_batch_size is left out")
        elif micro < stage.micro_batch_size:
            console.print(f"  {stage.name}: {micro} rows per forward pass instead of {stage.micro_batch_size}, since "
                          f"each of {workers} workers has {stage.batch_size // workers} of a batch")
        if (said := stage.defaulted()) is not None:
            console.print(f"  {stage.name}: {said}")
    for tool in filter(lacks_tracker, stage.log_to):
        raise ConfigError(f"{tool} is not installed", where=f"stage {stage.name}, log_to", found=tool,
                          hint=f"install {tool}, or remove it from log_to")
    # transformers reads the folder from the environment only; its own default lies among the checkpoints, which go.
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(context.out / "tensorboard")
    every = stage.checkpoints.every
    steps = {"save_strategy": "steps", "save_steps": every, "save_total_limit": stage.checkpoints.keep}
    if stage.eval_rows is not None:
        best = stage.checkpoints.final == "best"
        steps |= {"eval_strategy": "steps", "eval_steps": every, "load_best_model_at_end": best}
        if best:
            steps |= {"metric_for_best_model": method.best[0], "greater_is_better": method.best[1]}
    on_gpu = device != "cpu"
    given: dict[str, Any] = {
        "gradient_checkpointing": on_gpu,  # on a CPU memory is cheap and a third more compute is not
        "dataloader_pin_memory": on_gpu,
        **method.arguments(stage), **steps, **stage.by_strategy, **stage.trl,
    }
    if workers > 1 and not on_gpu:
        given["ddp_backend"] = "gloo"
    # On a CPU frozen weights are in `dtype` already, and casting what is computed beside them gains nothing.
    autocast = dtype == torch.bfloat16 and (on_gpu or stage.adapter is None)
    shares = sharding.options(context.run.compute, dtype if autocast else None)
    if shares is not None:
        given["deepspeed"] = shares
    return method.config(
        output_dir=str(context.work / "checkpoints"),
        run_name=f"{context.run.name}-{stage.name}",
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=stage.batch_size // (micro * workers),
        num_train_epochs=stage.epochs,
        learning_rate=stage.rate,
        bf16=autocast and shares is None,
        use_cpu=not on_gpu,
        seed=context.run.seed,
        data_seed=context.run.seed,
        logging_steps=stage.log_every,
        logging_nan_inf_filter=False,
        report_to=list(stage.log_to) or "none",
        disable_tqdm=True,
        **given,
    )


def _check_world(workers: int, seen: int | None = None) -> None:
    """Asked first, before a library finds the group missing in words of its own, and again of what the trainer sees."""
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world != workers or (seen or world) != workers:
        raise StageError("the process group is not what was asked for, so every worker would train alone",
                         found=f"process group of {world}" + (f", trainer sees {seen}" if seen else ""),
                         expected=f"{workers} workers on every rank")


def _steps(arguments: Any, trainer: Any, rows: int) -> int:
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    per_epoch = -(-rows // (arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
                            * arguments.world_size))
    return max(1, int(-(-per_epoch * arguments.num_train_epochs // 1)))


def _save(
    model: Any, folder: Path, stage: TrainBase, start: Any, tokenizer: Any, state: dict[str, torch.Tensor] | None = None
) -> None:
    """Write weights, tokenizer and kubealign.json; `state` has the weights where the model has a share of them."""
    adapter = stage.adapter is not None
    folder.mkdir(parents=True, exist_ok=True)
    if adapter:
        assert isinstance(model, PeftModel)
        save_adapter(model, folder, start, state)
    else:
        without_router_logits(model)
        model.save_pretrained(folder, **({} if state is None else {"state_dict": state}))
    tokenizer.save_pretrained(folder)
    form, base = ("adapter", base_key(start)) if adapter else ("full", None)
    write_info(folder, role=stage.makes, form=form, base=base, tokenizer=tokenizer,
               template_name=template_of(start)["name"],
               quantisation=stage.adapter.quantised if stage.adapter is not None else None)


def _outcome(
    stage: TrainBase, method: Method, trainer: Any, prepared: Prepared, held: Prepared | None, facts: dict[str, Any],
    start: Any,
) -> Outcome:
    reasons: dict[str, int] = {}
    for source in (prepared, held):
        for _, reason in source.dropped if source else []:
            reasons[reason] = reasons.get(reason, 0) + 1
    if prepared.not_taken:
        reasons["not taken"] = prepared.not_taken
    rows = RowCounts(
        read=prepared.read + prepared.not_taken + (held.read if held else 0),
        written={"train": len(prepared.ids), **({"eval": len(held.ids)} if held else {})},
        dropped=reasons, changed=dict(prepared.changed + (held.changed if held else Counter())),
    )
    history = trainer.state.log_history
    metrics = {"steps": float(trainer.state.global_step), "supervised_tokens": float(prepared.supervised)}
    names = method.final_metrics
    train, evaluated = [e for e in history if "loss" in e], [e for e in history if f"eval_{method.best[0]}" in e]
    if stage.checkpoints.final == "best" and trainer.state.best_global_step:
        metrics["best_step"] = float(trainer.state.best_global_step)
        evaluated = [e for e in evaluated if e["step"] == trainer.state.best_global_step] or evaluated
    tail = train[-max(1, len(train) // 5):]
    metrics |= {f"train_{n}": sum(e[n] for e in tail) / len(tail) for n in names if tail and all(n in e for e in tail)}
    metrics |= {f"eval_{n}": evaluated[-1][f"eval_{n}"] for n in names if evaluated and f"eval_{n}" in evaluated[-1]}
    info = template_of(start)
    facts = facts | {
        "template": info, "start": start.key, "role": stage.makes,
        "context_length": start.manifest.facts.get("context_length"),
        "mean_length": sum(prepared.lengths) / len(prepared.lengths),
        "max_length": max(prepared.lengths), "dropped_rows": [*prepared.dropped, *(held.dropped if held else [])][:200],
    }
    return Outcome(rows, {k: float(v) for k, v in metrics.items()}, facts)
