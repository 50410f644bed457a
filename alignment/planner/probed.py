"""What `kubealign probe` measured of a stage, in the store: STORE/probes/KEY.json, by the key of what it would make.
And an estimate that starts from it, of any stage whose memory depends on the same (`likeness`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace

from alignment.artifacts import Store, digest_of
from alignment.config import Run, TrainBase
from alignment.planner.estimate import Memory
from alignment.planner.model_sizes import source_of
from alignment.planner.sharing import CONTEXT, NCCL

_APART = frozenset({
    "name", "model", "rows", "eval_rows", "take", "epochs", "batch_size", "micro_batch_size", "learning_rate",
    "max_length", "too_long", "checkpoints", "log_every", "log_to", "gates", "teacher", "reference_model"})
"""Keys of a stage on which its memory does not depend, or that are compared otherwise."""
_APART_OF = {"strategy": frozenset({"why", "alpha"}), "trl": frozenset({
    "max_steps", "warmup_steps", "lr_scheduler_type", "weight_decay", "max_grad_norm", "beta"})}


@dataclass(frozen=True)
class Probed:
    """Peaks in bytes, by phase, beside what was planned.

    Attributes:
        device: the processor or GPU that it ran on, by name.
        rows, length: of one forward pass, and tokens of its longest row.
        measured: phase (step, evaluation, save, resume) -> peak.
        memory: bytes of the GPU that it ran on; None for a CPU.
        refuted: why the stage cannot be trained so; None where it can.
        like: `likeness` of the stage; None where an earlier version measured.
        accumulates: whether a step had several forward passes.
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
    like: str | None = None
    accumulates: bool = False

    @property
    def peak(self) -> int:
        return max(self.measured.values(), default=0)

    @property
    def seen(self) -> int:
        """The peak with what a GPU's allocator does not count: its context."""
        return self.peak + (CONTEXT if self.memory is not None else 0)


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


def read_all(store: Store) -> list[Probed]:
    """What was measured of any stage."""
    if not store.fs.exists(f"{store.root}/probes"):
        return []
    names = sorted(str(path).rsplit("/", 1)[-1] for path in store.fs.ls(f"{store.root}/probes", detail=False))
    found = (read(store, name.removesuffix(".json")) for name in names if name.endswith(".json"))
    return [probed for probed in found if probed is not None]


def likeness(run: Run, stage: TrainBase, *, on_gpu: bool) -> str:
    """Digest of what a stage's memory depends on beside rows, their length and how the model is shared out: where the
    weights come from, the method, the strategy, the dtype and options.

    Args:
        run: with its dtypes settled.
    """
    config = stage.model_dump(mode="json", exclude=set(_APART), exclude_none=True)
    for key, apart in _APART_OF.items():
        config[key] = {name: value for name, value in config[key].items() if name not in apart}
    models = [stage, *([] if stage.frozen is None else [run.stage(stage.frozen.stage)])]
    sources = [source_of(run, one) for one in models]
    return digest_of({
        "config": config, "dtype": stage.arithmetic, "on_gpu": on_gpu, "evaluates": stage.eval_rows is not None,
        "packed": stage.longest if getattr(stage, "packing", False) else None,
        "models": [None if source is None else [type(source).__name__, source.model_dump(mode="json")]
                   for source in sources]})


def corrected(
    now: Memory, rows: int, length: int, probes: Iterable[Probed], formula: Callable[[Probed], Memory],
    workers: int = 1,
) -> tuple[Memory, Probed | None]:
    """An estimate that starts from what was seen: for the rows and the length that were probed it is the measured peak.
    For others weights, gradients, optimizer states and buffers go by the formulas, and what is left of the peak grows
    and shrinks as they say. Never less than what was measured of no more rows that are no longer.

    Args:
        now: by the formulas.
        probes: of stages of the same likeness.
        formula: the same estimate for what was probed, on one worker.

    Returns:
        The estimate, and the probe that it starts from: the nearest in tokens of a pass; None where there is none.
    """
    probes = list(probes)
    nearest = min((probe for probe in probes if probe.refuted is None),
                  key=lambda probe: abs(math.log(rows * length / (probe.rows * probe.length))), default=None)
    if nearest is None:
        total = float(now.total)
    else:
        then = formula(nearest)
        still, still_then = _still(now, workers), _still(then, 1)
        moving, moving_then = now.total - still, then.total - still_then
        left = nearest.seen - still_then
        if left > 0 and moving_then > 0:
            total = still + left * moving / moving_then
        else:  # less than what lies still: pages that nobody has written yet
            total = nearest.seen + max(0, still - still_then) + max(0, moving - moving_then)
    below = [probe for probe in probes if probe.rows <= rows and probe.length <= length]
    highest = max(below, key=lambda probe: probe.seen, default=None)
    if highest is not None and highest.seen > total:
        total, nearest = highest.seen, nearest or highest
    return replace(now, probed=round(total) - now.total), nearest


def _still(memory: Memory, workers: int) -> int:
    """Bytes that do not depend on rows and lengths."""
    own = min(memory.overhead, CONTEXT + (NCCL if workers > 1 else 0))
    return memory.weights + memory.gradients + memory.optimizer + memory.buffers + own
