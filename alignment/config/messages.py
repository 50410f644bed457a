"""What pydantic finds, in this project's words, each at its line and with the value as its file has it.

Every kind of error that our models can make has its words here; a new one falls back to "not a value of this key".
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from alignment.config.instead import instead
from alignment.config.stages.base import Findings
from alignment.config.stages.fields import FORMS
from alignment.config.yaml_nodes import Loc, child, dotted, place, written
from alignment.config.yaml_text import value_of
from alignment.errors import ConfigError, Written

TYPES = {
    "string_type": "text", "int_type": "a whole number", "float_type": "a number", "bool_type": "true or false",
    "tuple_type": "a list", "dict_type": "a mapping", "model_type": "a mapping", "model_attributes_type": "a mapping",
    "finite_number": "a finite number",
}
BOUNDS = {
    "greater_than": ("too small", "more than {gt}"), "greater_than_equal": ("too small", "at least {ge}"),
    "less_than": ("too large", "less than {lt}"), "less_than_equal": ("too large", "at most {le}"),
    "string_too_short": ("too short", "at least {min_length} letters"),
    "string_too_long": ("too long", "at most {max_length} letters"),
    "too_short": ("too few", "at least {min_length} of them"), "too_long": ("too many", "at most {max_length} of them"),
}


class _Said(NamedTuple):
    problem: str
    expected: str | None
    of_union: bool
    """Whether it is one member's word against a value that another member might take."""


def told(error: ValidationError, model: type[BaseModel], node: yaml.Node | None = None) -> list[ConfigError]:
    """One finding for each place that is wrong.

    Args:
        model: that refused.
        node: what was read; None where it was no file, and places are keys alone.
    """
    findings: list[ConfigError] = []
    said: dict[Loc, list[_Said]] = {}
    found: dict[Loc, object] = {}
    for item in error.errors():
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, Findings):
            findings += [ConfigError(one.problem, where=_where(node, one.place), expected=one.expected,
                                     found=_given(node, one.place, one.found)) for one in cause.findings]
        elif not (item["type"] == "too_short" and item["input"]):  # else what is wrong with each is told
            loc, owners = _real(model, item["loc"])
            at = _at(node, loc)
            value = _as_written(node, loc, item["input"])
            problem, expected = _words(item, loc, owners, at, value)
            if item["type"].startswith("union_tag"):
                key = str(item["ctx"]["discriminator"]).strip("'")
                loc = (*loc, key)
                tagged = _at(node, loc)
                value = item["ctx"].get("tag") if tagged is None else written(tagged)
            said.setdefault(loc, []).append(_Said(problem, expected, item["loc"][-1:] != loc[-1:]))
            found[loc] = None if item["type"] in ("missing", "union_tag_not_found") else (
                Written(str(loc[-1]), str(loc[-1])) if item["type"] == "extra_forbidden" or "[key]" in item["loc"]
                else value)
    for loc, all_said in said.items():
        deeper = any(len(other) > len(loc) and other[: len(loc)] == loc for other in said)
        if not (deeper and all(one.of_union for one in all_said)):
            problems = list(dict.fromkeys(one.problem for one in all_said))
            wanted = list(dict.fromkeys(one.expected for one in all_said if one.expected))
            problem = problems[0] if len(problems) == 1 else "not a value that this key takes"
            findings.append(ConfigError(problem, where=_where(node, loc), found=found[loc],
                                        expected=", or ".join(wanted) or None))
    return findings


def close_to(found: str, known: Iterable[str]) -> str:
    """`perhaps X; one of X, Y`: what was probably meant, and all that is allowed."""
    known = list(known)
    close = difflib.get_close_matches(found, known, 1)
    return (f"perhaps {close[0]}; " if close else "") + "one of " + ", ".join(known)


