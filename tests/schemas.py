"""Strict validation of manifests without a cluster: built-in kinds by kubernetes-validate, KubeRay's by its own CRDs.

Finds typos, wrong types and missing fields. Does not run CEL rules or admission: those need an API server.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

KUBERNETES = "1.36"
_BESIDE = Path(__file__).parents[2] / "shared" / "cluster" / "kuberay" / "crds"
_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
_METADATA = {
    "type": "object", "additionalProperties": False, "properties": {
        "name": {"type": "string", "pattern": r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}},
        "annotations": _STRINGS, "finalizers": {"type": "array", "items": {"type": "string"}},
        "ownerReferences": {"type": "array", "items": {
            "type": "object", "additionalProperties": False, "required": ["apiVersion", "kind", "name", "uid"],
            "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "name": {"type": "string"},
                           "uid": {"type": "string"}, "controller": {"type": "boolean"},
                           "blockOwnerDeletion": {"type": "boolean"}}}},
    },
}
_SAME = ("type", "enum", "pattern", "minimum", "maximum", "multipleOf", "minLength", "maxLength", "minItems",
         "maxItems", "uniqueItems", "minProperties", "maxProperties")


def problems(manifest: Mapping[str, Any]) -> list[str]:
    """What is wrong with a manifest, one sentence each; empty when nothing is.

    Skips the test when the kind is KubeRay's and its CRDs are not at hand. Raises
    kubernetes_validate.SchemaNotFoundError for a kind that neither knows.
    """
    if manifest["apiVersion"].startswith("ray.io/"):
        return against(kuberay(manifest["kind"]), manifest)
    try:
        kubernetes_validate.validate(dict(manifest), KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [_sentence(error)]
    return []


def against(schema: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[str]:
    """The same for one strict schema, for example `of_crd(...)`."""
    errors = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [_sentence(error) for error in sorted(errors, key=lambda error: [str(part) for part in error.absolute_path])]


@cache
def kuberay(kind: str) -> dict[str, Any]:
    """Strict JSON schema of RayCluster, RayJob, ...; from $KUBEALIGN_KUBERAY_CRDS or the test cluster's folder."""
    folder = Path(os.environ.get("KUBEALIGN_KUBERAY_CRDS", _BESIDE))
    file = folder / f"ray.io_{kind.lower()}s.yaml"
    if not file.exists():
        pytest.skip(f"{file} is missing; name the folder with KubeRay's CRDs in $KUBEALIGN_KUBERAY_CRDS")
    # The C loader: the files have a megabyte each.
    return of_crd(yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader))


def of_crd(crd: Mapping[str, Any]) -> dict[str, Any]:
    """A CustomResourceDefinition's storage version as strict JSON schema (draft 2020-12) of its whole object."""
    spec = crd["spec"]
    version = next(version for version in spec["versions"] if version["storage"])
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"] |= {
        "apiVersion": {"const": f"{spec['group']}/{version['name']}"},
        "kind": {"const": spec["names"]["kind"]}, "metadata": _METADATA,
    }
    schema["required"] = sorted({*schema.get("required", []), "apiVersion", "kind", "metadata"})
    return schema


def strict(node: Mapping[str, Any]) -> dict[str, Any]:
    """A structural OpenAPI v3 schema -> JSON schema that refuses unknown fields.

    As the API server does, defaults count before `required`, and null is refused unless `nullable`.
    """
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]} | ({"pattern": node["pattern"]} if "pattern" in node else {})
    made: dict[str, Any] = {key: node[key] for key in _SAME if key in node}
    for bound in ("minimum", "maximum"):
        exclusive = "exclusive" + bound.capitalize()
        if node.get(exclusive):
            made[exclusive] = made.pop(bound)
    properties = node.get("properties", {})
    if node.get("type") == "object":
        made["properties"] = {name: strict(child) for name, child in properties.items()}
        made["required"] = [name for name in node.get("required", []) if "default" not in properties.get(name, {})]
        more = node.get("additionalProperties")
        if isinstance(more, Mapping):
            made["additionalProperties"] = strict(more)
        elif not (more or node.get("x-kubernetes-preserve-unknown-fields")):
            made["additionalProperties"] = False
    if "items" in node:
        made["items"] = strict(node["items"])
    # Inside these, fields are only constrained, not declared: nothing to make strict.
    made |= {key: node[key] for key in ("allOf", "anyOf", "oneOf", "not") if key in node}
    if node.get("nullable") and "type" in made:
        made["type"] = [made["type"], "null"]
        if "enum" in made:
            made["enum"] = [*made["enum"], None]
    if not node.get("nullable") and "type" not in made:
        made.setdefault("not", {"type": "null"})  # what may be anything else: the API server drops a null
    return made


def _sentence(error: jsonschema.ValidationError) -> str:
    return f"{'.'.join(str(part) for part in error.absolute_path) or '(root)'}: {error.message[:300]}"
