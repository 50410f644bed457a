"""How many tokens a model can tell the places of, from config.json or a GGUF header; stages that would give it more.

Beyond it a model with rotary positions gets worse in silence, and one with learned positions fails. Loads no weights.
What no config says (a class's default, a hub model that was never fetched) is unknown: the import records it, and the
stages after it are held to that at their start.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from alignment.config import AnyStage, FolderModel, GgufModel, HubModel, Run, TinyModel
from alignment.config.stages.fields import Place
from alignment.data.fingerprint import folder_path, gguf_path
from alignment.data.model_files import gguf_fields, hub_snapshot
from alignment.errors import ConfigError

_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
"""What architectures call it; OPT's offset of 2 comes on top of it."""
_STRETCHED = ("linear", "dynamic")
"""Scalings whose config keeps the length before scaling, as transformers asked for when it brought them in (4.31's
LlamaConfig: don't update `max_position_embeddings`). Those of llama3 and longrope keep the one after it."""


def context_length(config: Mapping[str, Any]) -> int | None:
    """From config.json's content; None for a model without a limit (ALiBi, state spaces) or without a word of it."""
    config = config.get("text_config") or config
    if _has_no_places(config):
        return None
    said = next((config[key] for key in _KEYS if isinstance(config.get(key), int)), None)
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind, factor = scaling.get("rope_type", scaling.get("type")), scaling.get("factor")
    if said is None or not isinstance(factor, int | float) or str(config.get("model_type")).startswith("gemma3"):
        return said  # Gemma 3 writes `linear` with the length after scaling
    before = scaling.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    if kind == "yarn":  # the factor counts, whatever the other says (transformers' modeling_rope_utils)
        return int((before or said) * factor)
    return int(said * factor) if kind in _STRETCHED and before is None else said


def _has_no_places(config: Mapping[str, Any]) -> bool:
    if config.get("model_type") == "mpt":
        return bool((config.get("attn_config") or {}).get("alibi", True))
    if config.get("model_type") == "deberta-v2":  # places relative to each other alone, in as many buckets as it has
        return not config.get("position_biased_input", True)
    return config.get("model_type") == "bloom" or bool(config.get("alibi"))


def of_folder(folder: Path) -> int | None:
    """Of a model folder; None where it has no config.json that can be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return context_length(config) if isinstance(config, dict) else None


def of_gguf(file: Path) -> int | None:
    """From the header of a GGUF file. Without what its rotary scaling adds: transformers unpacks none."""
    found: dict[str, Any] = {}
    try:
        found.update(gguf_fields(file))
    except (OSError, struct.error, ValueError):
        return None
    name = found.get("general.architecture")
    lengths = [found.get(f"{name}.{key}") for key in ("context_length", "rope.scaling.original_context_length")]
    return min((length for length in lengths if isinstance(length, int) and length > 0), default=None)


SOURCES: dict[type, Callable[[str, Any], int | None]] = {
    HubModel: lambda stage, model: of_folder(hub_snapshot(model)),
    FolderModel: lambda stage, model: of_folder(folder_path(stage, model)),
    GgufModel: lambda stage, model: of_gguf(gguf_path(stage, model)),
    TinyModel: lambda stage, model: model.context,
}
"""Where a model comes from -> its context length, as far as it shows now, from (stage's name, source)."""


def of_stage(run: Run, name: str) -> int | None:
    """Context length of the model that a stage makes: that of the import which its weights come from."""
    stage = run.stage(name)
    while (start := next(stage.model_refs(), None)) is not None:
        stage = run.stage(start.stage)
    source = next((item.source for item in stage.sources()), None)
    return SOURCES[type(source)](stage.name, source) if type(source) in SOURCES else None


def fitted(stage: AnyStage, limit: Callable[[str], int | None]) -> AnyStage:
    """The stage with a length that its config leaves open: the default, or what its models can take where that is less.

    Args:
        limit: name of a stage that makes a model -> its context length, None where that is unknown.
    """
    asked = stage.most_tokens()
    known = [] if asked is None else [most for ref in stage.model_refs() if ref.role != "embedder"
                                      and (most := limit(ref.stage)) is not None]
    if asked is None or asked.said or not known or asked.tokens <= min(known) or min(known) <= asked.beside:
        return stage
    return stage.model_copy(update={str(asked.place[0]): min(known) - asked.beside})


def shortened(stage: AnyStage, obeyed: AnyStage) -> str | None:
    """What `fitted` changed, in words; None where it left the stage alone."""
    asked = obeyed.most_tokens()
    if obeyed is stage or asked is None:
        return None
    return f"{asked.text}, as its model takes no more"


def too_long(stage: AnyStage, limit: Callable[[str], int | None]) -> Iterator[tuple[Place, ConfigError]]:
    """Models that the stage would give more tokens than they can take, each with the key to change.

    Args:
        limit: name of a stage that makes a model -> its context length, None where that is unknown.
    """
    asked = stage.most_tokens()
    for ref in stage.model_refs() if asked is not None else ():
        most = None if ref.role == "embedder" else limit(ref.stage)  # which cuts what it reads, and counts it
        if most is not None and asked is not None and asked.tokens > most:
            left = most - asked.beside
            lower = f"{asked.place[0]}: {left}" if left > 0 else "lower max_new_tokens"
            yield asked.place, ConfigError(
                f"more tokens than the model of {ref.stage} can tell the places of", found=asked.text,
                expected=f"at most {most}, its context length",
                hint=f"{lower}; where the model's config.json says too little, mend it there and import "
                     "it from a folder")
