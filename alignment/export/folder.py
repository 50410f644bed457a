"""Model folders that transformers 5 and 4.57 read alike: weights in shards, configs and tokenizer with both spellings.

Transformers 5 writes `rope_parameters`, `TokenizersBackend` and `extra_special_tokens`; 4.57 reads `rope_theta` and
`rope_scaling` (and silently takes a base of 10,000 where they are missing), `PreTrainedTokenizerFast` and
`additional_special_tokens`. Both spellings are written; transformers 5 reads its own where it finds two.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from alignment.errors import ModelError

TOKENIZER = "tokenizer_config.json"
_NEW_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}
"""Classes that 4.57 has not -> the one that reads the same tokenizer.json there."""


def write_model(model: Any, tokenizer: Any, folder: Path, shard_bytes: int) -> None:
    """Weights, configs and tokenizer; the tokenizer as it is read again makes the same ids.

    Raises:
        ModelError: positions in a form that 4.57 has no name for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size=shard_bytes)
    rewrite(folder / "config.json", lambda config: old_positions(config, str(folder / "config.json")))
    write_tokenizer(tokenizer, folder)


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """The tokenizer's files, its chat template in a file of its own and in tokenizer_config.json."""
    tokenizer.save_pretrained(folder)
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")

    def spelled(config: dict[str, Any]) -> None:
        name = str(config.get("tokenizer_class"))
        config["tokenizer_class"] = _NEW_CLASSES.get(name, name)
        config.pop("backend", None)
        if isinstance(tokens := config.get("extra_special_tokens"), list):
            config["additional_special_tokens"] = tokens
            del config["extra_special_tokens"]
        config["chat_template"] = template

    rewrite(folder / TOKENIZER, spelled)


def check_tokenizer(tokenizer: Any, folder: Path, texts: list[str]) -> None:
    """Raise ModelError where the folder's tokenizer, read as others read it, does not make the ids of `tokenizer`."""
    read = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for text in texts:
        ours, theirs = tokenizer(text).input_ids, read(text).input_ids
        if ours != theirs:
            raise ModelError("the tokenizer that was written makes other ids than the one that was trained with",
                             where=str(folder), found=f"{theirs[:12]} for {text[:40]!r}", expected=str(ours[:12]))
    if read.get_chat_template() != tokenizer.get_chat_template() or read.eos_token_id != tokenizer.eos_token_id:
        raise ModelError("the tokenizer that was written has another template or end token", where=str(folder),
                         found=read.eos_token, expected=str(tokenizer.eos_token))


def old_positions(config: dict[str, Any], where: str) -> None:
    """Give a config, and the text model's in it, rotary positions as transformers 4.57 spells them.

    Raises:
        ModelError: they differ by kinds of layers that 4.57 has no keys for.
    """
    if isinstance(inner := config.get("text_config"), dict):
        old_positions(inner, where)
    found = config.get("rope_parameters")
    if not isinstance(found, dict):
        return
    if set(found) == {"full_attention", "sliding_attention"}:  # Gemma 3
        config["rope_local_base_freq"] = found["sliding_attention"]["rope_theta"]
        found = found["full_attention"]
    if not isinstance(found.get("rope_theta"), (int, float)):
        raise ModelError("the model's positions are of a form that transformers 4.57 has no keys for", where=where,
                         found=str(found)[:200], expected="rope_parameters with one rope_theta",
                         hint="form: adapter, or gguf, do not need them")
    config["rope_theta"] = found["rope_theta"]
    scaling = {key: value for key, value in found.items() if key not in ("rope_theta", "partial_rotary_factor")}
    config["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    if "partial_rotary_factor" in found:
        config["partial_rotary_factor"] = found["partial_rotary_factor"]


def rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A JSON file, changed in place."""
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    change(config)
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
