"""What the two kinds of file, runs and profiles, have in common: YAML -> frozen model, each finding at its line.

Reads text, applies overrides, validates. Does not know a key: the model that is handed in does.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from alignment.config.stages.base import Findings
from alignment.errors import ConfigError, ConfigErrors

Loc = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


class Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: 1e-4 is a float (YAML 1.1, PyYAML's default, reads it as text)."""


class Dumper(yaml.SafeDumper):
    """Writes what `Loader` reads: the text 1e-4 in quotes, since bare it is a number."""


for _each in (Loader, Dumper):
    _each.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+"
                   r"|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
        list("-+0123456789."),
    )


def dump(tree: Any) -> str:
    """YAML text from which `parse_tree` makes the same tree again; keys stay in order."""
    # Escaped: with allow_unicode PyYAML writes some line separators bare and reads them as blanks.
    return yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=False, width=120)


def read_text(path: Path, what: str) -> str:
    """The file's text. Raises ConfigErrors when it cannot be read; `what` names the kind of file."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigErrors([ConfigError(f"the {what} file cannot be read: {error}", where=str(path))]) from error


def parse_tree(text: str, file: str, what: str, expected: str) -> tuple[dict[str, Any], yaml.Node]:
    """The mapping that a YAML text holds, and its nodes, which know their lines.

    Raises:
        ConfigErrors: no valid YAML, a key that stands twice, or no mapping.
    """
    try:
        node = yaml.compose(text, Loader=Loader)
        duplicates = list(_duplicates(node)) if node is not None else []
        if duplicates:
            raise ConfigErrors(
                [ConfigError("a key stands twice", where=f"{file}:{line}", found=key, expected="each key once")
                 for key, line in duplicates]
            )
        tree = yaml.load(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if mark else file
        raise ConfigErrors([ConfigError(f"not valid YAML: {error.problem}", where=where)]) from error
    except yaml.reader.ReaderError as error:
        raise ConfigErrors([ConfigError(f"not valid YAML: {error.reason}", where=file)]) from error
    if not isinstance(tree, dict) or node is None:
        raise ConfigErrors([ConfigError(f"a {what} file is a mapping", where=f"{file}:1", found=type(tree).__name__,
                                        expected=expected)])
    return tree, node


def parse_override(override: str) -> tuple[list[str], Any]:
    """`a.b=VALUE` -> (["a", "b"], the value as YAML)."""
    key, equals, value = override.partition("=")
    parts, where = key.strip().split("."), f"--set {override}"
    if not equals or not all(parts):
        raise ConfigErrors([ConfigError("not an override", where="--set", found=override, expected="key=value")])
    try:
        return parts, yaml.load(value, Loader=Loader)
    except yaml.YAMLError as error:
        raise ConfigErrors([ConfigError("the value is not valid YAML", where=where, found=value)]) from error


def set_value(tree: dict[str, Any], parts: list[str], value: Any, where: str) -> None:
    """Set a value below `tree`, making mappings on the way; a part that meets a list is a place in it."""
    target: Any = tree
    for part in parts[:-1]:
        target = target.setdefault(part, {}) if isinstance(target, dict) else target[_index(target, part, where)]
        if not isinstance(target, dict | list):
            raise ConfigErrors([ConfigError("goes below a plain value", where=where, found=part)])
    target[parts[-1] if isinstance(target, dict) else _index(target, parts[-1], where)] = value


def validated(model: type[Model], tree: Any, file: str, node: Any) -> Model:
    """The tree as a `model`. Raises ConfigErrors with one finding for everything that is wrong."""
    try:
        return model.model_validate(_frozen(tree))
    except ValidationError as error:
        raise ConfigErrors(_findings(error, model, file, node)) from error


def line_of(node: Any, loc: Loc) -> int:
    """Line of the deepest part of `loc` that the file has, 1-based."""
    line = 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            line = next((key.start_mark.line + 1 for key, _ in node.value if key.value == part), line)
        child = _child(node, part)
        if child is not None:
            node = child
            if isinstance(part, int):
                line = node.start_mark.line + 1
    return line


def dotted(loc: Loc) -> str:
    """`stages[2].trl.beta`"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def close_to(found: str, known: Iterable[str]) -> str:
    """`perhaps X; one of X, Y`: what was probably meant, and all that is allowed."""
    known = list(known)
    close = difflib.get_close_matches(found, known, 1)
    return (f"perhaps {close[0]}; " if close else "") + "one of " + ", ".join(known)


