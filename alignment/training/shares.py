"""A checkpoint that other workers wrote than those who go on from it: its shares are made whole, once, for any number.

By DeepSpeed's own conversion to its universal form, beside the shares, in the checkpoint's folder; DeepSpeed then gives
each worker its part. What cannot be shared out anew is refused: other sharding, states of an optimizer that the
conversion does not know. Does not choose the checkpoint (checkpoints.py), and loads nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from alignment.config.sharding import ZERO, zero_stage
from alignment.errors import StageError
from alignment.progress import console, waiting

_FILE, _LATEST = "shares.json", "latest_universal"
_ADAM = {"exp_avg", "exp_avg_sq", "step"}
"""The optimizer's states that the conversion knows."""


class Shares(NamedTuple):
    """By which sharding a checkpoint was written, and by how many workers."""

    sharding: str
    workers: int

    def __str__(self) -> str:
        return f"{self.workers} worker{'' if self.workers == 1 else 's'}, sharding {self.sharding}"


def note(checkpoint: Path, sharding: str, workers: int) -> None:
    """Leave in a checkpoint who wrote it."""
    (checkpoint / _FILE).write_text(json.dumps(_now(sharding, workers)._asdict()), encoding="utf-8")


def noted(checkpoint: Path) -> Shares | None:
    """Who wrote a checkpoint; None where an earlier version did that noted nothing of checkpoints without shares."""
    file = checkpoint / _FILE
    return Shares(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None


def has_all(checkpoint: Path) -> bool:
    """Whether every worker's share lies here: a machine that was one of several has its own alone."""
    made = noted(checkpoint)
    return made is None or not zero_stage(made.sharding) or len(_optimizers(checkpoint)) == made.workers


def written_by_others(checkpoint: Path, workers: int) -> bool:
    """Whether another number of workers wrote it, whose random states are not those of this one's ranks."""
    made = noted(checkpoint)
    return made is not None and made.workers != workers


def is_whole(checkpoint: Path) -> bool:
    """Whether the shares were made whole."""
    return (checkpoint / _LATEST).exists()


def fits(checkpoint: Path, sharding: str, workers: int) -> bool:
    """Whether a checkpoint can be read as it was written: by the same workers, or without shares by any."""
    made, now = noted(checkpoint), _now(sharding, workers)
    return made == now or not (zero_stage(now.sharding) or (made is not None and zero_stage(made.sharding)))


def make_whole(checkpoint: Path, sharding: str, workers: int, work: str) -> None:
    """Have a checkpoint that other workers wrote so that these can read it. On one rank of each disk.

    Args:
        sharding, workers: of this attempt.
        work: what to remove to begin anew.

    Raises:
        StageError: it cannot be; with both numbers of workers, and what to do.
    """
    made = noted(checkpoint) or Shares("none", workers)
    refused = _refused(checkpoint, made, _now(sharding, workers))
    if refused is not None:
        raise other_workers(refused, checkpoint, made, _now(sharding, workers), work)
    if is_whole(checkpoint):
        return
    from deepspeed.checkpoint import ds_to_universal

    tag = (checkpoint / "latest").read_text(encoding="utf-8").strip()
    target = checkpoint / f"{tag}_universal"
    shutil.rmtree(target, ignore_errors=True)  # of an attempt that was cut short; the file `latest_...` comes last
    console.print(f"! {checkpoint.name}: the shares of {made} are made whole, once, for {workers}", markup=False)
    with waiting(lambda: f"makes the shares of {checkpoint.name} whole"), _unsaid(ds_to_universal):
        ds_to_universal.main(SimpleNamespace(
            input_folder=str(checkpoint / tag), output_folder=str(target), num_extract_workers=1, num_merge_workers=1,
            keep_temp_folder=False, strict=True, inject_missing_state=True))


def other_workers(why: str, checkpoint: Path, made: Shares, now: Shares, work: str) -> StageError:
    """The refusal of a checkpoint, with both numbers of workers and what to do."""
    return StageError(f"the checkpoint to resume from was written by other workers, {why}", where=str(checkpoint),
                      found=str(now), expected=f"{made}, as it was written",
                      hint=f"set compute.workers and compute.sharding so, or remove {work} to begin anew")


def _refused(checkpoint: Path, made: Shares, now: Shares) -> str | None:
    """Why a checkpoint cannot be shared out anew."""
    if made.sharding != now.sharding:
        return "who share it out otherwise"
    files = _optimizers(checkpoint)
    if len(files) != made.workers:
        return f"and {len(files)} of their {made.workers} shares are here"
    states = torch.load(files[0], map_location="cpu", weights_only=False, mmap=True)["optimizer_state_dict"]
    inner = states.get("base_optimizer_state", states.get("optimizer_state_dict"))["state"]
    kept = {key for state in inner.values() for key in state}
    if kept != _ADAM:
        return f"and states of its optimizer cannot be shared out anew ({', '.join(sorted(kept - _ADAM)[:4])})"
    return None


def _optimizers(checkpoint: Path) -> list[Path]:
    """The files of each worker's share."""
    tag = checkpoint / "latest"
    if not tag.exists():
        return []
    return sorted((checkpoint / tag.read_text(encoding="utf-8").strip()).glob("*_optim_states.pt"))


def _now(sharding: str, workers: int) -> Shares:
    return Shares(sharding if sharding in ZERO else "none", workers)


@contextlib.contextmanager
def _unsaid(module: Any) -> Iterator[None]:
    """Without what the conversion prints, and its bars; what is waited for is still said."""
    bars, module.tqdm = module.tqdm, SimpleNamespace(tqdm=lambda items, **kwargs: items)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        module.tqdm = bars


def read_whole(engine_or_config: Any, checkpoint: Path) -> None:
    """Tell DeepSpeed in which form to read a checkpoint.

    Args:
        engine_or_config: its engine; before there is one, its config as a dict.
    """
    if isinstance(engine_or_config, dict):
        engine_or_config["checkpoint"] = {"load_universal": is_whole(checkpoint)}
    else:
        engine_or_config._config.load_universal_checkpoint = is_whole(checkpoint)


def settle(optimizer: Any, checkpoint: Path) -> None:
    """Mend what DeepSpeed 0.19.8 makes of a whole checkpoint under ZeRO-3: one count of steps for all groups of
    weights, which each group's step then raises, and the first group's settings (weight decay) for all.

    Args:
        optimizer: PyTorch's, inside DeepSpeed's.
    """
    tag = (checkpoint / _LATEST).read_text(encoding="utf-8").strip()
    saved = torch.load(checkpoint / tag / "zero" / "optimizer_state.pt", map_location="cpu", weights_only=False)
    groups = saved["optimizer_state_dict"]["param_groups"]
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()
    for group, made in zip(optimizer.param_groups, groups, strict=True):
        group.update({key: value for key, value in made.items() if key != "params"})
