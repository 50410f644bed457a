"""How large the models of a run are before anything is imported, by stage: from what lies here, and for `auto` from the
hub's config.json alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignment.artifacts import Artifact
from alignment.config import AnyStage, FolderModel, GgufModel, HubModel, Run, TinyModel
from alignment.data.fingerprint import folder_path, gguf_path
from alignment.data.model_files import hub_snapshot
from alignment.errors import ModelError
from alignment.planner.counting import size_of_config, size_of_folder
from alignment.planner.sizes import ModelSize, safetensors_parameters, size_of_gguf, size_of_tiny


def _of_hub(stage: str, model: HubModel) -> ModelSize | None:
    folder = hub_snapshot(model)
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return size_of_config(config) if isinstance(config, dict) else None


SIZES: dict[type, Callable[[str, Any], ModelSize | None]] = {
    HubModel: _of_hub,
    FolderModel: lambda stage, model: size_of_folder(folder_path(stage, model)),
    GgufModel: lambda stage, model: size_of_gguf(gguf_path(stage, model)),
    TinyModel: lambda stage, model: size_of_tiny(model),
}
"""Where a model comes from -> its size before it is imported, from (stage's name, source); None: not known yet."""


def of_reader(stage: str, model: HubModel | FolderModel | TinyModel) -> ModelSize | None:
    """Size of a model that writes no text (BERT, a classifier), from config.json and safetensors headers; None where it
    is not at hand, or says other keys than BERT's."""
    if isinstance(model, TinyModel):
        return size_of_tiny(model)
    return _size_of_reader(hub_snapshot(model) if isinstance(model, HubModel) else folder_path(stage, model))


def _size_of_reader(folder: Path) -> ModelSize | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        hidden, layers, heads, wide, vocab = (int(config[key]) for key in (
            "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"))
        counted = sum(safetensors_parameters(file) for file in sorted(folder.glob("*.safetensors")))
    except (OSError, ValueError, KeyError, TypeError, ModelError):
        return None
    linear = (*((hidden, hidden),) * 4, (hidden, wide), (wide, hidden))
    parameters = counted or vocab * hidden + layers * sum(one * other for one, other in linear)
    return ModelSize(parameters, layers, hidden, heads, heads, hidden // heads, wide, vocab, tied=True, linear=linear)


def of_artifact(artifact: Artifact) -> ModelSize | None:
    """Of an imported model, which may lie in an object store."""
    if artifact.store.is_local:
        return size_of_folder(artifact.path() / "model")
    config = f"{artifact.store.root}/artifacts/{artifact.key}/model/config.json"
    return size_of_config(json.loads(artifact.store.fs.cat_file(config)))


def of_any(artifact: Artifact) -> ModelSize | None:
    """Of any model in a folder, an adapter being as large as its base; None elsewhere, and where it does not show."""
    if not artifact.store.is_local:
        return None
    try:
        info = json.loads((artifact.path() / "model" / "kubealign.json").read_text(encoding="utf-8"))
        if "reads" in info:
            return _size_of_reader(artifact.path() / "model")
        base = artifact if info["base"] is None else artifact.store.find(str(info["base"]))
        return None if base is None else size_of_folder(base.path() / "model")
    except (OSError, ValueError, KeyError, TypeError, ModelError):
        return None


def source_of(run: Run, stage: AnyStage) -> Any:
    """Where the weights of the model come from that a stage starts from or makes; None where it has none."""
    stage = root_of(run, stage)
    return next((item.source for item in stage.sources() if type(item.source) in SIZES), None)


def of_stage(run: Run, stage: AnyStage) -> ModelSize | None:
    """Of the model that a stage starts from or makes: that of the import which its weights come from."""
    source = source_of(run, stage)
    return None if source is None else SIZES[type(source)](root_of(run, stage).name, source)


def root_of(run: Run, stage: AnyStage) -> AnyStage:
    """The stage that brings the weights which a stage starts from or makes."""
    while (start := next(stage.model_refs(), None)) is not None:
        stage = run.stage(start.stage)
    base = getattr(stage, "base", None)
    return stage if base is None else run.stage(base)
