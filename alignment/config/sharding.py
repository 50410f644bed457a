"""How a model in training is shared out over the workers, and which of DeepSpeed's own options may stand beside that.

Sharding decides where tensors lie and never what is learned, so it is in no digest. For the same reason DeepSpeed's
options pass through only where they are about memory and speed. Imports no DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from alignment.config.stages.base import Finding

if TYPE_CHECKING:
    from alignment.config.stages.train import TrainBase

Sharding = Literal["auto", "none", "zero1", "zero2", "zero3", "zero3-offload"]
ZERO = {"zero1": 1, "zero2": 2, "zero3": 3, "zero3-offload": 3}
"""Value of `sharding` -> DeepSpeed's ZeRO stage."""
PASSED = ("zero_optimization", "aio", "communication_data_type", "prescale_gradients", "gradient_predivide_factor",
          "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "flops_profiler",
          "comms_logger")
"""DeepSpeed's top-level options that are handed on."""
_WHOLE = ("lomo", "galore", "apollo", "muon")
"""Parts of the names of optimizers that look at whole matrices of gradients."""
_LOGS = "log_to of the train stage"
OURS = {
    "train_batch_size": "batch_size of the train stage", "gradient_accumulation_steps": "batch_size of the train stage",
    "train_micro_batch_size_per_gpu": "micro_batch_size of the train stage", "gradient_clipping": "trl.max_grad_norm",
    "optimizer": "learning_rate and trl.optim of the train stage", "scheduler": "trl.lr_scheduler_type",
    "bf16": "dtype", "fp16": "dtype", "amp": "dtype", "torch_autocast": "dtype", "data_types": "dtype",
    "zero_allow_untested_optimizer": "trl.optim", "zero_force_ds_cpu_optimizer": "trl.optim",
    "activation_checkpointing": "trl.gradient_checkpointing", "checkpoint": "checkpoints of the train stage",
    "tensorboard": _LOGS, "wandb": _LOGS, "csv_monitor": _LOGS, "comet": _LOGS,
}
"""DeepSpeed's options whose value our own config holds: one value, one place."""
OURS_OF_ZERO = {
    "stage": "compute.sharding", "stage3_gather_16bit_weights_on_model_save": "nothing: the model is saved whole",
    "stage3_gather_fp16_weights_on_model_save": "nothing: the model is saved whole",
    "elastic_checkpoint": "nothing: a checkpoint is resumed by as many workers",
    **dict.fromkeys(("cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory"),
                    "offload_optimizer and offload_param"),
    **dict.fromkeys(("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients",
                     "zenflow", "compute_grad_norm", "load_from_fp32_weights"),
                    "nothing: it would change what is learned, and digests do not see it"),
}
"""The same within `zero_optimization`."""


def zero_stage(sharding: str) -> int:
    """DeepSpeed's ZeRO stage; 0 without DeepSpeed, as with `auto` while nothing has resolved it."""
    return ZERO.get(sharding, 0)


def offloads(sharding: str, options: Mapping[str, Any] | None) -> bool:
    """Whether the optimizer's state lies in host memory, so that DeepSpeed's own CPU Adam steps (which it compiles)."""
    zero = (options or {}).get("zero_optimization") or {}
    device = (zero.get("offload_optimizer") or {}).get("device", "none") if isinstance(zero, Mapping) else "none"
    return sharding == "zero3-offload" or (sharding in ZERO and device != "none")


def refused_options(sharding: str, options: Mapping[str, Any] | None) -> Iterator[str]:
    """What is wrong with `compute.deepspeed`, a sentence each. `auto`, transformers' word for a key that its arguments
    fill in, is no value and passes."""
    if options is None:
        return
    if sharding not in ZERO:
        yield f"deepspeed: options without a ZeRO stage do nothing; set sharding to one of {', '.join(ZERO)}"
        return
    for key, value in options.items():
        if value == "auto":
            continue
        if key in OURS:
            yield f"deepspeed.{key}: this is said by {OURS[key]}; remove it here"
        elif key not in PASSED:
            yield f"deepspeed.{key}: not an option that is handed on to DeepSpeed, which are {', '.join(PASSED)}"
    zero = options.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        yield "deepspeed.zero_optimization: not a mapping"
        return
    for key, value in zero.items():
        if key == "stage" and value == ZERO[sharding]:
            continue
        if key in OURS_OF_ZERO and value != "auto":
            said = OURS_OF_ZERO[key]
            yield f"deepspeed.zero_optimization.{key}: this is said by {said}" + (
                f", which is {sharding}: stage {ZERO[sharding]}" if key == "stage" else "; remove it here")
    if "offload_param" in zero and ZERO[sharding] < 3:
        yield f"deepspeed.zero_optimization.offload_param: parameters are offloaded by ZeRO-3 alone, not by {sharding}"


def unfit(sharding: str, options: Mapping[str, Any] | None, workers: int, stage: TrainBase) -> Iterator[Finding]:
    """What of a train stage cannot be shared out so. Places are within the stage; () is about `compute`."""
    if sharding not in ZERO:
        return
    if not workers:
        yield Finding((), f"sharding: {sharding} shares out over workers, and there are none", "compute.workers: 0",
                      "workers: 1 (which is how one GPU offloads) or more, or sharding: none")
    optimizer = str(stage.trl.get("optim", ""))
    if any(name in optimizer for name in _WHOLE):
        yield Finding(("trl", "optim"), f"this optimizer needs whole matrices, and sharding: {sharding} gives each "
                      "worker a share of all of them", optimizer, "adamw_torch, or sharding: none")
    elif optimizer and offloads(sharding, options) and not optimizer.startswith("adamw_torch"):
        yield Finding(("trl", "optim"), "offloaded states are stepped by DeepSpeed's CPU Adam alone", optimizer,
                      "adamw_torch, or sharding without offload")
