"""What this machine computes on, as far as it shows without torch: device, processor, arithmetic of its own."""

from __future__ import annotations

import ctypes
import os
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from alignment.config.compute import Compute

Native = Literal["gpu", "cpu"] | None
"""The hardware that computes, if bfloat16 is its own arithmetic; None where it would be emulated."""
_CPUINFO = Path("/proc/cpuinfo")
_AMPERE = 8
"""Major compute capability from which NVIDIA's GPUs have bfloat16."""


def device_here(compute: Compute) -> Literal["cpu", "cuda"]:
    """Where the run will compute: what it says; else a GPU where workers get one or, without workers, one is seen."""
    if compute.device != "auto":
        return compute.device
    gets_one = compute.gpus_per_worker > 0 if compute.workers else _gpu() is not None
    return "cuda" if gets_one else "cpu"


def native_here(compute: Compute) -> Native:
    """The hardware with bfloat16 of its own: of this machine, or of Ray workers elsewhere as far as `compute` says."""
    if device_here(compute) == "cuda":
        gpu = _gpu()
        return "gpu" if gpu is None or gpu.capability >= _AMPERE else None
    flags = _cpu("flags").split() if compute.address is None else ()
    return "cpu" if "avx512_bf16" in flags or "amx_bf16" in flags else None


def avx512_here(compute: Compute) -> bool | None:
    """Whether the CPU that computes has AVX-512; None where that is another machine's."""
    if compute.address is not None or os.environ.get("RAY_ADDRESS"):
        return None
    return "avx512f" in _cpu("flags").split()


def processor(device: str) -> str:
    """Its name, "" where that does not show."""
    if device == "cpu":
        return _cpu("model name")
    gpu = _gpu()
    return "" if gpu is None else gpu.name


def gpu_here() -> tuple[str, int] | None:
    """Name and total memory in bytes of the first GPU that torch will see; None: it will see none."""
    gpu = _gpu()
    return None if gpu is None else (gpu.name, gpu.memory)


class _Gpu(NamedTuple):
    name: str
    capability: int
    memory: int = 0


class _Memory(ctypes.Structure):
    """NVML's nvmlMemory_t."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def _gpu() -> _Gpu | None:
    """The first GPU that torch will see; None: it will see none.

    Asks NVIDIA's management library, which makes no CUDA context: a forked process could use no other one any more.
    """
    visible = [one.strip() for one in os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")]
    if not visible[0] or visible[0].startswith("-"):
        return None
    try:
        if "+cpu" in metadata.version("torch"):
            return None
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except (metadata.PackageNotFoundError, OSError):
        return None
    if library.nvmlInit_v2() != 0:
        return None
    handle, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(96), _Memory()
    try:
        if visible[0].isdigit():
            failed = library.nvmlDeviceGetHandleByIndex_v2(int(visible[0]), ctypes.byref(handle))
        else:
            failed = library.nvmlDeviceGetHandleByUUID(visible[0].encode(), ctypes.byref(handle))
        failed = failed or library.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
        failed = failed or library.nvmlDeviceGetName(handle, name, len(name))
        failed = failed or library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    finally:
        library.nvmlShutdown()
    return None if failed else _Gpu(name.value.decode(), major.value, memory.total)


def _cpu(key: str) -> str:
    """A line of /proc/cpuinfo, of the first core."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    said = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in said if name.strip() == key), "")
