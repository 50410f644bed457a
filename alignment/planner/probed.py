"""What `kubealign probe` measured of a stage, in the store: STORE/probes/KEY.json, by the key of what it would make."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from alignment.artifacts import Store


@dataclass(frozen=True)
class Probed:
    """Peaks in bytes, by phase, beside what was planned.

    Attributes:
        device: the processor or GPU that it ran on, by name.
        rows, length: of one forward pass, and tokens of its longest row.
        measured: phase (step, evaluation, save, resume) -> peak.
        memory: bytes of the GPU that it ran on; None for a CPU.
        refuted: why the stage cannot be trained so; None where it can.
    """

    stage: str
    device: str
    rows: int
    length: int
    planned: int
    measured: dict[str, int]
    seconds: float
    refuted: str | None = None
    memory: int | None = None

    @property
    def peak(self) -> int:
        return max(self.measured.values(), default=0)


def write(store: Store, key: str, probed: Probed) -> str:
    """Keep it; returns where."""
    path = f"{store.root}/probes/{key}.json"
    store.fs.makedirs(f"{store.root}/probes", exist_ok=True)
    store.fs.pipe_file(path, json.dumps(asdict(probed), indent=2).encode())
    return path


def read(store: Store, key: str) -> Probed | None:
    """What was measured last; None where nothing was, or a later version wrote it."""
    try:
        return Probed(**json.loads(store.fs.cat_file(f"{store.root}/probes/{key}.json")))
    except (OSError, ValueError, TypeError):
        return None
