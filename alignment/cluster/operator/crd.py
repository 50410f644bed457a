"""The CustomResourceDefinition of AlignmentRun, made from the pydantic models.

    python -m alignment.cluster.operator.crd > charts/kubealign/files/alignmentruns.yaml

A structural schema cannot say everything that a model says: members of a union become one object with the keys of all
of them, and a key that is text in one and a list in another stays open. So the API server refuses unknown keys and
plain mistakes, and the operator, which parses the spec with the models, says the rest with file and line. Defaults are
left to the models, too: a stored object must not keep those of the version that stored it.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import yaml

from alignment.cluster.manifests.alignment_run import GROUP, KIND, PLURAL, VERSION, Spec, Status
from alignment.config import Profile, Run
from alignment.config.stages.fields import NAME

Json = dict[str, Any]
OPEN: Json = {"x-kubernetes-preserve-unknown-fields": True}
STAGES = 64
"""Stages of a run, at most: rules over lists need a bound."""
_BOUNDS = ("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "pattern", "enum", "format",
           "description")
_RULES: tuple[tuple[str, str], ...] = (
    ("self.metadata.name == self.spec.run.name",
     "the AlignmentRun must be called as its run: metadata.name and spec.run.name differ"),
    ("!has(self.spec.gates) || self.spec.gates.all(g, self.spec.run.stages.exists(s, s.name == g.after))",
     "a gate stands after a stage that the run does not have"),
)
_GATE_RULE = ("has(self.metric) != has(self.approval)", "a gate has a metric or approval: true, one of them")
_STAGE_RULE = ("(self.kind == 'train') == has(self.method)", "a train stage, and no other, has a method")


def definition() -> Json:
    """The whole CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}", "labels": {"app.kubernetes.io/part-of": "kubealign"}},
        "spec": {
            "group": GROUP, "scope": "Namespaced",
            "names": {"kind": KIND, "listKind": f"{KIND}List", "plural": PLURAL, "singular": KIND.lower(),
                      "shortNames": ["arun"], "categories": ["kubealign"]},
            "versions": [{
                "name": VERSION, "served": True, "storage": True, "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    _column("Phase", ".status.phase"), _column("Stage", ".status.stage"),
                    _column("Finished", ".status.finished"),
                    {**_column("Age", ".metadata.creationTimestamp"), "type": "date"},
                    {**_column("Store", ".status.store"), "priority": 1},
                ],
                "schema": {"openAPIV3Schema": schema()},
            }],
        },
    }


def schema() -> Json:
    """The structural schema of one AlignmentRun."""
    spec, status = structural(Spec.model_json_schema()), structural(Status.model_json_schema())
    run = structural(Run.model_json_schema())
    stages = run["properties"]["stages"]
    stages |= {"maxItems": STAGES, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
    stages["items"]["required"] = ["kind", "name"]
    stages["items"]["x-kubernetes-validations"] = [_rule(*_STAGE_RULE)]
    spec["properties"] |= {
        "run": {**run, "description": spec["properties"]["run"]["description"]},
        "profile": {**structural(Profile.model_json_schema()),
                    "description": spec["properties"]["profile"]["description"]},
    }
    spec["properties"]["gates"]["items"]["x-kubernetes-validations"] = [_rule(*_GATE_RULE)]
    spec["properties"]["digests"]["maxProperties"] = STAGES
    for rows, key in (("stages", "name"), ("conditions", "type")):
        status["properties"][rows] |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
    return _without_null_enums({
        "type": "object", "description": "A run from import to evaluation; its stages are made one RayJob at a time.",
        "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
                       "spec": spec, "status": status},
        "required": ["spec"], "x-kubernetes-validations": [_rule(*rule) for rule in _RULES],
    })


def structural(schema: Json) -> Json:
    """A pydantic JSON schema as a Kubernetes structural schema."""
    return _convert(schema, schema.get("$defs", {}))


