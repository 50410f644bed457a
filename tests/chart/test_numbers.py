"""Numbers of values come out as they were written: Helm keeps them as floats and prints large ones as 8.388608e+06."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chart.rendered import APIS, CHART, EVERYTHING, S3, helm, objects, one, template

SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
LARGE = (8388608, 1000000, 1073741824, 123456789012)


def _numeric(schema: dict[str, Any], path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """Every place of the values where a number may stand, with the largest that is allowed there."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    kinds = schema.get("type", [])
    for each in [schema, *schema.get("anyOf", [])]:
        if "$ref" in each:
            yield from _numeric(each, path)
        elif "integer" in (each.get("type", []) if isinstance(each.get("type"), list) else [each.get("type")]):
            yield path, each.get("maximum", max(LARGE))
    if kinds == "object":
        for key, inner in schema.get("properties", {}).items():
            yield from _numeric(inner, (*path, key))
        for key, inner in [("some", schema.get("additionalProperties")),
                           ("SOME", next(iter(schema.get("patternProperties", {}).values()), None))]:
            if isinstance(inner, dict):
                yield from _numeric(inner, (*path, "requests.cpu" if path[:1] == ("quota",) else key))
    elif kinds == "array":
        yield from _numeric(schema["items"], (*path, 0))


PLACES = list(_numeric(SCHEMA))


def _set(tree: Any, path: tuple[str | int, ...], value: object) -> Any:
    if not path:
        return value
    key, rest = path[0], path[1:]
    if isinstance(key, int):
        return [_set(tree[0] if isinstance(tree, list) and tree else {}, rest, value)]
    return {**(tree or {}), key: _set((tree or {}).get(key), rest, value)}


def test_the_walk_finds_numbers_everywhere() -> None:
    paths = {".".join(map(str, path)) for path, _ in PLACES}
    assert {"rayCluster.podDefaults.env.SOME", "rayCluster.podDefaults.terminationGracePeriodSeconds", "storage.size",
            "rayCluster.workerGroups.0.replicas", "quota.hard.requests.cpu", "rayCluster.head.memory",
            "operator.resources.limits.memory", "limitRange.max.some", "rayCluster.workerGroups.0.numCpus",
            "rayCluster.podDefaults.tolerations.0.tolerationSeconds"} <= paths
    assert len(paths) > 40


@pytest.mark.parametrize("number", LARGE)
def test_large_whole_numbers_everywhere_at_once(number: int) -> None:
    values: dict[str, Any] = {**EVERYTHING, "rayCluster": {"enabled": True, "head": {"env": {"A": 1}}, "workerGroups": [
        {"name": "cpu", "replicas": 1}]}}
    for path, most in PLACES:
        if "egress" not in path and path[-1] != "shm":  # a port ends at 65535; shm goes below memory
            values = _set(values, path, min(number, most))
    done = template(CHART, "values.yaml", values)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"[0-9]e\+[0-9]", done.stdout)
    assert str(number) in done.stdout
    cluster = one(objects(done.stdout), "RayCluster", "kubealign")["spec"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert head["terminationGracePeriodSeconds"] == number
    assert {"name": "SOME", "value": str(number)} in head["containers"][0]["env"]
    assert head["containers"][0]["resources"]["limits"]["memory"] == number
    assert cluster["workerGroupSpecs"][0]["replicas"] == min(number, 1024)


def test_given_on_the_command_line_as_well() -> None:
    versions = [part for api in APIS for part in ("--api-versions", api)]
    done = helm("template", "kubealign", CHART, *versions, "--set", "rayCluster.enabled=true",
                "--set", "rayCluster.podDefaults.env.NCCL_BUFFSIZE=8388608",
                "--set", "rayCluster.podDefaults.terminationGracePeriodSeconds=1000000")
    assert done.returncode == 0, done.stderr
    assert 'value: "8388608"' in done.stdout
    assert "terminationGracePeriodSeconds: 1000000" in done.stdout


def test_numbers_of_the_other_values_files_stay(tmp_path: Path) -> None:
    for file in CHART.glob("values*.yaml"):
        done = template(CHART, file.name, S3)
        assert done.returncode == 0, done.stderr
        assert not re.search(r"[0-9]e\+[0-9]", done.stdout), file
