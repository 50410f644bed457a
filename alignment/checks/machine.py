"""What a stage needs of the machine that makes it: GPUs, trackers. For runs on this machine; a cluster has its own.

Imports no torch: that a GPU is there shows in the driver's files, and that torch cannot use one in its version.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from alignment.checks.seen import Sight, Wrong
from alignment.config import AnyStage, Compute, Profile, Run, TrainBase, as_train
from alignment.config.cards import GIB
from alignment.config.hardware import avx512_here
from alignment.config.messages import close_to
from alignment.config.sharding import OURS_OF_ZERO, offloads, zero_stage
from alignment.config.trl_keys import known_keys, lacks_tracker, site
from alignment.errors import ConfigError
from alignment.planner.auto import hardware_of, unlike
from alignment.planner.fits import misfit
from alignment.planner.model_sizes import of_stage as size_of_stage

_OPTIMIZERS = {
    "torch_4bit": "torchao", "torch_8bit": "torchao", "galore": "galore_torch", "apollo": "apollo_torch",
    "8bit": "bitsandbytes", "paged": "bitsandbytes", "bnb": "bitsandbytes", "lion": "bitsandbytes",
    "ademamix": "bitsandbytes", "lomo": "lomo_optim", "grokadamw": "grokadamw", "schedule_free": "schedulefree",
    "stable_adamw": "optimi", "anyprecision": "torchdistx",
}
"""Part of the name of one of transformers' optimizers -> the package that it needs, the first that fits."""
_DRIVERS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""What there is where a GPU's driver is loaded: NVIDIA's, within WSL, AMD's."""


def trackers(stage: TrainBase) -> Wrong:
    """Trackers of `log_to` that are not installed."""
    for index, tool in enumerate(stage.log_to):
        if lacks_tracker(tool):
            yield ("log_to", index), ConfigError(f"{tool} is not installed", found=tool,
                                                 expected="a tracker that is installed here",
                                                 hint=f"install {tool}, or remove it from log_to")


def packages(stage: TrainBase) -> Wrong:
    """Packages that an option of `trl` needs and that are not installed."""
    if (stage.adapter is not None and stage.adapter.quantised is not None
            and importlib.util.find_spec("bitsandbytes") is None):
        yield ("strategy", "kind"), ConfigError(
            "bitsandbytes is not installed, which a base in four bits needs", found=stage.adapter.kind,
            expected="lora, or full", hint="install bitsandbytes")
        return
    optimizer = str(stage.trl.get("optim", ""))
    needed = [("optim", package) for part, package in _OPTIMIZERS.items() if part in optimizer][:1]
    if stage.trl.get("use_liger_kernel") is True:
        needed.append(("use_liger_kernel", "liger_kernel"))
    for key, package in needed:
        if importlib.util.find_spec(package) is None:
            yield ("trl", key), ConfigError(f"{package} is not installed, which this needs", found=stage.trl[key],
                                            expected="an option whose package is installed here",
                                            hint=f"install {package.replace('_', '-')}, or leave {key} out")


def train(stage: TrainBase) -> Wrong:
    """Everything that a train stage needs to be installed."""
    if known_keys(stage.trl_config) is None:  # a machine that trains nothing
        return
    yield from trackers(stage)
    yield from packages(stage)


def room(run: Run, stage: AnyStage, profile: Profile | None) -> Wrong:
    """A strategy that cannot fit the GPUs that are named, or that are here, whatever the rows.

    Args:
        run: as it would be executed.
    """
    trained = as_train(stage)
    error = None if trained is None else misfit(
        run, trained, size_of_stage(run, stage), hardware_of(run, profile)(stage))
    if error is not None:
        yield ("strategy",), error


