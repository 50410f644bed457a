"""YAML file -> `Run`, with every finding at its line.

Substitutes ${params}, applies --set overrides, checks strictly. Does not touch data files, models or the
network, and never imports torch: `kubealign check` stays well under a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from alignment.config.deepspeed_file import spell_out
from alignment.config.run import Run
from alignment.config.yaml_file import parse_override, parse_tree, read_text, set_value, validated
from alignment.config.yaml_nodes import Loc, child, place, written
from alignment.errors import ConfigError, ConfigErrors, Written

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
    node = _tree(read_text(Path(path), "run"), str(path), overrides)
    spell_out(node)
    return validated(Run, node)


def parse_run(text: str, file: str = "<run>", overrides: Iterable[str] = ()) -> Run:
    """Like `load_run`, from the YAML text, which may come from anyone: it names no file that is read here. `file` names
    it in errors."""
    return validated(Run, _tree(text, file, overrides))


def _tree(text: str, file: str, overrides: Iterable[str]) -> yaml.MappingNode:
    _, node = parse_tree(text, file, "run", "name: ..., stages: [...]")
    for override in overrides:
        _override(node, override)
    _substitute(node)
    return node


def place_of(file: str | Path, loc: Loc) -> str:
    """`FILE:LINE (dotted.key)` of a place in a run file that loaded, for findings made after loading."""
    return place(parse_tree(read_text(Path(file), "run"), str(file), "run", "")[1], loc)


def _override(tree: yaml.Node, override: str) -> None:
    parts, value = parse_override(override)
    where, stages = f"--set {override}", child(tree, "stages")
    by_name = {name.value: stage for stage in stages.value if isinstance(name := child(stage, "name"), yaml.ScalarNode)
               } if isinstance(stages, yaml.SequenceNode) else {}
    # A stage may well be called `seed`: seed=3 is the run's, seed.max_bad=0.2 the stage's.
    if len(parts) > 1 and parts[0] in by_name and parts[0] not in ("compute", "params", "stages"):
        tree, parts = by_name[parts[0]], parts[1:]
    elif parts[0] not in Run.model_fields:
        raise ConfigErrors([ConfigError(
            "names neither a top-level key nor a stage's key", where=where, found=".".join(parts),
            expected="one of " + ", ".join([*Run.model_fields, *(f"{name}.KEY" for name in by_name)]))])
    set_value(tree, parts, value, where)


class _Filled(yaml.ScalarNode):
    """A value that was ${name}: of the parameter's own type where it was nothing else, and text within text."""

    said: Written


def _substitute(node: yaml.MappingNode) -> None:
    """Fill in ${name} everywhere; a parameter may refer to those before it."""
    params: dict[str, yaml.ScalarNode] = {}
    given = child(node, "params")
    if isinstance(given, yaml.MappingNode):
        for index, (key, value) in enumerate(given.value):
            filled = _filled(value, params, node, ("params", key.value))
            given.value[index] = (key, filled)
            if isinstance(filled, yaml.ScalarNode):
                params[key.value] = filled
    node.value = [(key, value if value is given else _filled(value, params, node, (key.value,)))
                  for key, value in node.value]


def _filled(node: yaml.Node, params: Mapping[str, yaml.ScalarNode], root: yaml.Node, loc: Loc) -> yaml.Node:
    if isinstance(node, yaml.MappingNode):
        node.value = [(key, _filled(value, params, root, (*loc, key.value))) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        node.value = [_filled(value, params, root, (*loc, index)) for index, value in enumerate(node.value)]
    names = _PARAM.findall(node.value) if isinstance(node, yaml.ScalarNode) else []
    if not names:
        return node
    for name in names:
        if name not in params:
            raise ConfigErrors([ConfigError(
                "an unknown parameter", where=place(root, loc), found=f"${{{name}}}",
                expected="one of " + (", ".join(params) or "nothing: `params` is empty"))])
    assert isinstance(node, yaml.ScalarNode)
    if _PARAM.fullmatch(node.value):
        param = params[names[0]]
        made = _Filled(param.tag, param.value, node.start_mark, node.end_mark, param.style)
        made.said = Written(param.value, f"{written(param)!r} (of {node.value})")
        return made
    text = _PARAM.sub(lambda match: params[match[1]].value, node.value)
    return yaml.ScalarNode(node.tag, text, node.start_mark, node.end_mark, node.style)
