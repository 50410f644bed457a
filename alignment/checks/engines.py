"""Stages whose models shall answer with vLLM: what it cannot serve, as far as the run file and files at hand say it.

An error where `compute.engine` names vLLM; `auto` takes transformers for such models, and a note says so. What shows in
made models alone is said by the stage itself (inference/vllm/choice.py), by the same rules. Imports no vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from alignment.checks.seen import Sight, Wrong
from alignment.checks.tokens import root
from alignment.config import Adapter, AnyStage, Compute, FolderModel, Run, TinyModel
from alignment.config.engines import not_installed, vllm_here, wanted
from alignment.config.hardware import device_here
from alignment.config.run import adapter_of
from alignment.config.stages.fields import on_this_machine
from alignment.data.adapter_config import read_adapter_config
from alignment.errors import ConfigError, KubeAlignError
from alignment.inference.vllm.limits import Unfit, unfit_adapter, unfit_model


def installed(run: Run, compute: Compute) -> Iterator[tuple[str, ConfigError]]:
    """(key of `compute`, what is wrong) where vLLM is named for stages of this machine, and is not there."""
    device = device_here(compute)
    if compute.engine == "vllm" and compute.address is None and vllm_here(device) is None and any(
            ref.asked for stage in run.stages for ref in stage.model_refs()):
        yield "engine", not_installed(device)


def servable(run: Run, stage: AnyStage, sight: Sight) -> Wrong:
    """Models of a stage that vLLM is named for and cannot serve; where `auto` takes it, that is said."""
    device = device_here(run.compute)
    asked = [ref for ref in stage.model_refs() if ref.asked and run.stage(ref.stage).endpoint is None]
    if not asked or wanted(run.compute, device) != "vllm":
        return
    found = [(ref, unfit) for ref in asked
             for unfit in (*_of_adapter(run, ref.stage), *_of_weights(run, ref.stage, device))]
    if run.compute.engine == "auto":
        sight.note(stage.name, "vLLM" if not found else f"transformers, since of {found[0][0].stage} "
                                                        f"{found[0][1].problem}")
        return
    for ref, unfit in found:
        yield ref.place, ConfigError(unfit.problem, found=f"{ref.stage}: {unfit.found}", expected=unfit.expected,
                                     hint="compute.engine: transformers, or auto")


def _of_adapter(run: Run, name: str) -> Iterator[Unfit]:
    stages = {stage.name: stage for stage in run.stages}
    own: Adapter | None = adapter_of(stages, name)
    if own is not None:
        if own.quantised is not None:
            yield from unfit_model({}, "cuda", own.quantised)
        yield from unfit_adapter({"r": own.r, "modules_to_save": own.modules_to_save})
    stage: AnyStage = stages[name]
    while stage.base is None and (start := next(stage.model_refs(), None)) is not None:
        stage = stages[start.stage]
    source = getattr(stage, "model", None)
    if stage.base is not None and isinstance(source, FolderModel):
        try:
            yield from unfit_adapter(read_adapter_config(on_this_machine(source.path or ""), f"stage {stage.name}"))
        except KubeAlignError:
            return  # said of the stage that imports it


def _of_weights(run: Run, name: str, device: str) -> Iterator[Unfit]:
    source = getattr(run.stage(root(run, name)), "model", None)
    config: dict[str, Any] = {}
    if isinstance(source, FolderModel):
        try:
            config = dict(json.loads((on_this_machine(source.path or "") / "config.json").read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return  # said of the stage that imports it
    if isinstance(source, TinyModel):
        config = {"hidden_size": source.hidden_size, "num_attention_heads": source.heads}
    yield from unfit_model(config, device)
