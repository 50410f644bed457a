"""What the files of a model say in their first bytes, and where the hub's local cache keeps them. Loads no weights.

For checks and estimates before a model is imported: what is not there, or not of the form that is known here, is the
caller's to pass over.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from alignment.config import HubModel

ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""What PEFT calls them."""
_CHECKPOINT = re.compile(r"checkpoint-[0-9]+")
_HEADER = 100_000_000
"""Bytes that a safetensors header may have at most, by its own reader."""
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING = 8


def tensor_shapes(file: Path) -> dict[str, list[int]]:
    """Name -> shape of the tensors in a safetensors file.

    Raises:
        OSError, ValueError, struct.error: it cannot be read, or is no such file.
    """
    return {name: tensor["shape"] for name, tensor in _header(file).items()}


def tensor_types(file: Path) -> set[str]:
    """What its tensors are stored as, by safetensors' names: F32, BF16, ... Raises as `tensor_shapes` does."""
    return {str(tensor["dtype"]) for tensor in _header(file).values()}


def _header(file: Path) -> dict[str, Any]:
    """Of a safetensors file: 8 bytes of little-endian length and so many bytes of JSON."""
    with file.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        header: dict[str, Any] = json.loads(handle.read(min(length, _HEADER)))
    return {name: tensor for name, tensor in header.items() if name != "__metadata__"}


class Unclear(NamedTuple):
    """Why a folder cannot be taken for the model or adapter that it is said to be."""

    problem: str
    expected: str
    hint: str | None


def unclear(folder: Path, *, adapter: bool) -> Unclear | None:
    """What another tool left in a folder that must not be taken for a whole model, or for an adapter; None: nothing
    speaks against it.

    Axolotl writes the base's config.json beside an adapter, and transformers, given such a folder, loads whatever base
    the adapter names; trainers leave checkpoint-STEP folders beside their result, or alone where they were stopped;
    quantised weights look like whole ones, but for a word in config.json.

    Args:
        adapter: whether an adapter is looked for, and not a model.
    """
    names = {path.name for path in folder.iterdir()}
    weights = {name for name in names if name.endswith(".safetensors")}
    is_adapter, is_model = ADAPTER in names, bool(weights - {ADAPTER_WEIGHTS})
    if is_adapter and not adapter and not is_model:
        return Unclear("the folder is an adapter, not a model", "config.json beside the weights",
                       "name the stage that imports its base: `base: STAGE` beside the path")
    if is_adapter and not adapter:
        return Unclear("the folder is a model and an adapter at once", "one of both",
                       f"for the model move {ADAPTER} and {ADAPTER_WEIGHTS} elsewhere; for the adapter name its base: "
                       "`base: STAGE` beside the path")
    if is_adapter:
        return None
    if "config.json" in names:
        return _quantised(folder)
    saved = sorted(filter(_CHECKPOINT.fullmatch, names), key=lambda name: int(name.partition("-")[2]))
    if not saved:
        return None
    last = folder / saved[-1]
    if any(path.name.startswith("global_step") for path in last.iterdir()) and not any(last.glob("*.safetensors")):
        return Unclear("the folder holds checkpoints of DeepSpeed alone, whose weights are in parts", "safetensors",
                       f"make them whole with zero_to_fp32.py, which lies in {saved[-1]}: --safe_serialization")
    return Unclear("the folder holds checkpoints, and no model of its own", "a model's own folder",
                   f"name one of them; the last is {last}" + (f", the first {saved[0]}" if len(saved) > 1 else ""))


def _quantised(folder: Path) -> Unclear | None:
    """Weights that a config.json says are packed. transformers would load them as they are packed, and no stage could
    train, merge or store them for what they stand for."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    except (OSError, ValueError, AttributeError):
        return None  # which the reader of the config says
    if not found:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else None
    return Unclear(f"the weights are quantised ({method or 'by a method that config.json does not name'})",
                   "weights in float32, bfloat16 or float16, without quantization_config in config.json",
                   f"take the folder that it was quantised from; vLLM alone serves it as it is: vllm serve {folder}")


def gguf_fields(file: Path) -> Iterator[tuple[str, Any]]:
    """Numbers and texts of a GGUF header (version 2 or 3, github.com/ggml-org/ggml/blob/master/docs/gguf.md) up to the
    first list, which begins the tokenizer; the architecture comes first.

    Raises:
        OSError, ValueError, struct.error: it cannot be read, or is no such file.
    """
    with file.open("rb") as handle:
        magic, version, _, count = struct.unpack("<4sIQQ", handle.read(24))
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError("not a GGUF header")
        for _ in range(count):
            key = _text(handle)
            (kind,) = struct.unpack("<I", handle.read(4))
            if kind == _STRING:
                yield key, _text(handle)
            elif kind in _NUMBERS:
                form = _NUMBERS[kind]
                (value,) = struct.unpack(form, handle.read(struct.calcsize(form)))
                yield key, value
            elif key.startswith("tokenizer."):
                return
            else:
                raise ValueError("a list before the tokenizer")


def _text(handle: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", handle.read(8))
    if length > 2**24:
        raise ValueError("not a GGUF text")
    return handle.read(length).decode("utf-8", errors="replace")


def hub_snapshot(model: HubModel) -> Path:
    """Where this machine's hub cache has a model, if it has it, by the rules of huggingface_hub (its constants.py, and
    huggingface.co/docs/huggingface_hub, Manage your cache)."""
    home = os.environ.get("HF_HOME", os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"))
    cache = os.environ.get("HF_HUB_CACHE", os.environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub")))
    folder = Path(os.path.expandvars(os.path.expanduser(cache)), f"models--{model.repo.replace('/', '--')}")
    try:
        commit = (folder / "refs" / model.revision).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        commit = model.revision
    return folder / "snapshots" / commit
