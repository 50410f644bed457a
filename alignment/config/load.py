"""YAML file -> `Run`, with every finding at its line.

Substitutes ${params}, applies --set overrides, checks strictly. Does not touch data files, models or the
network, and never imports torch: `kubealign check` stays well under a second.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from alignment.config.run import RefErrors, Run
from alignment.config.trl_keys import trl_findings
from alignment.errors import ConfigError, ConfigErrors

_PARAM = re.compile(r"\$\{([a-z][a-z0-9_]*)\}")
Loc = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: 1e-4 is a float (YAML 1.1, PyYAML's default, reads it as text)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+"
               r"|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+0123456789."),
)


def load_run(path: str | Path, overrides: Iterable[str] = ()) -> Run:
    """Read, override and check a run file.

    Args:
        path: the YAML file.
        overrides: `key=value` strings; the key is a dotted path whose first part is a top-level key or a
            stage's name (`sft.epochs=2`, `compute.workers=2`, `params.data=/data`); values are YAML.

    Raises:
        ConfigErrors: with one `ConfigError` (file, line, key, found, expected) per finding.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigErrors([ConfigError(f"the run file cannot be read: {error}", where=str(path))]) from error
    return parse_run(text, str(path), overrides)


def parse_run(text: str, file: str = "<run>", overrides: Iterable[str] = ()) -> Run:
    """Like `load_run`, from the YAML text; `file` names it in errors."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        duplicates = list(_duplicates(node)) if node is not None else []
        if duplicates:
            raise ConfigErrors(
                [ConfigError("a key stands twice", where=f"{file}:{line}", found=key, expected="each key once")
                 for key, line in duplicates]
            )
        tree = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if mark else file
        raise ConfigErrors([ConfigError(f"not valid YAML: {error.problem}", where=where)]) from error
    if not isinstance(tree, dict):
        raise ConfigErrors([ConfigError("a run file is a mapping", where=f"{file}:1", found=type(tree).__name__,
                                        expected="name: ..., stages: [...]")])
    for override in overrides:
        _override(tree, override)
    params = tree.get("params")
    tree = _substitute(tree, params if isinstance(params, dict) else {}, file, node)
    try:
        run = Run.model_validate(_frozen(tree))
    except ValidationError as error:
        raise ConfigErrors(_findings(error, file, node)) from error
    findings = [
        ConfigError(problem, where=f"{file}:{_line(node, loc)}", found=found, expected=expected)
        for loc, problem, found, expected in trl_findings(run)
    ]
    if findings:
        raise ConfigErrors(findings)
    return run


def place_of(file: str | Path, loc: Loc) -> str:
    """`FILE:LINE (dotted.key)` of a place in a run file that loaded, for findings made after loading."""
    node = yaml.compose(Path(file).read_text(encoding="utf-8"), Loader=_Loader)
    return f"{file}:{_line(node, loc)} ({_dotted(loc)})"


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    parts, where = key.strip().split("."), f"--set {override}"
    if not equals or not all(parts):
        raise ConfigErrors([ConfigError("not an override", where="--set", found=override, expected="key=value")])
    try:
        parsed = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigErrors([ConfigError("the value is not valid YAML", where=where, found=value)]) from error
    stages = tree.get("stages")
    by_name = {str(stage.get("name")): stage for stage in stages if isinstance(stage, dict)} if isinstance(
        stages, list) else {}
    target: Any = tree
    # A stage may well be called `seed`: seed=3 is the run's, seed.max_bad=0.2 the stage's.
    if len(parts) > 1 and parts[0] in by_name and parts[0] not in ("compute", "params", "stages"):
        target, parts = by_name[parts[0]], parts[1:]
    elif parts[0] not in Run.model_fields:
        raise ConfigErrors([ConfigError(
            "names neither a top-level key nor a stage's key", where=where, found=key.strip(),
            expected="one of " + ", ".join([*Run.model_fields, *(f"{name}.KEY" for name in by_name)]))])
    for part in parts[:-1]:
        target = target.setdefault(part, {}) if isinstance(target, dict) else target[_index(target, part, where)]
        if not isinstance(target, dict | list):
            raise ConfigErrors([ConfigError("goes below a plain value", where=where, found=part)])
    target[parts[-1] if isinstance(target, dict) else _index(target, parts[-1], where)] = parsed


def _index(items: list[Any], part: str, where: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise ConfigErrors([ConfigError("not a place in the list", where=where, found=part,
                                        expected=f"0 to {len(items) - 1}" if items else "nothing: the list is empty")])
    return int(part)


def _substitute(value: Any, params: dict[str, Any], file: str, node: Any, loc: Loc = ()) -> Any:
    if isinstance(value, dict):
        return {key: _substitute(item, params, file, node, (*loc, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, params, file, node, (*loc, index)) for index, item in enumerate(value)]
    if isinstance(value, str):
        for name in _PARAM.findall(value):
            if name not in params:
                raise ConfigErrors([ConfigError(
                    "an unknown parameter", where=f"{file}:{_line(node, loc)}", found=f"${{{name}}}",
                    expected="one of " + (", ".join(params) or "nothing: `params` is empty"))])
        return _PARAM.sub(lambda match: str(params[match[1]]), value)
    return value


def _frozen(value: Any, key: str = "") -> Any:
    """Lists become tuples (the models are frozen and strict), but for what is handed to TRL untouched."""
    if isinstance(value, dict):
        return {name: item if name == "trl" else _frozen(item, name) for name, item in value.items()}
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _findings(error: ValidationError, file: str, node: Any) -> list[ConfigError]:
    findings = []
    for item in error.errors():
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, RefErrors):
            findings += [
                ConfigError(ref.problem, where=f"{file}:{_line(node, ref.loc)} ({_dotted(ref.loc)})", found=ref.found,
                            expected=ref.expected)
                for ref in cause.findings
            ]
            continue
        loc, problem, expected = item["loc"], item["msg"].removeprefix("Value error, "), None
        found: object = item.get("input")
        if item["type"] == "extra_forbidden":
            problem, found = "an unknown key", loc[-1]
            known = _known_keys(loc, item)
            close = difflib.get_close_matches(str(found), known, 1)
            expected = (f"perhaps {close[0]}; " if close else "") + "one of " + ", ".join(known)
        elif item["type"] == "missing":
            problem, found, expected = "a key is missing", None, f"{loc[-1]}: ..."
        where = f"{file}:{_line(node, loc)} ({_dotted(_real(node, loc))})"
        findings.append(ConfigError(problem, where=where, found=_short(found), expected=expected))
    return findings


def _short(value: object) -> object:
    return f"a mapping with {', '.join(map(str, value))}" if isinstance(value, dict) else value


def _known_keys(loc: Loc, item: Any) -> list[str]:
    """Field names of the model that refused the key, found by following the location through the models."""
    from typing import get_args

    from pydantic import BaseModel

    def models(annotation: Any) -> list[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [annotation]
        return [model for arg in get_args(annotation) for model in models(arg)]

    current: list[type[BaseModel]] = [Run]
    for part in loc[:-1]:
        if isinstance(part, int):
            continue
        fields = [model.model_fields[part].annotation for model in current if part in model.model_fields]
        if fields:
            current = [model for annotation in fields for model in models(annotation)]
        else:  # a union's tag: keep the members that carry it
            tagged = [model for model in current if _tag(model) == part]
            current = tagged or current
    return list(dict.fromkeys(name for model in current for name in model.model_fields))


def _tag(model: Any) -> str | None:
    if model.__name__ in ("ImportModel", "ImportData"):
        return "import-model" if model.__name__ == "ImportModel" else "import-data"
    for key in ("method", "source", "by", "kind"):
        if key in model.model_fields:
            values = getattr(model.model_fields[key].annotation, "__args__", ())
            return str(values[0]) if values else None
    return None


def _dotted(loc: Loc) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


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


def _line(node: Any, loc: Loc) -> int:
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
