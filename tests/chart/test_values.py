"""values.yaml, its schema and its table: a typo is refused wherever it stands, nothing is left undocumented."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml

from alignment.cluster.operator.reads import readable
from charts.values_table import VALUES, page, values
from tests.chart.rendered import CHART, FILES, ROOT, objects, one, template

SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
DEFAULTS: dict[str, Any] = yaml.safe_load(VALUES.read_text(encoding="utf-8"))


def _nodes(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        yield path, node
        for key, child in node.items():
            yield from _nodes(child, f"{path}/{key}")
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from _nodes(child, f"{path}/{index}")


def _resolved(node: dict[str, Any]) -> dict[str, Any]:
    return SCHEMA["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def _closed(schema: dict[str, Any], tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of the mappings of values.yaml whose keys the schema lists."""
    schema = _resolved(schema)
    if "properties" in schema:
        yield path
        for key, child in tree.items():
            if isinstance(child, dict):
                yield from _closed(schema["properties"][key], child, (*path, key))


def test_the_schema_is_one_and_closed_everywhere() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for path, node in _nodes(SCHEMA):
        if node.get("type") == "object":
            more = node.get("additionalProperties")
            assert more is False or (isinstance(more, dict) and more), f"{path} lets anything in"


@pytest.mark.parametrize("path", list(_closed(SCHEMA, DEFAULTS)), ids=".".join)
def test_schema_and_values_hold_the_same_keys(path: tuple[str, ...]) -> None:
    schema, tree = SCHEMA, DEFAULTS
    for key in path:
        schema, tree = _resolved(schema["properties"][key]), tree[key]
    if path != ("rayCluster", "head"):  # takes the keys of podDefaults
        assert set(schema["properties"]) == set(tree)
        assert set(schema["required"]) == set(tree)
    else:
        assert set(schema["properties"]) == set(DEFAULTS["rayCluster"]["podDefaults"]) - {"numCpus"}


@pytest.mark.parametrize("path", list(_closed(SCHEMA, DEFAULTS)), ids=".".join)
def test_helm_refuses_an_unknown_key_and_names_it(path: tuple[str, ...]) -> None:
    wrong: dict[str, Any] = {"tpyo": 1}
    for key in reversed(path):
        wrong = {key: wrong}
    done = template(CHART, "values.yaml", wrong)
    assert done.returncode != 0
    assert f"at '{''.join('/' + key for key in path)}'" in done.stderr
    assert "'tpyo' not allowed" in done.stderr


@pytest.mark.parametrize(("wrong", "where"), [
    ({"storage": {"size": "200 GB"}}, "/storage/size"),
    ({"storage": {"accessModes": ["RWX"]}}, "/storage/accessModes/0"),
    ({"storage": {"s3": {"url": "bucket/prefix"}}}, "/storage/s3/url"), ({"storage": None}, "'storage'"),
    ({"images": {"pullPolicy": "always"}}, "/images/pullPolicy"), ({"auth": {"token": "yes"}}, "/auth/token"),
    ({"auth": {"token": None}}, "'token'"), ({"rayCluster": {"rayVersion": 2.6}}, "/rayCluster/rayVersion"),
    ({"rayCluster": {"workerGroups": [{"name": "a"}]}}, "'replicas'"),
    ({"rayCluster": {"workerGroups": [{"name": "a", "replicas": 1, "gpu": 1}]}}, "'gpu' not allowed"),
    ({"rayCluster": {"workerGroups": [{"name": "A_B", "replicas": 1}]}}, "/rayCluster/workerGroups/0/name"),
    ({"rayCluster": {"head": {"numCpus": 4}}}, "'numCpus' not allowed"),
    ({"rayCluster": {"podDefaults": {"env": {"MY-VAR": "1"}}}}, "/rayCluster/podDefaults/env"),
    ({"rayCluster": {"podDefaults": {"tolerations": [{"keys": "a"}]}}}, "'keys' not allowed"),
    ({"networkPolicy": {"egress": {"storage": [{"port": 443}]}}}, "'port' not allowed"),
    ({"networkPolicy": {"egress": {"storage": [{"to": [{"ipblock": {"cidr": "10.0.0.0/8"}}]}]}}}, "/to/0"),
    ({"quota": {"hard": {"pods": "many"}}}, "/quota/hard/pods"),
    ({"operator": {"reads": ["bucket/prefix"]}}, "/operator/reads/0"),
    ({"operator": {"reads": ["/a /b"]}}, "/operator/reads/0"),
])
def test_helm_refuses_a_wrong_value_and_says_where(wrong: dict[str, Any], where: str) -> None:
    done = template(CHART, "values.yaml", wrong)
    assert done.returncode != 0
    assert "don't meet the specifications of the schema" in done.stderr
    assert where in done.stderr


