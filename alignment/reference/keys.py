"""Pydantic models -> keys as a user writes them: dotted path, type, default, description.

The words for types and bounds are made from the JSON schema, so that they say what is accepted and nothing else. Knows
no page and no terminal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from alignment.config import Profile, Run, Stage
from alignment.config.profile import DnsName, EnvName, Quantity
from alignment.config.stages.fields import Name, RowsRef

Json = dict[str, Any]
_ALIASES = {"name": Name, "STAGE/SPLIT": RowsRef, "quantity": Quantity, "Kubernetes name": DnsName,
            "variable's name": EnvName}


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        path: dotted, from the mapping that was asked for; NAME stands for a key of the user's choice.
        takes: what may be written, with its bounds.
        default: as it would be written; None where the key is required.
        within: of which form of a mapping the key is, for example `kind: lora`; None where there is one form.
        model: the mapping that the key belongs to.
        holds: the mappings that may be written below it.
    """

    path: str
    takes: str
    default: str | None
    text: str
    within: str | None
    model: type[BaseModel]
    holds: tuple[type[BaseModel], ...]

    @property
    def name(self) -> str:
        return self.path.rsplit(".", 1)[-1]


def keys_of(model: type[BaseModel]) -> list[Key]:
    """All keys of a mapping and of those below it, each before its own. Stages of a run are left out."""
    return list(_walk(model, "", None))


def own_keys(model: type[BaseModel]) -> list[Key]:
    """The keys of the mapping itself."""
    return [_key(model, name, "", None) for name in model.model_fields]


def told_by(model: type[BaseModel]) -> str | None:
    """What tells a form of a mapping from the others: `kind: train, method: sft`; None where there is one form."""
    fixed = [f"{name}: {get_args(field.annotation)[0]}" for name, field in model.model_fields.items()
             if _is_fixed(field)]
    return ", ".join(fixed) or None


def _walk(model: type[BaseModel], above: str, within: str | None) -> Iterator[Key]:
    for name in model.model_fields:
        key = _key(model, name, above, within)
        yield key
        for below in key.holds:
            member = told_by(below) if len(key.holds) > 1 else None
            yield from _walk(below, f"{key.path}.NAME." if _is_mapping_of(model, name) else f"{key.path}.", member)


def _key(model: type[BaseModel], name: str, above: str, within: str | None) -> Key:
    field = model.model_fields[name]
    return Key(
        path=above + name, takes=_type_of(model, name), default=_default(field),
        text=one_line(field.description or ""), within=within, model=model,
        holds=tuple(below for below in dict.fromkeys(_models(field.annotation)) if not issubclass(below, Stage)),
    )


def one_line(text: str) -> str:
    """A docstring's paragraph on one line."""
    return " ".join(text.split())


# --- what is below ---


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _is_mapping_of(model: type[BaseModel], name: str) -> bool:
    return get_origin(model.model_fields[name].annotation) is dict


def _is_fixed(field: FieldInfo) -> bool:
    """Whether only one value may be written, as `kind` of a stage: it tells the mapping's form."""
    values = get_args(field.annotation)
    return len(values) == 1 and isinstance(values[0], str)


# --- words ---


def _type_of(model: type[BaseModel], name: str) -> str:
    node = _schema(model)["properties"][name]
    nullable = any(member.get("type") == "null" for member in node.get("anyOf", ()))
    # Where null is the default, leaving the key out says the same.
    return _type(node) + (" or null" if nullable and node.get("default") is not None else "")


@cache
def _definitions() -> dict[str, Json]:
    made: dict[str, Json] = {}
    for root in (Run, Profile):
        schema = root.model_json_schema()
        made |= {**schema.pop("$defs"), root.__name__: schema}
    return made


@cache
def _schema(model: type[BaseModel]) -> Json:
    found = _definitions().get(model.__name__)
    return model.model_json_schema() if found is None else found


@cache
def _words_by_pattern() -> dict[str, str]:
    return {TypeAdapter(alias).json_schema()["pattern"]: word for word, alias in _ALIASES.items()}


def _type(node: Json) -> str:
    """What may be written at a place of a JSON schema."""
    members = node.get("oneOf") or node.get("anyOf")
    if members is not None:
        told = node.get("discriminator", {})
        if told:
            names = {ref: name for name, ref in told["mapping"].items()}
            return f"mapping ({told['propertyName']}: {' | '.join(names[member['$ref']] for member in members)})"
        return " or ".join(dict.fromkeys(_type(member) for member in members if member.get("type") != "null"))
    if "$ref" in node:
        return "mapping"
    if "const" in node:
        return str(node["const"])
    if "enum" in node:
        return " | ".join(node["enum"])
    return _PLAIN.get(node.get("type", ""), _anything)(node)


def _anything(node: Json) -> str:
    return "anything"


def _text(node: Json) -> str:
    return _words_by_pattern().get(node.get("pattern", ""), "text")


def _number(node: Json) -> str:
    word = "whole number" if node["type"] == "integer" else "number"
    low, above = node.get("minimum"), node.get("exclusiveMinimum")
    high, below = node.get("maximum"), node.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f"{word} from {low:g} to {high:g}"
    bounds = ((above, "above"), (low, "from"), (below, "below"), (high, "at most"))
    return word + (" " + ", ".join(f"{says} {value:g}" for value, says in bounds if value is not None)).rstrip()


def _list(node: Json) -> str:
    if "prefixItems" in node:
        parts = [_type(item) for item in node["prefixItems"]]
        return f"[{', '.join(parts)}]"
    items = node["items"]
    stages = "oneOf" in items and "discriminator" not in items
    bounds = [f"at least {node['minItems']}" if node.get("minItems") else "",
              f"at most {node['maxItems']}" if node.get("maxItems") else ""]
    return ", ".join(filter(None, [f"list of {'stages' if stages else _plural(_type(items))}", *bounds]))


def _plural(word: str) -> str:
    if " | " in word:
        return f"({word})"
    return word + ("s" if word[-1].islower() else "")


def _mapping(node: Json) -> str:
    by_pattern = node.get("patternProperties", {})
    pattern, values = next(iter(by_pattern.items()), ("", node.get("additionalProperties", True)))
    if not isinstance(values, dict) or not values:
        return "mapping"
    bound = f", at most {node['maxProperties']}" if node.get("maxProperties") else ""
    return f"mapping: {_words_by_pattern().get(pattern, 'text')} -> {_type(values)}{bound}"


_PLAIN = {"string": _text, "integer": _number, "number": _number, "boolean": lambda node: "true | false",
          "array": _list, "object": _mapping}


def _default(field: FieldInfo) -> str | None:
    if field.is_required() or _is_fixed(field):
        return None
    return written(field.get_default(call_default_factory=True))


def written(value: Any) -> str:
    """A value as a YAML file would have it, on one line; `not set` for null."""
    if isinstance(value, BaseModel):
        # What a default leaves to the mapping's own defaults stands there.
        value = value.model_dump(mode="json", exclude_unset=True)
    if value is None:
        return "not set"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) and _is_plain(value) else json.dumps(value, ensure_ascii=False)


def _is_plain(text: str) -> bool:
    """Whether YAML reads the text as itself without quotes: 2 and {a} need some."""
    try:
        return bool(yaml.safe_load(text) == text)
    except yaml.YAMLError:
        return False
