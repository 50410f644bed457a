"""Which keys and values the installed TRL and transformers accept in `trl: {...}`, read from their source.

Importing TRL takes ten seconds and `check` promises one; the keys are the annotated names of the config classes,
so the syntax tree of a few files answers. Where TRL is not installed (a control-plane laptop), nothing is said
here and the stage itself refuses an unknown key.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from alignment.config.instead import instead
from alignment.errors import Written

OURS = {
    "output_dir": "the store decides", "per_device_train_batch_size": "micro_batch_size",
    "per_device_eval_batch_size": "micro_batch_size", "gradient_accumulation_steps": "batch_size",
    "num_train_epochs": "epochs", "learning_rate": "learning_rate", "max_length": "max_length",
    "packing": "packing", "completion_only_loss": "loss", "assistant_only_loss": "loss",
    "save_steps": "checkpoints.every", "eval_steps": "checkpoints.every", "save_strategy": "checkpoints.every",
    "eval_strategy": "eval_rows", "save_total_limit": "checkpoints.keep", "load_best_model_at_end": "checkpoints.final",
    "logging_steps": "log_every", "logging_strategy": "log_every", "report_to": "log_to", "seed": "the run's seed",
    "bf16": "dtype", "fp16": "dtype", "use_cpu": "compute.device", "ddp_backend": "compute",
    "precompute_ref_log_probs": "reference", "truncation_mode": "too_long", "dataset_kwargs": "our tokenization",
    "model_init_kwargs": "the import stage", "chat_template_path": "template of the import stage",
    "resume_from_checkpoint": "nothing: a killed stage resumes by itself",
    "data_seed": "the run's seed", "run_name": "the names of run and stage", "disable_dropout": "strategy.dropout",
    "disable_tqdm": "nothing: progress is shown by us",
    "logging_nan_inf_filter": "nothing: a loss that is not finite stops the stage",
    "metric_for_best_model": "checkpoints.final: the best has the lowest loss on eval_rows",
    "greater_is_better": "checkpoints.final: the best has the lowest loss on eval_rows",
    "auto_find_batch_size": "micro_batch_size", "label_names": "our tokenization", "remove_unused_columns":
    "our tokenization", "dataset_text_field": "our tokenization", "dataset_num_proc": "our tokenization",
    "eos_token": "the import stage", "pad_token": "pad_token of the import stage", "trust_remote_code":
    "the import stage", "local_rank": "compute.workers", "logging_dir": "the store decides",
    "trackio_space_id": "log_to", "trackio_bucket_id": "log_to", "trackio_static_space_id": "log_to",
    "do_train": "nothing: a train stage trains", "do_eval": "eval_rows", "do_predict": "an evaluate stage",
    "deepspeed": "compute.sharding and compute.deepspeed",
    **dict.fromkeys(("fsdp", "fsdp_config", "parallelism_config", "accelerator_config"),
                    "compute.sharding: workers train side by side, each with the whole model or a share of it"),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push",
                     "hub_revision"), "nothing: what is made lies in the store"),
    **dict.fromkeys(("save_only_model", "ignore_data_skip", "restore_callback_states_from_checkpoint",
                     "save_on_each_node", "enable_jit_checkpoint"), "nothing: a killed stage resumes as if it had not "
                    "been"),
}
"""TRL's keys whose value our own config already holds: one value, one place."""
_TRACKERS = {"tensorboard": ("tensorboardX", "tensorboard"), "wandb": ("wandb",), "mlflow": ("mlflow",)}
"""Value of `log_to` -> packages of which one must be installed."""
_PLAIN = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text", "list": "a list",
          "dict": "a mapping", "NoneType": "null"}


@cache
def site(package: str) -> Path | None:
    """The folder that an installed package lies in."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent.parent if spec is not None and spec.origin else None


class _Key(NamedTuple):
    """What a config class says of one of its keys."""

    kinds: frozenset[str]
    """Names of the types that its annotation joins: int, NoneType, list, SchedulerType, ..."""
    choices: tuple[Any, ...]
    """Values that are allowed, where the source lists them."""


@cache
def _fields(file: Path, name: str) -> dict[str, _Key]:
    return {
        item.target.id: _Key(frozenset(_kinds(item.annotation)), tuple(_choices(item)))
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == name
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }


def _kinds(annotation: ast.expr) -> Iterator[str]:
    match annotation:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            yield from (*_kinds(left), *_kinds(right))
        case ast.Constant(value=None):
            yield "NoneType"
        case ast.Constant(value=str() as text):
            yield from _kinds(ast.parse(text, mode="eval").body)
        case ast.Name(id=name):
            yield name
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            yield from (*_kinds(inner), "NoneType")
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=parts)):
            yield from (name for part in parts for name in _kinds(part))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            yield from (type(value).__name__ for value in _literals(inner))
        case ast.Subscript(value=ast.Name(id=name)):
            yield name.lower()
        case _:
            yield "Any"


def _literals(node: ast.expr) -> tuple[Any, ...]:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return ()
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _choices(item: ast.AnnAssign) -> Iterator[Any]:
    """What `Literal[...]`, or `choices` in the field's metadata, allows."""
    match item.annotation:
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            yield from _literals(inner)
    for node in ast.walk(item.value) if item.value is not None else ():
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "choices":
                    yield from _literals(value)