@pytest.mark.parametrize(("wrong", "where"), [
    ({"podDefaults": {"env": {"RAY_AUTH_MODE": "disabled"}}}, "rayCluster.podDefaults.env.RAY_AUTH_MODE"),
    ({"head": {"env": {"ray_address": "x"}}}, "rayCluster.head.env.ray_address"),
    ({"workerGroups": [{"name": "gpu", "replicas": 1, "env": {"LD_PRELOAD": "/tmp/x"}}]},
     "rayCluster.workerGroups.gpu.env.LD_PRELOAD"),
])
def test_helm_refuses_a_variable_that_undoes_a_protection(wrong: dict[str, Any], where: str) -> None:
    done = template(CHART, "values.yaml", {"rayCluster": {"enabled": True, **wrong}})
    assert done.returncode != 0
    assert f"{where}: this variable" in done.stderr


@pytest.mark.parametrize(("values", "reads"), [
    ({}, "/artifacts"), ({"operator": {"reads": ["s3://other/x", "/data"]}}, "/artifacts s3://other/x /data"),
    ({"storage": {"s3": {"url": "s3://bucket/prefix"}}}, "s3://bucket/prefix"),
])
def test_the_operator_reads_the_storage_and_what_the_values_add(values: dict[str, Any], reads: str) -> None:
    operator = one(objects(template(CHART, "values.yaml", values).stdout), "Deployment", "kubealign-operator")
    env = operator["spec"]["template"]["spec"]["containers"][0]["env"]
    assert next(entry["value"] for entry in env if entry["name"] == "KUBEALIGN_READS") == reads
    assert readable(reads.split()).refusal(reads.split()[0] + "/runs") is None


@pytest.mark.parametrize("file", FILES)
def test_every_values_file_only_says_what_differs(file: str) -> None:
    tree = yaml.safe_load((CHART / file).read_text(encoding="utf-8"))
    if file != "values.yaml":
        assert not [".".join(path) for path, value in _leaves(tree) if _at(DEFAULTS, path) == value
                    and path[:2] != ("rayCluster", "workerGroups")]


def _leaves(tree: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


# --- the table ---


def test_every_value_is_documented_where_it_stands() -> None:
    found = values(VALUES.read_text(encoding="utf-8"))
    assert [value.path for value in found if not value.comment] == []
    assert {value.path.partition(".")[0] for value in found} == set(DEFAULTS)


def test_the_table_in_docs_is_up_to_date() -> None:
    made = page(values(VALUES.read_text(encoding="utf-8")))
    assert (ROOT / "docs" / "chart-values.md").read_text(encoding="utf-8") == made


def test_the_table_shows_defaults_and_only_comments_right_above() -> None:
    text = "# Of the file.\n\n# Section.\na:\n  # One,\n  # two.\n  b: {c: [1]}\n\n  # Apart.\n\n  d: yes\n"
    assert [(value.path, value.comment, value.default) for value in values(text)] == [
        ("a", "Section.", None), ("a.b", "One, two.", '{"c": [1]}'), ("a.d", "", "true")]
