"""What the two kinds of file, runs and profiles, have in common: YAML -> frozen model, each finding at its line.

Reads files, applies overrides, validates. Does not know a key: the model that is handed in does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from alignment.config.messages import told
from alignment.config.yaml_nodes import child, written
from alignment.config.yaml_text import compose, value_of
from alignment.errors import ConfigError, ConfigErrors

LARGEST = 1_000_000
"""Bytes of a file: no more than fits into a cluster's ConfigMap, and never a device without an end."""
Model = TypeVar("Model", bound=BaseModel)


def read_text(path: Path, what: str) -> str:
    """The file's text. Raises ConfigErrors when it cannot be read; `what` names the kind of file."""
    def unreadable(problem: str) -> ConfigErrors:
        return ConfigErrors([ConfigError(f"the {what} file {problem}", where=str(path))])

    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise unreadable(f"is larger than {LARGEST:,} bytes")
        return content.decode("utf-8")
    except (OSError, ValueError) as error:
        said = f"it is not UTF-8 text (byte {error.start})" if isinstance(error, UnicodeDecodeError) else error
        raise unreadable(f"cannot be read: {said}") from error


def parse_tree(text: str, file: str, what: str, expected: str) -> tuple[dict[str, Any], yaml.MappingNode]:
    """The mapping that a YAML text holds, and its nodes, which know their lines.

    Raises:
        ConfigErrors: no valid YAML, a key that stands twice, or no mapping.
    """
    node = compose(text, file)
    if not isinstance(node, yaml.MappingNode):
        raise ConfigErrors([ConfigError(f"a {what} file is a mapping", where=f"{file}:1", expected=expected,
                                        found=None if node is None else written(node))])
    return value_of(node), node


def parse_override(override: str) -> tuple[list[str], yaml.Node]:
    """`a.b=VALUE` -> (["a", "b"], the value as YAML)."""
    key, equals, value = override.partition("=")
    parts, where = key.strip().split("."), f"--set {override}"
    if not equals or not all(parts):
        raise ConfigErrors([ConfigError("not an override", where="--set", found=override, expected="key=value")])
    node = compose(value, where)
    if value[0 if node is None else node.end_mark.index:].strip():
        # In a file the rest is a comment; nobody writes one here.
        raise ConfigErrors([ConfigError("everything from # on would be a comment", where=where, found=value,
                                        expected="text with # in quotes of its own: 'KEY=\"...\"'")])
    start = yaml.Mark(where, 0, 0, 0, None, 0)
    return parts, node or yaml.ScalarNode("tag:yaml.org,2002:null", "", start, start)


def set_value(tree: yaml.Node, parts: list[str], value: yaml.Node, where: str) -> None:
    """Set a value below `tree`, making mappings on the way; a part that meets a list is a place in it."""
    for part in parts[:-1]:
        below = _part(tree, part, where)
        if below is None:
            below = yaml.MappingNode("tag:yaml.org,2002:map", [], value.start_mark, value.end_mark)
            _put(tree, part, below, where)
        if isinstance(below, yaml.ScalarNode):
            raise ConfigErrors([ConfigError("goes below a plain value", where=where, found=part)])
        tree = below
    _put(tree, parts[-1], value, where)


def validated(model: type[Model], node: yaml.Node) -> Model:
    """The nodes' values as a `model`. Raises ConfigErrors with one finding for everything that is wrong."""
    try:
        return model.model_validate(frozen(value_of(node)))
    except ValidationError as error:
        raise ConfigErrors(told(error, model, node)) from error


def _put(tree: yaml.Node, part: str, value: yaml.Node, where: str) -> None:
    if isinstance(tree, yaml.MappingNode):
        pair = (yaml.ScalarNode("tag:yaml.org,2002:str", part, value.start_mark, value.start_mark), value)
        names = [key.value for key, _ in tree.value]
        at = names.index(part) if part in names else len(names)
        tree.value[at:at + 1] = [pair]
    else:
        tree.value[_index(tree.value, part, where)] = value


def _part(tree: yaml.Node, part: str, where: str) -> yaml.Node | None:
    return child(tree, _index(tree.value, part, where) if isinstance(tree, yaml.SequenceNode) else part)


def _index(items: list[Any], part: str, where: str) -> int:
    if not (part.isascii() and part.isdecimal() and len(part) < 9) or int(part) >= len(items):
        raise ConfigErrors([ConfigError("not a place in the list", where=where, found=part,
                                        expected=f"0 to {len(items) - 1}" if items else "nothing: the list is empty")])
    return int(part)


def frozen(value: Any) -> Any:
    """A value of a file as models take it: lists become tuples, as the models are frozen and strict."""
    if isinstance(value, dict):
        return {name: frozen(item) for name, item in value.items()}
    return tuple(frozen(item) for item in value) if isinstance(value, list) else value
