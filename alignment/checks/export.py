"""What is known to fail of an export before anything is made: forms that the model has not, data that is not its own,
a token that is not there."""

from __future__ import annotations

import importlib.util
import json
import os

from alignment.checks.seen import Sight, Wrong
from alignment.checks.tokens import root
from alignment.config import Export, FolderModel, HubModel, Run
from alignment.config.run import adapter_of
from alignment.config.stages.export import GGUF_FAMILIES
from alignment.data.fingerprint import folder_path
from alignment.data.model_files import hub_snapshot
from alignment.errors import ConfigError, KubeAlignError

_PACKAGES = {"gguf": "gguf", "nf4": "bitsandbytes", "fp8": "compressed_tensors"}
"""Form -> the package that writes it."""


def exportable(run: Run, stage: Export, sight: Sight) -> Wrong:
    """Forms and data that the model has not; what later stages read of it is what they read of its start."""
    stages = {other.name: other for other in run.stages}
    adapter = adapter_of(stages, stage.model)
    told = not stages[root(run, stage.model)].brings_artifact
    if "adapter" in stage.form and adapter is None and stages[stage.model].base is None and told:
        yield ("form",), ConfigError(f"{stage.model} has whole weights and no adapter", found="adapter",
                                     expected="safetensors, gguf, nf4 or fp8")
    if stage.merge_into == "dequantised" and adapter is not None and adapter.quantised is None:
        yield ("merge_into",), ConfigError(f"no four bits were under the adapter of {stage.model}", found="dequantised",
                                           expected="original, or no merge_into")
    known = _data(run, stage)
    if told and (unknown := sorted(set(stage.datasets or ()) - set(known))):
        yield ("datasets",), ConfigError("names data that has no part in the model", found=", ".join(unknown),
                                         expected=f"one of {', '.join(known) or 'none'}")
    if "gguf" in stage.form and (family := _family(run, stage)) is not None and family not in GGUF_FAMILIES:
        yield ("form",), ConfigError("GGUF: a model of this type is not known to this converter", found=family,
                                     expected=f"one of {', '.join(GGUF_FAMILIES)}",
                                     hint="export safetensors, and convert with llama.cpp's convert_hf_to_gguf.py")
    if stage.push_to_hub is not None and stage.licence is None:
        sight.warn(stage.name, "is pushed without a licence: `licence: NAME` says it in the card")
    if stage.model in sight.layers:
        sight.layers[stage.name] = sight.layers[stage.model]
    if stage.model in sight.marks:
        sight.marks[stage.name] = sight.marks[stage.model]
    if stage.model in sight.templates:
        sight.templates[stage.name] = sight.templates[stage.model]
    if stage.model in sight.settled:
        sight.settled.add(stage.name)


def exportable_here(stage: Export) -> Wrong:
    """Packages and the token, where the stage is made."""
    for form in (form for form in stage.form if form in _PACKAGES):
        if importlib.util.find_spec(_PACKAGES[form]) is None:
            yield ("form",), ConfigError(f"the package that writes {form} is not installed", found=_PACKAGES[form],
                                         expected="kubealign[train]", hint="pip install 'kubealign[train]'")
    push = stage.push_to_hub
    if push is not None and not push.dry_run and not os.environ.get(push.token_env, "").strip():
        yield ("push_to_hub", "token_env"), ConfigError(
            "the hub's token is not in the environment", found=f"{push.token_env}, empty or not set",
            expected="a token that may write, where the stage is made", hint="or dry_run: true")


def _data(run: Run, stage: Export) -> list[str]:
    """Stages that import the data which has a part in the model, in order."""
    waiting, found = [stage.model], set[str]()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += run.stage(name).inputs()
    return [other.name for other in run.stages if other.name in found and other.brings_data]


def _family(run: Run, stage: Export) -> str | None:
    """`model_type` of the base, where its config.json is at hand."""
    start = run.stage(root(run, stage.model))
    model = getattr(start, "model", None)
    try:
        folder = (folder_path(start.name, model) if isinstance(model, FolderModel)
                  else hub_snapshot(model) if isinstance(model, HubModel) else None)
        if folder is None:
            return None
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (KubeAlignError, OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None
