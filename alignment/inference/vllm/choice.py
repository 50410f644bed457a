"""Which engine a stage's models answer with, and what vLLM is started with for them. Reads files; starts nothing.

One engine for all models of a stage, so that a table never holds two engines' numbers side by side. What vLLM cannot
serve is an error where vLLM is asked for, and said where `auto` would have taken it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open

from alignment.artifacts import Artifact
from alignment.config import Compute
from alignment.config.engines import not_installed, vllm_here, wanted
from alignment.config.hardware import device_here, gpu_here
from alignment.context import StageContext
from alignment.data.adapter_config import CONFIG, WEIGHTS
from alignment.errors import ConfigError, ModelError
from alignment.inference.info import base_folder, model_info, quantisation_of
from alignment.inference.vllm.launch import Adapter, Launch
from alignment.inference.vllm.limits import Unfit, unfit_adapter, unfit_model, unfit_modules
from alignment.progress import console

GIB = 2**30
SHARE = 0.9
"""Of a GPU's memory, for all that a stage holds there."""
CPU_CACHE = 2 * GIB
"""Keys and values that vLLM keeps on a CPU, at most, unless one sequence needs more."""
SEQUENCES = 256
"""Answers that it makes at once, its own default."""
_said: set[str] = set()


def engine_of(context: StageContext) -> Literal["transformers", "vllm"]:
    """What answers in this stage.

    Raises:
        ConfigError: vLLM is asked for and not installed for this device.
        ModelError: it is asked for, and cannot serve one of the stage's models.
    """
    compute = context.run.compute
    device = device_here(compute)
    if wanted(compute, device) == "transformers":
        return "transformers"
    if vllm_here(device) is None:
        raise not_installed(device)
    for name, artifact in policies(context).items():
        for unfit in unfit_of(artifact, device):
            where = f"stage {context.stage.name}, model {name}"
            if compute.engine == "vllm":
                raise ModelError(unfit.problem, where=where, found=unfit.found, expected=unfit.expected,
                                 hint="compute.engine: transformers serves it")
            line = f"! {where}: {unfit.problem} ({unfit.found}), so the stage's models answer with transformers"
            if line not in _said:
                _said.add(line)
                console.print(line, markup=False)
            return "transformers"
    return "vllm"


def policies(context: StageContext) -> dict[str, Artifact]:
    """The language models that answer in this stage and have weights here, by stage name."""
    return {ref.stage: context.inputs[ref.stage] for ref in context.stage.model_refs()
            if ref.role == "policy" and context.run.stage(ref.stage).endpoint is None}