def four_bits(run: Run, stage: AnyStage, profile: Profile | None, sight: Sight) -> Wrong:
    """A base in four bits that bitsandbytes 0.50.2 gives back wrong on CPUs with AVX-512: where a row of a layer is a
    multiple of 16 weights and none of 64. The stage would stop; on CPUs that are not seen from here that is a warning.

    Args:
        run: as it would be executed.
    """
    trained = as_train(stage)
    cards = hardware_of(run, profile)(stage)
    if trained is None or trained.adapter is None or trained.adapter.quantised is None or (
            cards is None or cards.card is not None):
        return
    size = size_of_stage(run, stage)
    widths = [] if size is None else sorted({width for width, _ in size.shapes() if width % 16 == 0 and width % 64})
    if not widths:
        return
    found = f"layers with {' and '.join(map(str, widths))} inputs"
    here = avx512_here(run.compute) if profile is None or profile.cluster is None else None
    if here:
        yield ("strategy", "kind"), ConfigError(
            "bitsandbytes cannot compute over this model in four bits on this machine's CPU", found=found,
            expected="layers whose inputs are a multiple of 64", hint="strategy lora")
    elif here is None:
        sight.warn(stage.name, f"on CPUs with AVX-512 bitsandbytes cannot compute in four bits over {found}, only over "
                               "multiples of 64: the stage would stop there")


def sharding(compute: Compute) -> Iterator[tuple[str, ConfigError]]:
    """(key of `compute`, what is wrong) where DeepSpeed is asked for: installed, able to compile what steps offloaded
    states, and with options that it knows."""
    if not zero_stage(compute.sharding) or compute.address is not None or os.environ.get("RAY_ADDRESS"):
        return  # or the workers are elsewhere
    folder = site("deepspeed")
    if folder is None:
        if site("torch") is not None:  # else nothing is trained on this machine
            yield "sharding", ConfigError("DeepSpeed is not installed", found=compute.sharding,
                                          expected="kubealign[train], or sharding: none")
        return
    places = f"{os.environ.get('PATH', '')}{os.pathsep}{Path(sys.executable).parent}"
    for command, package in ((os.environ.get("CXX", "c++"), "g++"), ("ninja", "ninja")):
        if offloads(compute.sharding, compute.deepspeed) and shutil.which(command, path=places) is None:
            yield "sharding", ConfigError(f"DeepSpeed compiles its CPU Adam, and there is no {command}",
                                          found=compute.sharding, expected=f"{package} installed, or another sharding",
                                          hint="apt-get install g++ ninja-build")
    known = zero_options(folder)
    for key in (compute.deepspeed or {}).get("zero_optimization", {}):
        if key not in known and key not in OURS_OF_ZERO:
            yield "deepspeed", ConfigError("not an option of DeepSpeed's zero_optimization", found=key,
                                           expected=close_to(key, known))


def zero_options(folder: Path) -> tuple[str, ...]:
    """Names that DeepSpeed's ZeRO config takes and that are not ours to say, from the package's source in `folder`,
    since importing it takes seconds."""
    tree = ast.parse((folder / "deepspeed/runtime/zero/config.py").read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body
                if isinstance(node, ast.ClassDef) and node.name == "DeepSpeedZeroConfig")
    names = []
    for item in body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            said = item.value.keywords if isinstance(item.value, ast.Call) else []
            alias = [word.value.value for word in said if word.arg == "alias" and isinstance(word.value, ast.Constant)]
            names.append(str(alias[0]) if alias else item.target.id)
    return tuple(name for name in names if name not in OURS_OF_ZERO)


def devices(compute: Compute) -> Iterator[tuple[str, ConfigError]]:
    """(key of `compute`, what is wrong) where it asks for GPUs that this machine does not have."""
    lack = _without_gpu()
    if lack is None:
        other = unlike(compute)
        if other is not None and other[1] < other[2]:
            yield "gpu", ConfigError("this machine's GPU has less memory than the one that is named", found=compute.gpu,
                                     expected=f"a GPU of at most {other[1] / GIB:.1f} GiB, as {other[0]} has here; or "
                                              "none, and the GPU is looked at")
        return
    if compute.device == "cuda":
        yield "device", ConfigError(f"there is no GPU to compute on: {lack}", found="cuda", expected="auto or cpu")
    elsewhere = compute.workers and (compute.address is not None or os.environ.get("RAY_ADDRESS"))
    if compute.gpus_per_worker and not elsewhere:
        yield "gpus_per_worker", ConfigError(f"there is no GPU for a worker: {lack}", found=compute.gpus_per_worker,
                                             expected="0, or the address of a Ray cluster with GPUs")


def _without_gpu() -> str | None:
    """Why nothing can be computed on a GPU here; None where there may be one."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None  # nothing is computed here
    if version.endswith("+cpu"):
        return f"torch {version} is built for CPUs"
    if not any(Path(driver).exists() for driver in _DRIVERS):
        return "no driver is loaded"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides them"
    return None
