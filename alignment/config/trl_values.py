"""Values under `trl` that TRL and transformers take, and refuse or misread only once training runs.

As in trl_keys.py their source is read, never imported; where it is not installed nothing is said of what it knows.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from alignment.config.messages import close_to
from alignment.config.trl_keys import lists_values, site

Found = Iterator[tuple[str, str, object, str]]
"""(key, problem, found, expected)."""
_NOT_NEGATIVE, _SHARE = "0 or more", "0 to under 1"
BOUNDS = {
    "beta": "more than 0", "warmup_steps": _NOT_NEGATIVE, "weight_decay": _NOT_NEGATIVE, "max_grad_norm": _NOT_NEGATIVE,
    "adam_beta1": _SHARE, "adam_beta2": _SHARE, "adam_epsilon": "more than 0", "label_smoothing": _SHARE,
    "label_smoothing_factor": _SHARE, "desirable_weight": "more than 0", "undesirable_weight": "more than 0",
    "neftune_noise_alpha": "more than 0", "dataloader_num_workers": _NOT_NEGATIVE,
}
"""Key -> the numbers that mean something."""
_ONLINE = {"beta": _NOT_NEGATIVE, "num_iterations": "more than 0"}
_OF_CONFIG = {"GRPOConfig": _ONLINE, "RLOOConfig": _ONLINE}
"""Class of a method's TRL config -> where it differs: 0 is without a reference."""
_HOLDS = {"more than 0": lambda n: n > 0, _NOT_NEGATIVE: lambda n: n >= 0, _SHARE: lambda n: 0 <= n < 1}
_BY_METRIC = ("reduce_lr_on_plateau", "greedy")
"""Schedules that follow the loss on held-out rows."""
_GIVEN = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
"""Arguments of a schedule that the trainer fills in."""


def late_findings(given: Mapping[str, Any], config: str, *, evaluates: bool) -> Found:
    """Everything that is known to fail, or to do nothing, of values whose type is right.

    Args:
        config: FILE:CLASS of the method's TRL config.
        evaluates: whether the stage has eval_rows.
    """
    for key, bound in (BOUNDS | _OF_CONFIG.get(config.partition(":")[2], {})).items():
        value = given.get(key)
        if isinstance(value, int | float) and not _HOLDS[bound](value):
            yield key, "not a number that this key takes", value, bound
    if given.get("max_steps") == 0 or (isinstance(given.get("max_steps"), int) and given["max_steps"] < -1):
        yield "max_steps", "not a number that this key takes", given["max_steps"], "1 or more; -1 for `epochs`"
    yield from _losses(given, config)
    yield from _schedule(given, evaluates)


def _losses(given: Mapping[str, Any], config: str) -> Found:
    types = given.get("loss_type")
    types = [types] if isinstance(types, str) else types if isinstance(types, list) else []
    known = _loss_types(config) if types and not lists_values(config, "loss_type") else ()
    for name in types if known else ():
        if name not in known:
            yield "loss_type", "TRL has no such loss", name, close_to(str(name), known)
    weights = given.get("loss_weights")
    if isinstance(weights, list) and len(weights) != max(1, len(types)):
        yield "loss_weights", "not as many as losses in loss_type", weights, f"{max(1, len(types))} numbers"


def _schedule(given: Mapping[str, Any], evaluates: bool) -> Found:
    name, options = given.get("lr_scheduler_type", "linear"), given.get("lr_scheduler_kwargs") or {}
    if isinstance(options, str):  # which transformers reads as JSON
        try:
            options = json.loads(options)
        except ValueError:
            yield "lr_scheduler_kwargs", "not JSON", options, "a mapping"
    if name in _BY_METRIC and not evaluates:
        yield ("lr_scheduler_type", "follows the loss on eval_rows, which the stage has not", name,
               "eval_rows: STAGE/SPLIT")
    if name == "linear" and not options:
        return
    known = _schedules().get(str(name))
    if known is None or not isinstance(options, dict):
        return
    for option in options:
        if known.takes is not None and option not in known.takes:
            yield ("lr_scheduler_kwargs", f"schedule {name} has no such argument", option,
                   close_to(option, known.takes) if known.takes else "none: this schedule has no arguments")
    for option in known.needs - options.keys():
        yield "lr_scheduler_kwargs", f"schedule {name} needs {option}", options, f"{{{option}: ...}}"
    if "min_lr_rate" in (known.takes or ()) and not options.keys() & {"min_lr", "min_lr_rate"}:
        yield ("lr_scheduler_kwargs", f"schedule {name} needs one of min_lr and min_lr_rate", options,
               "{min_lr_rate: 0.1}")


class _Schedule(NamedTuple):
    """Arguments that a schedule takes (None: any), and those that it cannot do without."""

    takes: tuple[str, ...] | None
    needs: frozenset[str]


@cache
def _schedules() -> dict[str, _Schedule]:
    """Name of a schedule -> its arguments, from the table of transformers' optimization.py."""
    root = site("transformers")
    if root is None:
        return {}
    names = _strings(root / "transformers" / "trainer_utils.py", "SchedulerType")
    tree = _tree(root / "transformers" / "optimization.py")
    functions = {node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)}
    made: dict[str, _Schedule] = {}
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="TYPE_TO_SCHEDULER_FUNCTION")],
                            value=ast.Dict(keys=keys, values=values)):
                for key, value in zip(keys, values, strict=True):
                    if isinstance(key, ast.Attribute) and isinstance(value, ast.Name) and value.id in functions:
                        made[names[key.attr]] = _arguments(functions[value.id])
    return made


def _arguments(args: ast.arguments) -> _Schedule:
    own = [arg.arg for arg in args.args]
    without = own[:len(own) - len(args.defaults)]
    takes = None if args.kwarg is not None else tuple(name for name in own if name not in _GIVEN)
    return _Schedule(takes, frozenset(without) - _GIVEN)


@cache
def _loss_types(config: str) -> tuple[str, ...]:
    """What a method's trainer compares `loss_type` with; empty where that does not show."""
    root, file = site("trl"), config.partition(":")[0].replace("_config.py", "_trainer.py")
    if root is None or not (root / file).is_file():
        return ()
    found: list[str] = []
    for node in ast.walk(_tree(root / file)):
        match node:
            case ast.Compare(left=ast.Name(id="loss_type") | ast.Attribute(attr="loss_type"), ops=[ast.Eq()],
                             comparators=[ast.Constant(value=str(name))]):
                found.append(name)
            case ast.Compare(left=ast.Attribute(attr="loss_type"), ops=[ast.In()], comparators=[ast.List(elts=names)]):
                found += [str(name.value) for name in names if isinstance(name, ast.Constant)]
    return tuple(dict.fromkeys(found))


def _strings(file: Path, name: str) -> dict[str, str]:
    """Members of an enumeration of text -> their values."""
    return {target.id: str(node.value.value) for cls in _tree(file).body
            if isinstance(cls, ast.ClassDef) and cls.name == name
            for node in cls.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets if isinstance(target, ast.Name)}


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))