def _words(item: Any, loc: Loc, owners: list[type[BaseModel]], at: yaml.Node | None,
           value: object) -> tuple[str, str | None]:
    """Problem and what is expected."""
    kind, ctx = item["type"], item.get("ctx", {})
    if kind in TYPES:
        return f"not {TYPES[kind]}", instead(TYPES[kind], value) if at is not None else TYPES[kind]
    if kind in BOUNDS:
        problem, expected = BOUNDS[kind]
        return problem, expected.format(**ctx)
    if kind == "extra_forbidden":
        return "an unknown key", close_to(str(loc[-1]), dict.fromkeys(
            name for owner in owners for name in owner.model_fields))
    if kind == "missing":
        if isinstance(loc[-1], int):
            return "an item is missing", f"at least {loc[-1] + 1} of them"
        return "a key is missing", f"{loc[-1]}: ..."
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'|(\d+)", ctx["expected"])
        names = [text or digits for text, digits in choices]
        close = close_to(str(value), names) if isinstance(item["input"], str) else "one of " + ", ".join(names)
        return "not one of the values that this key takes", names[0] if len(names) == 1 else close
    if kind == "string_pattern_mismatch":
        return "not of the right form", FORMS.get(ctx["pattern"], f"text that fits {ctx['pattern']}")
    if kind == "union_tag_invalid":
        tags = re.findall(r"'([^']*)'", ctx["expected_tags"])
        return "not one of the values that this key takes", close_to(str(ctx["tag"]), tags)
    if kind == "union_tag_not_found":
        key = str(ctx["discriminator"]).strip("'")
        members = [tag for owner in owners for tag in get_args(owner.model_fields[key].annotation)]
        return "a key is missing", f"{key}: {' or '.join(members) or '...'}"
    if kind in ("value_error", "unknown_stage"):
        return item["msg"].removeprefix("Value error, "), None
    return "not a value of this key", None


def _where(node: yaml.Node | None, loc: Loc) -> str:
    return dotted(loc) if node is None else place(node, loc)


def _at(node: yaml.Node | None, loc: Loc) -> yaml.Node | None:
    for part in loc:
        node = child(node, part)
    return node


def _as_written(node: yaml.Node | None, loc: Loc, value: object) -> object:
    """The value as its file has it, where it stands there."""
    at = _at(node, loc)
    if at is not None and (isinstance(at, yaml.ScalarNode) or not isinstance(value, str | int | float)):
        return written(at)
    if isinstance(value, dict):
        return Written("", f"a mapping with {', '.join(map(str, value)) or 'nothing in it'}")
    return value


def _given(node: yaml.Node | None, loc: Loc, found: object) -> object:
    """What a finding of ours names: often the value at its place, but not always."""
    at = _at(node, loc)
    return written(at) if isinstance(at, yaml.ScalarNode) and value_of(at) == found else found


def _real(model: type[BaseModel], loc: tuple[str | int, ...]) -> tuple[Loc, list[type[BaseModel]]]:
    """A place without the tags that pydantic adds for unions, and the models that its last key belongs to, or that
    might stand at the place where it ends at a union."""
    real: list[str | int] = []
    kinds: list[Any] = [model]
    owners: list[type[BaseModel]] = []
    for part in loc:
        if part == "[key]":
            continue
        models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if len(kinds) > 1:  # a union's tag: keep the members that it may mean
            label = str(part).partition("[")[0]
            # A stage's tag first: `reward` is a method, and also what a key of another stage may say.
            kinds = [kind for kind in models if getattr(kind, "tag", None) == part] or [
                kind for kind in models if _carries(kind, part)] or [
                kind for kind in kinds if getattr(get_origin(kind) or kind, "__name__", "").lower() == label] or [
                kind for kind in kinds if kind not in models]
            continue
        real.append(part)
        if models:
            owners = models
            field = models[0].model_fields.get(str(part))
            kinds = [] if field is None else _members(field.annotation)
        else:
            arguments = get_args(kinds[0]) if kinds else ()
            inner = arguments[0] if len(arguments) == 2 and arguments[1] is Ellipsis else (
                arguments[part] if isinstance(part, int) and part < len(arguments) else arguments[-1:])
            kinds = _members(inner[0] if isinstance(inner, tuple) and inner else inner)
    ends = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return tuple(real), ends if len(ends) > 1 else owners


def _members(annotation: Any) -> list[Any]:
    """What a value of this type may be, without None."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [member for each in get_args(annotation) for member in _members(each) if member is not type(None)]
    return [annotation] if annotation != () else []


def _carries(model: type[BaseModel], tag: str | int) -> bool:
    """Whether a member of a union is told by this tag, the one value of one of its keys."""
    return any(get_origin(field.annotation) is Literal and get_args(field.annotation) == (tag,)
               for field in model.model_fields.values())
