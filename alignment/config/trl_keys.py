"""Which keys the installed TRL and transformers accept in `trl: {...}`, read from their source without importing.

Importing TRL takes ten seconds and `check` promises one; the keys are the annotated names of the config classes,
so the syntax tree of four files answers. Where TRL is not installed (a control-plane laptop), nothing is said
here and the stage itself refuses an unknown key.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

OURS = {
    "output_dir": "the store decides", "per_device_train_batch_size": "micro_batch_size",
    "per_device_eval_batch_size": "micro_batch_size", "gradient_accumulation_steps": "batch_size",
    "num_train_epochs": "epochs", "learning_rate": "learning_rate", "max_length": "max_length",
    "packing": "packing", "completion_only_loss": "loss", "assistant_only_loss": "loss",
    "save_steps": "checkpoints.every", "eval_steps": "checkpoints.every", "save_strategy": "checkpoints.every",
    "eval_strategy": "eval_rows", "save_total_limit": "checkpoints.keep", "load_best_model_at_end": "checkpoints.final",
    "logging_steps": "log_every", "logging_strategy": "log_every", "report_to": "log_to", "seed": "the run's seed",
    "bf16": "compute.dtype", "fp16": "compute.dtype", "use_cpu": "compute.device", "ddp_backend": "compute",
    "precompute_ref_log_probs": "reference", "truncation_mode": "too_long", "dataset_kwargs": "our tokenization",
    "model_init_kwargs": "the import stage", "chat_template_path": "template of the import stage",
    "resume_from_checkpoint": "nothing: a killed stage resumes by itself",
    "data_seed": "the run's seed", "run_name": "the names of run and stage", "disable_dropout": "strategy.dropout",
    "disable_tqdm": "nothing: progress is shown by us",
    "logging_nan_inf_filter": "nothing: a loss that is not finite stops the stage",
    "metric_for_best_model": "checkpoints.final: the best has the lowest loss on eval_rows",
    "greater_is_better": "checkpoints.final: the best has the lowest loss on eval_rows",
}
"""TRL's keys whose value our own config already holds: one value, one place."""
_TRACKERS = {"tensorboard": ("tensorboardX", "tensorboard"), "wandb": ("wandb",), "mlflow": ("mlflow",)}
"""Value of `log_to` -> packages of which one must be installed."""


@cache
def _site(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent.parent if spec is not None and spec.origin else None


@cache
def _fields(file: Path, name: str) -> frozenset[str]:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return frozenset(
                item.target.id
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            )
    return frozenset()


def known_keys(config: str) -> frozenset[str] | None:
    """Keys of a TRL config, or None where the libraries are not installed.

    Args:
        config: FILE:CLASS, relative to TRL's package, as in a method's `trl_config`.
    """
    trl, transformers = _site("trl"), _site("transformers")
    if trl is None or transformers is None:
        return None
    file, _, name = config.partition(":")
    return (
        _fields(trl / file, name)
        | _fields(trl / "trl/trainer/base_config.py", "_BaseConfig")
        | _fields(transformers / "transformers/training_args.py", "TrainingArguments")
    )


def lacks_tracker(tool: str) -> bool:
    """Whether a tracker that `log_to` may name is not installed here."""
    return all(importlib.util.find_spec(package) is None for package in _TRACKERS[tool])


def trl_findings(given: Mapping[str, Any], config: str) -> Iterator[tuple[str, str, str, str]]:
    """(key, problem, found, expected) for every key under `trl` that cannot be passed on."""
    known = known_keys(config) if given else None
    for key in given:
        if key in OURS:
            yield key, "set it on the stage, not under trl", key, OURS[key]
        elif known is not None and key not in known:
            close = difflib.get_close_matches(key, known, 3)
            yield key, "TRL's config of this method has no such key", key, "perhaps " + ", ".join(close or ["none"])
