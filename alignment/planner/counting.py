"""How large a model of any architecture is: by the formulas of sizes.py, else counted once on torch's meta device in a
process of its own, which is said. Never a guess: None where neither is possible, with a sentence why.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from alignment.artifacts import cache_folder
from alignment.errors import ArtifactError, ModelError
from alignment.planner.sizes import ModelSize, safetensors_parameters, size_from_config
from alignment.progress import console

_PATIENCE = 180.0
"""Seconds for one count; ten are usual, most of them for importing."""


def size_of_config(config: Mapping[str, Any]) -> ModelSize | None:
    """Size of a dense decoder from config.json's content; None, said once on stderr, where it is none or cannot be
    counted here."""
    return size_from_config(config) or _counted(json.dumps(dict(config), sort_keys=True))


def size_of_folder(folder: Path) -> ModelSize | None:
    """Size of a model folder; the parameter count is the safetensors headers' where there are any.

    Raises:
        ModelError: config.json or a safetensors header cannot be read.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"the model's config.json cannot be read: {error}", where=str(path)) from error
    size = size_of_config(config)
    counted = sum(safetensors_parameters(file) for file in sorted(folder.glob("*.safetensors")))
    return replace(size, parameters=counted) if size is not None and counted else size


@functools.lru_cache(maxsize=64)
def _counted(config: str) -> ModelSize | None:
    """By config.json's content; remembered on this machine by its digest and transformers' version."""
    name = json.loads(config).get("model_type") or "a model without model_type"
    if any(importlib.util.find_spec(package) is None for package in ("torch", "transformers")):
        return _say_unknown(name, "it has no formula for it, and torch and transformers, which could count it, are not "
                                  "installed here")
    stamp = hashlib.sha256(f"{metadata.version('transformers')}\n{config}".encode()).hexdigest()
    try:
        kept: Path | None = cache_folder() / "sizes" / f"{stamp}.json"
    except ArtifactError:
        kept = None
    found = None
    with suppress(OSError, ValueError):
        found = None if kept is None else json.loads(kept.read_text(encoding="utf-8"))
    if found is None:
        console.print(f"  {name}: the planner has no formula for this architecture; its weights are counted on the "
                      "meta device, once", markup=False)
        found = _asked(config)
        if kept is not None and "failed" not in found:
            _keep(kept, found)
    why = found.get("unknown") or found.get("failed")
    if why is not None:
        return _say_unknown(name, str(why))
    return ModelSize(**{**found, "linear": tuple((width, height) for width, height in found["linear"])})


def _asked(config: str) -> dict[str, Any]:
    """What inference/meta_size.py answers; {"failed": WHY} where it does not."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run([sys.executable, "-m", "alignment.inference.meta_size"], input=config, text=True,
                              capture_output=True, timeout=_PATIENCE, check=False, env=environment)
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"failed": f"counting it took more than {_PATIENCE:.0f} s"}
    except (ValueError, IndexError):
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        return {"failed": f"counting it failed: {''.join(last) or f'exit code {done.returncode}'}"}
    return answer


def _keep(path: Path, answer: dict[str, Any]) -> None:
    with suppress(OSError):  # a folder that cannot be written: counted again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(answer), encoding="utf-8")
        beside.replace(path)


def _say_unknown(name: str, why: str) -> ModelSize | None:
    console.print(f"  {name}: the planner does not know its size: {why}", markup=False)
    return None
