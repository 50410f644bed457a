"""A model shared out over the workers by DeepSpeed's ZeRO: its options, its process group, and whole weights again.

The model is built whole in each worker's host memory and shared out when DeepSpeed takes it over; so whatever looks at
it before the first step (adapters, their copies, the proof of the loss) needs to know nothing of this. Weights that are
trained stay float32 and matrices are multiplied under autocast, as without sharding: the same numbers are computed.
Does not decide what fits (the planner) and starts no workers.
"""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from trl.models import prepare_deepspeed

from alignment.config import Compute
from alignment.config.sharding import OURS, OURS_OF_ZERO, offloads, zero_stage
from alignment.errors import StageError

_ACCELERATE = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_", "ACCELERATE_MIXED_PRECISION")


def options(compute: Compute, autocast: torch.dtype | None = None) -> dict[str, Any] | None:
    """DeepSpeed's config for transformers' `deepspeed` argument; None without a ZeRO stage.

    Args:
        autocast: type that matrices are multiplied in, where it is not that of the weights.
    """
    stage = zero_stage(compute.sharding)
    if not stage:
        return None
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if compute.sharding == "zero3-offload":
        pinned = compute.gpus_per_worker > 0
        zero |= {name: {"device": "cpu", "pin_memory": pinned} for name in ("offload_optimizer", "offload_param")}
    made: dict[str, Any] = {
        # Filled in from TRL's arguments, and so from the stage's own keys.
        "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto", "zero_allow_untested_optimizer": True, "steps_per_print": 10**9,
        "zero_optimization": zero,
    }
    if autocast is not None:
        # No module is reduced in less than float32, so that gradients are what they are without sharding.
        made["torch_autocast"] = {"enabled": True, "dtype": str(autocast).removeprefix("torch."),
                                  "lower_precision_safe_modules": []}
    given = _plain(compute.deepspeed or {})
    own = given.pop("zero_optimization", {})
    made |= {key: value for key, value in given.items() if key not in OURS}  # what is left there is `auto`
    zero |= {key: value for key, value in own.items() if key not in OURS_OF_ZERO}
    return made


def join(compute: Compute) -> None:
    """Put DeepSpeed over this process's group, before a model is loaded: it takes part in the group that is there, and
    without this accelerate leaves it out on a CPU. Does nothing without a ZeRO stage.

    Raises:
        StageError: DeepSpeed is not installed, or what it has to compile cannot be compiled.
    """
    # Left by an earlier stage in this process, or by a launcher: accelerate would take DeepSpeed for a stage without.
    for name in [name for name in os.environ if name.startswith(_ACCELERATE)]:
        del os.environ[name]
    if "deepspeed" in sys.modules:
        _forget()
    if not zero_stage(compute.sharding):
        return
    where = f"compute.sharding: {compute.sharding}"
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    try:
        import deepspeed
    except ImportError as error:
        raise StageError(f"DeepSpeed cannot be imported: {error}", where=where,
                         hint="install kubealign[train], or sharding: none") from error
    deepspeed.utils.logger.setLevel(logging.ERROR)
    if torch.distributed.get_backend() == "gloo":
        # An all-reduce that inference alone uses, and half a minute of compiling on every machine.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if offloads(compute.sharding, compute.deepspeed):
        compile_cpu_adam(where)
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False, verbose=False)


def _forget() -> None:
    """What an earlier stage in this process left: the next model that is loaded would be shared out as its was."""
    from accelerate.state import AcceleratorState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    gc.collect()
    unset_hf_deepspeed_config()
    AcceleratorState._reset_state(reset_partial_state=True)


def compile_cpu_adam(where: str) -> None:
    """Have DeepSpeed's optimizer for host memory compiled once per machine (a minute; kept in TORCH_EXTENSIONS_DIR).

    Raises:
        StageError: a compiler or ninja is missing, or compiling failed.
    """
    from torch.utils.cpp_extension import _get_build_directory

    beside = str(Path(sys.executable).parent)  # ninja comes with DeepSpeed, into an environment that need not be active
    if shutil.which("ninja") is None and shutil.which("ninja", path=beside):
        os.environ["PATH"] = f"{os.environ.get('PATH', '')}{os.pathsep}{beside}"
    for command, package in ((os.environ.get("CXX", "c++"), "g++"), ("ninja", "ninja")):
        if shutil.which(command) is None:
            raise StageError(f"DeepSpeed compiles its CPU Adam, and there is no {command}", where=where,
                             expected=f"{package} on the PATH of every worker",
                             hint=f"install {package} (apt-get install g++ ninja-build), or shard without offload")
    from deepspeed.accelerator import get_accelerator

    folder = Path(_get_build_directory("cpu_adam", False))
    with (folder.parent / "kubealign.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # goes with the process that holds it, unlike torch's own
        (folder / "lock").unlink(missing_ok=True)  # torch's, of a process that was killed: it would be waited for
        try:
            get_accelerator().create_op_builder("CPUAdamBuilder").load(verbose=False)
        except (RuntimeError, OSError, ImportError) as error:
            raise StageError(f"DeepSpeed could not compile its CPU Adam: {str(error)[:500]}", where=where,
                             hint=f"see whether g++ works and {folder.parent} can be written "
                                  "(TORCH_EXTENSIONS_DIR), or shard without offload") from error


def is_shared_out(trainer: Any) -> bool:
    """Whether the trainer's model is DeepSpeed's to hold."""
    return bool(getattr(trainer, "is_deepspeed_enabled", False))


@contextmanager
def still_whole() -> Iterator[None]:
    """While a model is whole: one that DeepSpeed has not taken over yet, or one that is loaded beside it. From the
    moment that there are arguments with a ZeRO stage, TRL and transformers believe that the trained one is shared out,
    and ask its weights for what only such have; and whatever is loaded they would share out."""
    from transformers.integrations import deepspeed as told

    seen = told._hf_deepspeed_config_weak_ref
    config = None if seen is None else seen()
    if config is None:
        yield
        return
    told.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        told.set_hf_deepspeed_config(config)


def beside(trainer: Any, model: Any) -> Any:
    """A frozen model of the trainer's own, ready to be called: shared out like the trained one under the third stage,
    else whole on each worker."""
    if is_shared_out(trainer):
        return prepare_deepspeed(model, trainer.accelerator)
    return trainer.accelerator.prepare_model(model, evaluation_mode=True)


@contextmanager
def gathered_for(trainer: Any, model: Any) -> Iterator[None]:
    """While all of a frozen model's weights are asked past its forward pass: whole on every rank under the third stage,
    where all ranks come here together."""
    if zero_stage_of(trainer) != 3:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        yield


def gathered(trainer: Any) -> dict[str, torch.Tensor] | None:
    """Weights of a trained model by name, of an adapter those that are trained, on the first rank; nothing on the
    others. None where the model has them itself: in every stage but the third. To be called by all ranks."""
    if zero_stage_of(trainer) != 3:
        return None
    state = trainer.model_wrapped._zero3_consolidated_16bit_state_dict(
        exclude_frozen_parameters=isinstance(trainer.model, PeftModel))
    return state or {}


def zero_stage_of(trainer: Any) -> int:
    """The ZeRO stage that a trainer trains under; 0 without DeepSpeed."""
    return int(trainer.accelerator.state.deepspeed_plugin.zero_stage) if is_shared_out(trainer) else 0


def _plain(value: Any) -> Any:
    """Lists where a loaded file has tuples: DeepSpeed's config is JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