def _index(items: list[Any], part: str, where: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise ConfigErrors([ConfigError("not a place in the list", where=where, found=part,
                                        expected=f"0 to {len(items) - 1}" if items else "nothing: the list is empty")])
    return int(part)


def _frozen(value: Any) -> Any:
    """Lists become tuples: the models are frozen and strict."""
    if isinstance(value, dict):
        return {name: _frozen(item) for name, item in value.items()}
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _findings(error: ValidationError, model: type[BaseModel], file: str, node: Any) -> list[ConfigError]:
    findings = []
    for item in error.errors():
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, Findings):
            findings += [
                ConfigError(one.problem, where=f"{file}:{line_of(node, one.place)} ({dotted(one.place)})",
                            found=one.found, expected=one.expected)
                for one in cause.findings
            ]
            continue
        if item["type"] == "too_short" and item.get("input"):
            continue  # items were given, and what is wrong with each is a finding of its own
        loc, problem, expected = item["loc"], item["msg"].removeprefix("Value error, "), None
        found: object = item.get("input")
        if item["type"] == "extra_forbidden":
            problem, found = "an unknown key", loc[-1]
            expected = close_to(str(found), _known_keys(model, loc))
        elif item["type"] == "missing":
            problem, found, expected = "a key is missing", None, f"{loc[-1]}: ..."
        elif item["type"] == "string_type" and isinstance(found, int | float):
            expected = f'text, so in quotes: "{found}"'
        where = f"{file}:{line_of(node, loc)} ({dotted(_real(node, loc))})"
        findings.append(ConfigError(problem, where=where, found=_short(found), expected=expected))
    return findings


def _short(value: object) -> object:
    return f"a mapping with {', '.join(map(str, value))}" if isinstance(value, dict) else value


def _known_keys(root: type[BaseModel], loc: Loc) -> list[str]:
    """Field names of the model that refused the key, found by following the location through the models."""
    def models(annotation: Any) -> list[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [annotation]
        return [model for arg in get_args(annotation) for model in models(arg)]

    current: list[type[BaseModel]] = [root]
    for part in loc[:-1]:
        if isinstance(part, int):
            continue
        fields = [model.model_fields[part].annotation for model in current if part in model.model_fields]
        if fields:
            current = [model for annotation in fields for model in models(annotation)]
        else:  # a union's tag: keep the members that carry it
            current = [model for model in current if _carries(model, part)] or current
    return list(dict.fromkeys(name for model in current for name in model.model_fields))


def _carries(model: type[BaseModel], tag: str) -> bool:
    """Whether a member of a union is told by this tag: its own name for it, or the one value of one of its keys."""
    return getattr(model, "tag", None) == tag or any(
        get_args(field.annotation) == (tag,) for field in model.model_fields.values())


def _real(node: Any, loc: Loc) -> Loc:
    """`loc` without the tags that pydantic adds for unions: only keys that the file has (and the last one)."""
    real: list[str | int] = []
    for index, part in enumerate(loc):
        child = _child(node, part)
        if child is not None:
            node = child
            real.append(part)
        elif index == len(loc) - 1:
            real.append(part)
    return tuple(real)


def _child(node: Any, part: str | int) -> Any:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == part:
                return value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part]
    return None


def _duplicates(node: Any) -> Iterable[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):  # anything else is refused when the tree is built
                if key.value in seen:
                    yield key.value, key.start_mark.line + 1
                seen.add(key.value)
            yield from _duplicates(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _duplicates(value)
