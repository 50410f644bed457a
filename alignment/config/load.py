"""YAML file -> `Run`, with every finding at its line.

Substitutes ${params}, applies --set overrides, checks strictly. Does not touch data files, models or the
network, and never imports torch: `kubealign check` stays well under a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from alignment.config.run import Run
from alignment.config.yaml_file import Loader as _Loader
from alignment.config.yaml_file import Loc as Loc
from alignment.config.yaml_file import dotted, line_of, parse_override, parse_tree, read_text, set_value, validated
from alignment.errors import ConfigError, ConfigErrors

_PARAM = re.compile(r"\$\{([a-z][a-z0-9_]*)\}")


def load_run(path: str | Path, overrides: Iterable[str] = ()) -> Run:
    """Read, override and check a run file.

    Args:
        path: the YAML file.
        overrides: `key=value` strings; the key is a dotted path whose first part is a top-level key or a
            stage's name (`sft.epochs=2`, `compute.workers=2`, `params.data=/data`); values are YAML.

    Raises:
        ConfigErrors: with one `ConfigError` (file, line, key, found, expected) per finding.
    """
    return parse_run(read_text(Path(path), "run"), str(path), overrides)


def parse_run(text: str, file: str = "<run>", overrides: Iterable[str] = ()) -> Run:
    """Like `load_run`, from the YAML text; `file` names it in errors."""
    tree, node = parse_tree(text, file, "run", "name: ..., stages: [...]")
    for override in overrides:
        _override(tree, override)
    params = tree.get("params")
    return validated(Run, _substitute(tree, params if isinstance(params, dict) else {}, file, node), file, node)


def place_of(file: str | Path, loc: Loc) -> str:
    """`FILE:LINE (dotted.key)` of a place in a run file that loaded, for findings made after loading."""
    node = yaml.compose(Path(file).read_text(encoding="utf-8"), Loader=_Loader)
    return f"{file}:{line_of(node, loc)} ({dotted(loc)})"


def _override(tree: dict[str, Any], override: str) -> None:
    parts, value = parse_override(override)
    where, stages = f"--set {override}", tree.get("stages")
    by_name = {str(stage.get("name")): stage for stage in stages if isinstance(stage, dict)} if isinstance(
        stages, list) else {}
    # A stage may well be called `seed`: seed=3 is the run's, seed.max_bad=0.2 the stage's.
    if len(parts) > 1 and parts[0] in by_name and parts[0] not in ("compute", "params", "stages"):
        tree, parts = by_name[parts[0]], parts[1:]
    elif parts[0] not in Run.model_fields:
        raise ConfigErrors([ConfigError(
            "names neither a top-level key nor a stage's key", where=where, found=".".join(parts),
            expected="one of " + ", ".join([*Run.model_fields, *(f"{name}.KEY" for name in by_name)]))])
    set_value(tree, parts, value, where)


def _substitute(value: Any, params: dict[str, Any], file: str, node: Any, loc: Loc = ()) -> Any:
    if isinstance(value, dict):
        return {key: _substitute(item, params, file, node, (*loc, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, params, file, node, (*loc, index)) for index, item in enumerate(value)]
    if isinstance(value, str):
        for name in _PARAM.findall(value):
            if name not in params:
                raise ConfigErrors([ConfigError(
                    "an unknown parameter", where=f"{file}:{line_of(node, loc)}", found=f"${{{name}}}",
                    expected="one of " + (", ".join(params) or "nothing: `params` is empty"))])
        return _PARAM.sub(lambda match: str(params[match[1]]), value)
    return value
