"""What `adapter_config.json` of somebody else's adapter may say, read without PEFT: for `check` and for the import.

A key that changes what an adapter computes is known here, or must be off: an adapter that would be half understood is
refused by that key's name. Reads no weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alignment.data.model_files import ADAPTER, ADAPTER_WEIGHTS, unclear
from alignment.errors import ModelError

CONFIG, WEIGHTS = ADAPTER, ADAPTER_WEIGHTS
_ANY = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout",
    "modules_to_save", "peft_version", "r", "rank_pattern", "revision", "target_modules", "target_parameters",
    "use_rslora",
    # Of methods that change nothing while they are off, which other keys say.
    "loftq_config", "megatron_core", "qalora_group_size", "task_type", "peft_type", "bias", "init_lora_weights",
})
_FRESH = (True, False, None, "gaussian", "orthogonal")
"""`init_lora_weights` that leave the base's weights alone; the others (pissa, olora, corda, ...) train on a residue."""


def read_adapter_config(folder: Path, where: str) -> dict[str, Any]:
    """adapter_config.json of a LoRA for causal language models.

    Raises:
        ModelError: it is missing or damaged, of another PEFT type or task, or uses what is not known here.
    """
    def refuse(problem: str, found: object, expected: str, hint: str | None = None) -> ModelError:
        return ModelError(problem, where=f"{where}: {folder.absolute()}", found=found, expected=expected, hint=hint)

    if folder.is_dir() and (other := unclear(folder, adapter=True)) is not None:
        raise refuse(other.problem, sorted(path.name for path in folder.iterdir())[:12], other.expected, other.hint)
    merge = "merge it into its base with PEFT, and import the whole model"
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        _ = config["r"] + config["lora_alpha"] if config["peft_type"] == "LORA" else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise refuse(f"the folder has no usable {CONFIG}: {type(error).__name__}: {error}",
                     sorted(path.name for path in folder.iterdir())[:12] if folder.is_dir() else None,
                     "a folder as PEFT's save_pretrained writes it") from error
    if config["peft_type"] != "LORA":
        raise refuse("an adapter of this type is not known here", config["peft_type"], "peft_type LORA", merge)
    if config.get("task_type") not in ("CAUSAL_LM", None):
        raise refuse("the adapter is not of a language model", config["task_type"], "task_type CAUSAL_LM")
    if config.get("bias", "none") != "none":
        raise refuse("the adapter trains biases of the base as well", f"bias: {config['bias']}", "bias: none", merge)
    if config.get("init_lora_weights", True) not in _FRESH:
        raise refuse("the adapter began by changing its base's weights",
                     f"init_lora_weights: {config['init_lora_weights']}", "an adapter of the base as it is",
                     "save it with path_initial_model_for_weight_conversion, or merge it and import the whole model")
    for key, value in config.items():
        if key not in _ANY and value not in (None, False, [], {}):
            raise refuse("the adapter uses what is not known here", f"{key}: {value}", f"a plain LoRA, without {key}",
                         merge)
    if not (folder / WEIGHTS).is_file():
        raise refuse("the adapter's weights are missing, or pickled, and reading a pickle can run any code",
                     sorted(path.name for path in folder.iterdir())[:12], WEIGHTS)
    return dict(config)
