"""What memory this process may still take, without torch. What a stage needs is estimate.py's."""

from __future__ import annotations

import math
import re
from pathlib import Path

_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


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
