"""What arithmetic this machine will use, as far as it shows without torch.

The stage itself decides with torch in hand; this is for estimates only.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal

from alignment.config import Compute
from alignment.planner.estimate import BFLOAT16, FLOAT32

_CPUINFO = Path("/proc/cpuinfo")
_NVIDIA = Path("/proc/driver/nvidia/version")
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def device(compute: Compute) -> Literal["cpu", "cuda"]:
    """Where the run will compute: what it says, else a GPU where its driver is loaded."""
    if compute.device != "auto":
        return compute.device
    return "cuda" if compute.gpus_per_worker > 0 or _NVIDIA.exists() else "cpu"


def free_memory() -> float:
    """Bytes that this process may still take: of the machine, and of its container where that has less; infinite where
    the system does not say."""
    free = _number(_MEMINFO, r"MemAvailable:\s+(\d+) kB", 1024)
    limit, used = (_number(_CGROUP / name, r"(\d+)") for name in ("memory.max", "memory.current"))
    cache = _number(_CGROUP / "memory.stat", r"^inactive_file (\d+)")
    taken = (used if math.isfinite(used) else 0.0) - (cache if math.isfinite(cache) else 0.0)
    return min(free, limit - taken)


def _number(file: Path, pattern: str, unit: float = 1.0) -> float:
    try:
        found = re.search(pattern, file.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
    except OSError:
        found = None
    return float(found[1]) * unit if found else math.inf


def value_bytes(compute: Compute, *, training: bool = False) -> int:
    """Bytes of a frozen weight: bfloat16 where the hardware computes it natively, else float32.

    auto trains in float32 on a CPU all the same: bfloat16 was measured to gain nothing there (training/fit.py).
    """
    if training and compute.dtype == "auto" and device(compute) == "cpu":
        return FLOAT32
    if compute.dtype != "auto":
        return FLOAT32 if compute.dtype == "float32" else BFLOAT16
    return BFLOAT16 if device(compute) == "cuda" or _native_bfloat16() else FLOAT32


def _native_bfloat16() -> bool:
    try:
        flags = _CPUINFO.read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
