"""Linear layers of a model that is not imported yet, by name, so that a LoRA target that matches none is known now.

Read from safetensors headers, or from what a Llama-shaped architecture is known to have; no weights are loaded. Where a
model is not at hand, or its layers are of a shape that is not known here, nothing is said: the stage itself looks.
"""

from __future__ import annotations

import difflib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignment.artifacts import Artifact
from alignment.checks.seen import Sight, Wrong
from alignment.config import AnyStage, FolderModel, GgufModel, HubModel, ImportModel, TinyModel, TrainBase
from alignment.data.fingerprint import folder_path, gguf_path
from alignment.data.model_files import gguf_fields, hub_snapshot, tensor_shapes
from alignment.errors import ConfigError, KubeAlignError

LLAMA = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
"""Linear layers of a Llama, and of those that are built as it is."""
_LIKE_LLAMA = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"})
"""Architectures, as GGUF calls them, with these layers."""
_EMBEDDINGS = frozenset({"embed_tokens", "wte", "wpe", "embed_in", "embed_out", "lm_head", "word_embeddings"})


def remember(sight: Sight, stage: ImportModel) -> None:
    """Keep what is known of the layers of a stage's model, for the stages that adapt it."""
    try:
        found = LAYERS[type(stage.model)](stage.name, stage.model)
    except (KubeAlignError, OSError, ValueError, struct.error):  # what is wrong with a model is another check's to say
        return
    if found:
        sight.layers[stage.name] = found


def remember_made(sight: Sight, stage: AnyStage, artifact: Artifact) -> None:
    """The same of a model that is made: its own layers, or those of its start where it is an adapter."""
    folder = artifact.path() / "model"
    if (folder / "config.json").exists():
        sight.layers[stage.name] = _of_folder(folder)
    for ref in stage.model_refs():
        if ref.stage in sight.layers:
            sight.layers.setdefault(stage.name, sight.layers[ref.stage])


def adaptable(sight: Sight, stage: TrainBase) -> Wrong:
    """Targets of an adapter that no linear layer has; a stage's own model has the layers of its start."""
    layers = sight.layers.get(stage.model)
    if not layers:
        return
    sight.layers[stage.name] = layers
    if stage.adapter is None or isinstance(stage.adapter.targets, str):
        return
    known = sorted(layers)
    for index, target in enumerate(stage.adapter.targets):
        name = target.rpartition(".")[2]  # what stands before it may be the library's own
        if name not in layers and name != "lm_head":  # which the stage itself refuses
            near = difflib.get_close_matches(name, known, 1)
            yield ("strategy", "targets", index), ConfigError(
                "no linear layer of the model has this name", found=target,
                expected=(f"perhaps {near[0]}; " if near else "") + f"one of {', '.join(known)}, or all-linear")


def _of_folder(folder: Path) -> frozenset[str]:
    """Last names of two-dimensional weights that are no embeddings; none for experts, which libraries may join."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = {name.removesuffix(".weight").rpartition(".")[2] for file in sorted(folder.glob("*.safetensors"))
             for name, shape in tensor_shapes(file).items() if name.endswith(".weight") and len(shape) == 2}
    if any(key.endswith(("experts", "experts_per_tok")) for key in config) or "quantization_config" in config:
        return frozenset()
    return frozenset(names - _EMBEDDINGS)


def _of_gguf(stage: str, model: GgufModel) -> frozenset[str]:
    """By the architecture."""
    key, architecture = next(gguf_fields(gguf_path(stage, model)), ("", ""))
    return LLAMA if key == "general.architecture" and architecture in _LIKE_LLAMA else frozenset()


LAYERS: dict[type, Callable[[str, Any], frozenset[str]]] = {
    HubModel: lambda stage, model: _of_folder(hub_snapshot(model)),
    FolderModel: lambda stage, model: _of_folder(folder_path(stage, model)),
    GgufModel: _of_gguf,
    TinyModel: lambda stage, model: LLAMA,
}
"""Where a model comes from -> last names of its linear layers, from (stage's name, source); empty: not known."""
