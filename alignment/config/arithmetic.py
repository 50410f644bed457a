"""Which arithmetic each stage computes in, settled Run -> Run before keys are made: what is learned and said depends on
it, so it belongs to a stage's digest.

A stage's own `dtype` counts before `compute.dtype`. `auto` asks the hardware: of this machine, without torch, or of a
profile's pods; so the machine that submits a run, the operator and the pods, which get the settled run, make one key.
"""

from __future__ import annotations

from collections.abc import Callable

from alignment.config.hardware import Native, native_here
from alignment.config.run import Run
from alignment.config.stages import AnyStage
from alignment.config.stages.fields import Dtype


def settled(run: Run, native: Callable[[AnyStage], Native]) -> Run:
    """The run in which every stage that computes with a model says its dtype.

    Args:
        native: hardware with bfloat16 of its own, asked for each stage that leaves it to `auto`.
    """
    return run.model_copy(update={"stages": tuple(_settled(run, stage, native) for stage in run.stages)})


def settled_here(run: Run) -> Run:
    """`settled` for this machine and its Ray workers."""
    return settled(run, lambda stage: native_here(run.compute))


def computed(run: Run, stage: AnyStage) -> Run:
    """The run as a stage's body reads it: `compute.dtype` is that stage's own."""
    return run.model_copy(update={"compute": run.compute.model_copy(update={
        "dtype": stage.arithmetic or run.compute.dtype})})


def _settled(run: Run, stage: AnyStage, native: Callable[[AnyStage], Native]) -> AnyStage:
    if not stage.bfloat16_on or stage.arithmetic is not None:
        return stage
    dtype: Dtype
    if run.compute.dtype != "auto":
        dtype = run.compute.dtype
    else:
        dtype = "bfloat16" if native(stage) in stage.bfloat16_on else "float32"
    return stage.model_copy(update={"dtype": dtype})
