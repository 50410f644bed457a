"""transformers' TrainingArguments, which LLaMA-Factory's and TRL's files share: where each stands in ours.

What a method's TRL config takes as it is goes under `trl`; what our own keys hold is carried there; the rest is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignment.cli.migrate.carried import Reading
from alignment.cli.migrate.target import Target, batches, left, sharded
from alignment.config.stages import METHODS
from alignment.config.trl_keys import OURS, known_keys

_TRACKERS = ("tensorboard", "wandb", "mlflow")
_LEFT = {
    **dict.fromkeys(("output_dir", "logging_dir", "overwrite_output_dir"), "the store decides where things lie"),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "stages are named one by one"),
    "run_name": "a run is called by its `name`", "resume_from_checkpoint": "a run that was killed goes on by itself",
    **dict.fromkeys(("save_only_model", "save_safetensors", "overwrite_cache", "plot_loss", "ddp_timeout",
                     "ddp_find_unused_parameters", "include_num_input_tokens_seen", "log_level", "disable_tqdm",
                     "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor",
                     "dataset_num_proc", "preprocessing_num_workers", "preprocessing_batch_size", "local_rank",
                     "tokenized_path", "log_on_each_node"), "says how it is computed or shown, not what"),
    **dict.fromkeys(("per_device_eval_batch_size", "eval_accumulation_steps", "eval_on_start", "batch_eval_metrics",
                     "prediction_loss_only"), "the loss on held-out rows is measured in passes of micro_batch_size"),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo"),
                    "what is made lies in the store"),
    **dict.fromkeys(("fp16", "fp16_full_eval", "bf16_full_eval", "half_precision_backend", "tf32"),
                    "arithmetic is float32 or bfloat16 (`dtype`)"),
    **dict.fromkeys(("fsdp", "fsdp_config", "fsdp_transformer_layer_cls_to_wrap"),
                    "workers share out by DeepSpeed: `compute.sharding`"),
    **dict.fromkeys(("group_by_length", "length_column_name", "train_sampling_strategy"), "rows are drawn at random"),
    **dict.fromkeys(("use_cpu", "no_cuda", "use_mps_device"), "`compute.device` and profiles say where"),
    "metric_for_best_model": "the best has the lowest loss on held-out rows",
    "greater_is_better": "the best has the lowest loss on held-out rows",
    "eval_delay": "held-out rows are measured at every checkpoint",
    "data_seed": "the run's seed decides the order of rows, too",
}
"""Keys that are not carried -> why."""


def arguments(read: Reading, into: Target, tool: str, defaults: Mapping[str, Any], *, processes: int,
              deepspeed: Mapping[str, Any] | None) -> None:
    """Fill in what TrainingArguments say.

    Args:
        defaults: learning_rate, num_train_epochs, per_device_train_batch_size of the tool: written where its file
            leaves them out.
        processes: how many the tool was started with.
        deepspeed: what the file holds that `deepspeed` names.

    Raises:
        ConfigError: a value of the wrong type.
    """
    _amounts(read, into, tool, defaults, processes)
    _moments(read, into)
    _arithmetic(read, into)
    if "deepspeed" in read:
        if isinstance(read.peek("deepspeed"), str):
            sharded(read, into, "deepspeed", deepspeed)
        else:
            read.leave("deepspeed", "`compute.sharding` and `compute.deepspeed` say what workers share out")
    left(read, _LEFT)


def passed(read: Reading, into: Target) -> None:
    """What is left, where the method's TRL config has such a key: under `trl`, as it is."""
    kind = next(kind for kind in METHODS if kind.tag == into.method)
    known = known_keys(kind.trl_config)
    for path in read.left():
        key = path.split(".")[0].split("[")[0]
        if path != key or (known is not None and key not in known and key not in OURS):
            continue
        if key in OURS:
            read.leave(path, f"here this is said by {OURS[key]}")
        else:
            into.trl[key] = (read.take(path, f"{into.method}.trl.{key}"), path)