@cache
def _members(file: Path) -> dict[str, tuple[str, ...]]:
    """Enumerations of a source file -> their values."""
    return {
        node.name: tuple(item.value.value for item in node.body if isinstance(item, ast.Assign)
                         and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str))
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "").endswith("Enum") for base in node.bases)
    }


def known_keys(config: str) -> frozenset[str] | None:
    """Names of the keys of a TRL config, or None where the libraries are not installed; `config` as below."""
    known = _known(config)
    return None if known is None else frozenset(known)


def lists_values(config: str, key: str) -> bool:
    """Whether the source lists the values of a key, so that others are found by `trl_findings`."""
    known = _known(config)
    return known is not None and key in known and bool(known[key].choices)


def _known(config: str) -> dict[str, _Key] | None:
    """Keys of a TRL config, or None where the libraries are not installed.

    Args:
        config: FILE:CLASS, relative to TRL's package, as in a method's `trl_config`.
    """
    trl, transformers = site("trl"), site("transformers")
    if trl is None or transformers is None:
        return None
    file, _, name = config.partition(":")
    return {
        **_fields(transformers / "transformers/training_args.py", "TrainingArguments"),
        **_fields(trl / "trl/trainer/base_config.py", "_BaseConfig"),
        **_fields(trl / file, name),
    }


def lacks_tracker(tool: str) -> bool:
    """Whether a tracker that `log_to` may name is not installed here."""
    return all(importlib.util.find_spec(package) is None for package in _TRACKERS[tool])


def trl_findings(given: Mapping[str, Any], config: str) -> Iterator[tuple[str, str, object, str]]:
    """(key, problem, found, expected) for every key under `trl` that cannot be passed on."""
    known = _known(config) if given else None
    for key, value in given.items():
        if key in OURS:
            yield key, "is set elsewhere, not under trl", key, OURS[key]
        elif known is not None and key not in known:
            close = difflib.get_close_matches(key, known, 3)
            yield key, "TRL's config of this method has no such key", key, "perhaps " + ", ".join(close or ["none"])
        elif known is not None:
            yield from ((key, problem, value, expected) for problem, expected in _wrong(known[key], value))


def _wrong(key: _Key, value: Any) -> Iterator[tuple[str, str]]:
    """(problem, expected), where the library would refuse the value, or take it for another one."""
    if key.kinds - set(_PLAIN) - (allowed := _enumerated(key.kinds)).keys():
        return  # a type of the library's own: it knows what it takes
    choices = key.choices or tuple(value for values in allowed.values() for value in values)
    words = [_PLAIN[kind] for kind in _PLAIN if kind in key.kinds and not (kind == "str" and choices)]
    listed = "one of " + ", ".join(map(str, choices)) if choices else ""
    expected = " or ".join([listed] * bool(choices) + words)
    name = type(value).__name__
    if name not in key.kinds and not (name == "int" and "float" in key.kinds) and not (
            name == "str" and ("list" in key.kinds or choices)):
        yield "TRL does not take such a value here", _instead(words, value) or expected
    elif name == "str" and choices and value not in choices:
        close = difflib.get_close_matches(value, [str(each) for each in choices], 1)
        yield "TRL takes no such value here", (f"perhaps {close[0]}; " if close else "") + expected


def _instead(words: list[str], value: Any) -> str | None:
    """What to write for text that looks like what is wanted, or for what would be it in quotes."""
    plain = [word for word in words if word != _PLAIN["NoneType"]]
    if len(plain) != 1 or isinstance(value, list | dict) or value is None:
        return None
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    return instead(plain[0], Written(shown, f'"{shown}"' if isinstance(value, str) else shown))


def _enumerated(kinds: frozenset[str]) -> dict[str, tuple[str, ...]]:
    """Those of the names that are enumerations of transformers -> their values."""
    transformers = site("transformers")
    assert transformers is not None
    found: dict[str, tuple[str, ...]] = {}
    for file in ("training_args.py", "trainer_utils.py"):
        if kinds - set(_PLAIN) - found.keys():
            members = _members(transformers / "transformers" / file)
            found |= {kind: members[kind] for kind in kinds if kind in members}
    return found