def unfit_of(artifact: Artifact, device: str) -> Iterator[Unfit]:
    """What of an artifact's model vLLM cannot serve on `device`."""
    yield from unfit_model(_config(base_folder(artifact)), device, quantisation_of(artifact))
    if model_info(artifact)["form"] == "adapter":
        folder = artifact.path() / "model"
        yield from unfit_adapter(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        yield from unfit_modules(_modules(folder))


def launch_for(context: StageContext, artifact: Artifact, longest: int) -> Launch:
    """What vLLM is started with to serve an artifact's model, and with it all of the stage's over the same base.

    Args:
        longest: tokens of a prompt and its answer, at most.
    """
    compute, base = context.run.compute, base_folder(artifact)
    over = [own for own in policies(context).values() if base_folder(own) == base]
    adapters = {own.key: own for own in over if model_info(own)["form"] == "adapter"}
    made = _launch(compute, base, dtype_of(context), longest, adapters, lambda: _share(context))
    # Likelihoods of prompts take logits of all their tokens at once, in float32.
    return replace(made, options={**made.options, "max_num_batched_tokens": 2048, **(compute.vllm or {})}
                   ) if context.stage.asks_likelihoods else made


def launch_served(
    compute: Compute, base: Artifact, adapters: Mapping[str, Artifact], dtype: str, longest: int, loaded: int | None,
    sharing: int = 1,
) -> Launch:
    """What vLLM is started with to serve full weights and adapters over them, by key.

    Args:
        longest: tokens of a conversation and its answer, at most.
        loaded: adapters that are held at once, at most.
        sharing: models that share the GPU, this one counted.
    """
    made = _launch(compute, base_folder(base), dtype, longest, adapters, lambda: round(SHARE / sharing, 3))
    return replace(made, loaded=loaded)


def _launch(
    compute: Compute, base: Path, dtype: str, longest: int, adapters: Mapping[str, Artifact],
    share: Callable[[], float],
) -> Launch:
    device = device_here(compute)
    options: dict[str, Any] = {"enforce_eager": device == "cpu"}
    environment = {}
    if device == "cpu":
        options |= {"kv_cache_memory_bytes": _cpu_cache(_config(base), dtype, longest), "max_num_seqs": SEQUENCES,
                    "max_num_batched_tokens": max(2048, longest), "block_size": 32}
        # Threads as the rest of the process has them, bound to no core: another worker may be on it.
        if "VLLM_CPU_OMP_THREADS_BIND" not in os.environ:
            environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        if "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(int(compute.cpus_per_worker) if compute.workers else _cores())
    else:
        options |= {"gpu_memory_utilization": share()}
        if compute.gpus_per_worker > 1:
            options["tensor_parallel_size"] = int(compute.gpus_per_worker)
    options |= compute.vllm or {}
    if options.get("tensor_parallel_size", 1) > 1:
        options["distributed_executor_backend"] = "mp"
    return Launch(str(base), dtype, longest, tuple(_adapter(own) for _, own in sorted(adapters.items())), options,
                  environment)


def dtype_of(context: StageContext) -> str:
    """Arithmetic of the stage, whose `auto` was settled before its key was made."""
    return "bfloat16" if context.run.compute.dtype == "bfloat16" else "float32"


def _adapter(artifact: Artifact) -> Adapter:
    folder = artifact.path() / "model"
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return Adapter(artifact.key, str(folder), int(config["r"]), _modules(folder))


def _modules(folder: Path) -> tuple[str, ...]:
    """Last parts of the names of the modules that an adapter's file has weights for."""
    names = set()
    with safe_open(folder / WEIGHTS, framework="np") as tensors:
        for key in tensors.keys():  # noqa: SIM118 - safe_open is no dict
            names.add(key.partition(".lora_")[0].split(".")[-1])
    return tuple(sorted(names))


def _config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def _cpu_cache(config: Mapping[str, Any], dtype: str, longest: int) -> int:
    """Bytes of keys and values: of all sequences at once, or what is set aside for them."""
    text = config.get("text_config") or config
    heads = text.get("num_attention_heads") or 1
    size = text.get("head_dim") or text["hidden_size"] // heads
    token = 2 * text["num_hidden_layers"] * (text.get("num_key_value_heads") or heads) * size * (
        2 if dtype == "bfloat16" else 4)
    one = token * (-(-longest // 128) * 128 + 256)
    return int(max(2 * one, min(SEQUENCES * one, CPU_CACHE)))


def _share(context: StageContext) -> float:
    """Of a GPU's memory, for one vLLM: what a reward model or an embedder beside it leaves, over the bases that answer
    at once."""
    compute, stage = context.run.compute, context.stage
    share = SHARE * (compute.gpus_per_worker if compute.workers and compute.gpus_per_worker < 1 else 1.0)
    found = gpu_here()
    other = ("embedder", *(("reward",) if stage.opens_all else ()))
    there = [ref.stage for ref in stage.model_refs() if ref.role in other]
    if there and found is not None:
        size = sum(file.stat().st_size for name in there
                   for file in _base(context.inputs[name]).glob("*.safetensors"))
        share -= (1.2 * size + 2 * GIB) / found[1]
    if stage.opens_all:
        share /= len({base_folder(own) for own in policies(context).values()})
    if share < 0.1:
        raise ConfigError("the GPU has no room for vLLM beside the reward model or the embedder",
                          where=f"stage {stage.name}", found=f"{share:.0%} of its memory",
                          hint="compute.engine: transformers, or a larger GPU")
    return round(share, 3)


def _base(artifact: Artifact) -> Path:
    """The full weights of a reward model or an embedder; one that was imported as that is on its own."""
    return artifact.path() / "model" if "reads" in artifact.manifest.facts else base_folder(artifact)


def _cores() -> int:
    return len(os.sched_getaffinity(0))