def _convert(node: Json, definitions: Json) -> Json:
    if "$ref" in node:
        return _described(_convert(definitions[node["$ref"].rsplit("/", 1)[1]], definitions), node)
    members = node.get("oneOf") or node.get("anyOf")
    if members is not None:
        some = [_convert(member, definitions) for member in members if member.get("type") != "null"]
        made = some[0]
        for member in some[1:]:
            made = _merged(made, member)
        nullable = {"nullable": True} if len(some) < len(members) else {}
        return _described({**made, **nullable}, node)
    if "type" not in node and "const" not in node and "enum" not in node:
        return _described(dict(OPEN), node)
    made = {key: node[key] for key in _BOUNDS if key in node}
    if "const" in node:
        made["enum"] = [node["const"]]
    kinds = {bool: "boolean", str: "string", int: "integer"}
    kind = kinds[type(node["const"])] if "const" in node else node.get("type", "string")
    made["type"] = kind
    for open_end, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if open_end in node:
            made |= {bound: node[open_end], open_end: True}
    if node.get("pattern") == NAME:
        made["maxLength"] = 40
    if kind == "array":
        made["items"] = _items(node, definitions)
    if kind == "object":
        made |= _object(node, definitions)
    return made


def _items(node: Json, definitions: Json) -> Json:
    """Of an array, or of a tuple, whose items must then be alike."""
    items = [_convert(item, definitions) for item in node.get("prefixItems") or [node["items"]]]
    made = items[0]
    for item in items[1:]:
        made = _merged(made, item)
    return made


def _object(node: Json, definitions: Json) -> Json:
    if "properties" in node:
        found: Json = {"properties": {key: _convert(value, definitions) for key, value in node["properties"].items()}}
        return found | ({"required": node["required"]} if node.get("required") else {})
    values = node.get("additionalProperties", True)
    made = {"additionalProperties": _convert(values, definitions)} if isinstance(values, dict) else dict(OPEN)
    return made | ({"maxProperties": node["maxProperties"]} if "maxProperties" in node else {})


def _merged(one: Json, other: Json) -> Json:
    """What both members of a union may be; open where they have nothing in common."""
    # Of what is not nullable the API server drops a null that was sent.
    nullable = {"nullable": True} if one.get("nullable") or other.get("nullable") else {}
    if one.get("type") != other.get("type") or "type" not in one:
        return OPEN | nullable
    # A bound that only one has, or that differs, would refuse the other.
    made = {key: value for key, value in one.items() if other.get(key) == value or key == "description"}
    for bound, open_end in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if bound not in made:
            made.pop(open_end, None)
    if "enum" in one and "enum" in other:
        made["enum"] = list(dict.fromkeys([*one["enum"], *other["enum"]]))
    if one["type"] == "array":
        made["items"] = _merged(one["items"], other["items"])
    if one["type"] == "object":
        if "properties" not in one or "properties" not in other:
            return {"type": "object", **OPEN}
        mine, theirs = one["properties"], other["properties"]
        made["properties"] = {key: _merged(mine[key], theirs[key]) if key in mine and key in theirs
                              else {**mine, **theirs}[key] for key in {**mine, **theirs}}
        required = [key for key in one.get("required", ()) if key in other.get("required", ())]
        made.pop("required", None)
        made |= {"required": required} if required else {}
    return made | nullable


def _without_null_enums(node: Json) -> Json:
    """A pattern in place of an enum of texts that may be null: the API server refuses null there, named or not, as its
    validator leaves out what has no type (go-openapi/validate, basicCommonValidator)."""
    made = dict(node)
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            made[key] = _without_null_enums(node[key])
    if "properties" in node:
        made["properties"] = {name: _without_null_enums(value) for name, value in node["properties"].items()}
    if node.get("nullable") and node.get("type") == "string" and "enum" in node:
        made["pattern"] = f"^({'|'.join(map(re.escape, made.pop('enum')))})$"
    return made


def _described(made: Json, node: Json) -> Json:
    return {**made, "description": node["description"]} if "description" in node else made


def _column(name: str, path: str) -> Json:
    return {"name": name, "type": "string", "jsonPath": path}


def _rule(rule: str, message: str) -> Json:
    return {"rule": rule, "message": message}


class _Dumper(yaml.SafeDumper):
    """Quotes `n` and `y`, which Helm reads as false and true."""


_Dumper.add_representer(str, lambda dumper, value: dumper.represent_scalar(
    "tag:yaml.org,2002:str", value, style="'" if value in ("n", "y", "N", "Y") else None))


def text() -> str:
    """The definition as YAML."""
    head = "# Made by `python -m alignment.cluster.operator.crd`; a test holds it to the models.\n"
    return head + yaml.dump(definition(), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    sys.stdout.write(text())