def _amounts(read: Reading, into: Target, tool: str, defaults: Mapping[str, Any], processes: int) -> None:
    train, method = into.train, into.method
    epochs = read.number("num_train_epochs", f"{method}.epochs")
    steps = read.whole("max_steps", f"{method}.trl.max_steps", "counts optimizer steps, as there")
    train["epochs"] = _or(epochs, "epochs", defaults["num_train_epochs"], into, tool)
    if steps is not None and steps > 0:
        into.trl["max_steps"] = (steps, "max_steps")
    elif steps is not None:
        read.correct("max_steps", None, "below 1 it says that epochs count")
    step = f"{method}.batch_size"
    said = "" if processes > 1 else "; over one process: --processes N where the tool was started with N"
    per_device = read.whole("per_device_train_batch_size", f"{method}.micro_batch_size", f"times the passes of a step, "
                            f"it is {step}{said}")
    accumulation = read.whole("gradient_accumulation_steps", step, "passes of a step follow from it")
    rows = _or(per_device, "micro_batch_size", defaults["per_device_train_batch_size"], into, tool)
    batches(into, max(1, int(rows)), accumulation or int(defaults.get("gradient_accumulation_steps", 1)), processes)
    rate = read.number("learning_rate", f"{method}.learning_rate")
    train["learning_rate"] = _or(rate, "learning_rate", defaults["learning_rate"], into, tool)
    ratio = read.number("warmup_ratio", f"{method}.trl.warmup_steps", "below 1 warmup_steps is a share of all steps")
    warm = read.number("warmup_steps", f"{method}.trl.warmup_steps")
    if warm or (warm is not None and ratio is None):  # as transformers decides, where both are given
        into.trl["warmup_steps"] = (int(warm) if warm >= 1 else warm, "warmup_steps")
        if ratio is not None:
            read.correct("warmup_ratio", None, "warmup_steps counts where both are given")
    elif ratio is not None:
        into.trl["warmup_steps"] = (ratio, "warmup_ratio")
        if warm is not None:
            read.correct("warmup_steps", None, "warmup_ratio counts where warmup_steps is 0")
    into.seed = _or(read.whole("seed", "seed"), "seed", 42, into, tool)


def _or(value: Any, key: str, default: Any, into: Target, tool: str) -> Any:
    """A value, or the tool's default, which is then said."""
    if value is None:
        into.said.append(f"{key}: {default:g}, the default of {tool}")
        return default
    return value


def _moments(read: Reading, into: Target) -> None:
    """When it is saved, measured and logged."""
    checkpoints, method = into.checkpoints, into.method
    every = read.peek("save_steps")
    if isinstance(every, int | float) and every >= 1 and read.peek("save_strategy") in (None, "steps"):
        checkpoints["every"] = read.whole("save_steps", f"{method}.checkpoints.every")
    elif every is not None:
        read.leave("save_steps", f"checkpoints are counted in steps: `checkpoints.every` of {method}")
    for key in ("save_strategy", "eval_strategy", "evaluation_strategy", "logging_strategy"):
        if read.peek(key) in ("steps", "no", False):
            read.leave(key, "steps are counted; held-out rows, where there are any, are measured at every checkpoint")
        else:
            read.leave(key, f"there are no epochs to save, measure or log by: `checkpoints.every` and `log_every` of "
                            f"{method} count steps")
    if "eval_steps" in read and read.peek("eval_steps") == checkpoints.get("every"):
        read.take("eval_steps", f"{method}.checkpoints.every", "checkpoints are when held-out rows are measured")
    else:
        read.leave("eval_steps", "held-out rows are measured at every checkpoint")
    if (keep := read.whole("save_total_limit", f"{method}.checkpoints.keep")) is not None:
        checkpoints["keep"] = max(1, keep)
    best = read.flag("load_best_model_at_end", f"{method}.checkpoints.final", "by the loss on held-out rows")
    if best is not None:
        checkpoints["final"] = "best" if best else "last"
    if isinstance(log := read.peek("logging_steps"), int | float) and log >= 1:
        into.train["log_every"] = read.whole("logging_steps", f"{method}.log_every")
    else:
        read.leave("logging_steps", "log lines are counted in steps: `log_every`")
    trackers = [tool for tool in read.words("report_to", f"{method}.log_to") if tool != "none"]
    if lost := [tool for tool in trackers if tool not in _TRACKERS]:
        read.correct("report_to", None, f"{', '.join(lost)}: `log_to` takes {', '.join(_TRACKERS)}")
    if "report_to" in read:
        into.train["log_to"] = [tool for tool in trackers if tool in _TRACKERS]


def _arithmetic(read: Reading, into: Target) -> None:
    half = read.flag("bf16", f"{into.method}.dtype", "of the frozen weights and of mixed precision; what is trained is "
                                                     "float32") if "bf16" in read.left() else None
    if half:
        into.train["dtype"] = "bfloat16"
    elif half is not None:
        read.correct("bf16", None, "`compute.dtype` decides: bfloat16 on a GPU that has it")
