"""The CustomResourceDefinition: made from the models, structural by Kubernetes' own rules, and true to every run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment.cluster.manifests.alignment_run import (
    API_VERSION,
    KIND,
    Gate,
    spec_of,
    status_json,
    status_of,
)
from alignment.cluster.manifests.bundle import bundle
from alignment.cluster.manifests.submission import alignment_run
from alignment.cluster.operator.crd import definition, schema, text
from alignment.cluster.operator.prepare import Refused, prepare
from alignment.cluster.operator.reads import Reads
from alignment.config import load_profile, load_run, parse_run
from alignment.config.yaml_text import dump
from tests.cluster.operator_world import READS, Store, World, calm, chain, operator, submit
from tests.schemas import against, of_crd, problems

ROOT = Path(__file__).parents[3]
KEYS = {
    "type", "description", "properties", "items", "required", "additionalProperties", "enum", "pattern", "nullable",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "minItems", "maxItems",
    "maxProperties", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
}
TYPES = {"string": str, "integer": int, "boolean": bool}
RUNS = sorted((ROOT / "configs" / "runs").glob("*.yaml"))
CLUSTERS = [path.stem for path in sorted((ROOT / "configs" / "profiles").glob("*.yaml"))
            if "cluster:" in path.read_text()]


def broken(node: Any, place: str = "") -> Iterator[str]:
    """Where a schema is not structural (apiextensions/v1: every value typed or open, nothing that cannot be pruned)."""
    if set(node) - KEYS:
        yield f"{place}: unknown {set(node) - KEYS}"
    if "type" not in node and not node.get("x-kubernetes-preserve-unknown-fields"):
        yield f"{place}: neither typed nor open"
    if "properties" in node and "additionalProperties" in node:
        yield f"{place}: properties beside additionalProperties"
    if isinstance(node.get("additionalProperties"), bool):
        yield f"{place}: additionalProperties must be a schema"
    if node.get("type") == "array" and "items" not in node:
        yield f"{place}: an array without items"
    holds = {"properties", "additionalProperties", "x-kubernetes-preserve-unknown-fields"} & set(node)
    if node.get("type") == "object" and not holds and place != ".metadata":
        yield f"{place}: an object of nothing: all would be pruned"
    for key in ("exclusiveMinimum", "exclusiveMaximum"):
        if key in node and (node[key] is not True or key.replace("exclusiveM", "m") not in node):
            yield f"{place}: {key} stands beside its bound and is true"
    for name in node.get("required", ()):
        if name not in node["properties"]:
            yield f"{place}: requires {name}, which it does not have"
    if node.get("nullable") and node.get("type") == "string" and "enum" in node:
        yield f"{place}: null is allowed, and no enum of the API server's has it"
    for value in node.get("enum", ()):
        if not isinstance(value, TYPES[node["type"]]):
            yield f"{place}: enum holds {value!r}"
    if node.get("x-kubernetes-list-type") == "map":
        for key in node["x-kubernetes-list-map-keys"]:
            if key not in node["items"].get("required", ()):
                yield f"{place}: list key {key} is not required"
    for name, value in node.get("properties", {}).items():
        yield from broken(value, f"{place}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from broken(node[key], f"{place}[]")


def found(manifest: dict[str, Any]) -> list[str]:
    """What the API server would refuse, CEL rules apart."""
    parts = {key: manifest[key] for key in ("apiVersion", "kind", "spec", "status") if key in manifest}
    return against(of_crd(definition()), {**parts, "metadata": {"name": "x"}})


def made_of(run: str = "tiny", profile: str = "s3", **options: Any) -> dict[str, Any]:
    loaded, of = load_run(ROOT / "configs" / "runs" / f"{run}.yaml"), load_profile(profile)
    return alignment_run(loaded, of, bundle(loaded, of), namespace="align", config_map="files", **options)


def test_the_chart_has_the_definition_of_these_models() -> None:
    assert (ROOT / "charts" / "kubealign" / "files" / "alignmentruns.yaml").read_text(encoding="utf-8") == text()


def test_the_definition_is_valid_and_structural() -> None:
    assert problems(definition()) == []
    assert list(broken(schema())) == []


@pytest.mark.parametrize("spoil", [
    lambda s: s["properties"]["spec"].pop("type"),
    lambda s: s["properties"]["spec"]["properties"]["gates"].pop("items"),
    lambda s: s["properties"]["spec"].update(additionalProperties=False),
    lambda s: s["properties"]["status"]["properties"].update(x={"$ref": "#/x"}),
    lambda s: s["properties"]["status"]["properties"].update(x={"type": "object"}),
    lambda s: s["properties"]["spec"]["properties"].update(x={"type": "string", "nullable": True, "enum": ["a"]}),
])
def test_a_schema_that_is_not_structural_is_noticed(spoil: Any) -> None:
    spoiled = schema()
    spoil(spoiled)
    assert list(broken(spoiled))


@pytest.mark.parametrize("profile", CLUSTERS)
@pytest.mark.parametrize("run", [path.stem for path in RUNS])
def test_every_run_under_every_profile_fits_and_comes_back_the_same(
    run: str, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    manifest = made_of("tiny", profile, gates=(Gate(after="sft", approval=True),), queue="q", ttl=60, suspend=True)
    loaded = load_run(f"configs/runs/{run}.yaml")
    manifest["spec"]["run"] = load_profile(profile).applied(loaded).model_dump(mode="json")
    assert found(manifest) == []
    spec = spec_of(json.loads(json.dumps(manifest)))
    assert (spec.queue, spec.ttl, spec.suspend, spec.gates) == ("q", 60, True, (Gate(after="sft", approval=True),))
    assert parse_run(dump(spec.run)) == load_profile(profile).applied(loaded)


def test_what_is_null_in_a_run_stays_null(monkeypatch: pytest.MonkeyPatch) -> None:
    """`max_bad: null` means any number, and is not the default."""
    monkeypatch.chdir(ROOT)
    run = load_run("configs/runs/tiny.yaml", ["seed.max_bad=null"])
    of = load_profile("s3")
    manifest = alignment_run(run, of, bundle(run, of), namespace="align", config_map="files")
    data = next(stage for stage in manifest["spec"]["run"]["stages"] if stage["name"] == "seed")
    assert data["max_bad"] is None
    assert found(manifest) == []


def test_the_status_that_the_operator_writes_fits(tmp_path: Path) -> None:
    world = World(Store())
    name = submit(world, chain(tmp_path), gates=(Gate(after="rm", metric="rm.accuracy > 0.9"),))
    calm(world, operator(world), name, metrics={"rm": {"accuracy": 0.5}})
    body = world.objects[("AlignmentRun", name)]
    assert body["status"]["phase"] == "Failed"
    assert found(body) == []
    assert status_json(status_of(body)) == body["status"]


@pytest.mark.parametrize(("change", "where"), [
    ({"run": {"name": "x", "stages": [{"name": "a", "kind": "import", "modle": {}}]}}, "spec.run.stages.0"),
    ({"run": {"name": "x", "stages": []}}, "spec.run.stages"),
    ({"run": {"stages": [{"name": "a", "kind": "import"}]}}, "spec.run"),
    ({"retries": -1}, "spec.retries"),
    ({"retry": 1}, "spec:"),
    ({"gates": [{"after": "Not A Name"}]}, "spec.gates.0.after"),
    ({"profile": {"name": "p", "cluster": {"storage": {"url": "relative"}}}}, "spec.profile.cluster"),
])
def test_plain_mistakes_are_refused_by_the_schema(
    change: dict[str, Any], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    manifest = made_of()
    manifest["spec"] |= change
    assert any(problem.startswith(where) for problem in found(manifest)), found(manifest)


def test_a_hand_written_run_needs_neither_files_nor_digests() -> None:
    spec = {"run": {"name": "mine", "stages": [{"name": "base", "kind": "import", "model": {"source": "tiny"}}]},
            "profile": {"name": "p", "cluster": {"storage": {"url": "s3://b/c"}}}}
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "mine", "uid": "u", "generation": 1},
            "spec": spec}
    assert found(body) == []
    ready = prepare(Reads(("s3://b",)), body, None)
    assert ready.stages[0].key.startswith("import-model-")
    assert not ready.as_sent
    assert "store: s3://b/c" in ready.bundle.run_yaml


def test_a_strategy_that_is_left_to_auto_is_refused_with_who_resolves_it(tmp_path: Path) -> None:
    world = World(Store())
    name = submit(world, chain(tmp_path))
    body = world.objects[("AlignmentRun", name)]
    for stage in body["spec"]["run"]["stages"]:
        if stage["kind"] == "train":
            stage["strategy"] = {"kind": "auto"}
    with pytest.raises(Refused, match="stage sft: strategy auto is resolved before a run travels"):
        prepare(READS, body, world.config_map(body["spec"]["files"]["configMap"]))


def test_a_source_that_only_the_client_has_is_known_by_its_digest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path
                                                                   ) -> None:
    """A changed run whose sources lie elsewhere is refused with what to do; the run as sent is not."""
    monkeypatch.chdir(ROOT)
    world = World(Store())
    run = chain(tmp_path)
    name = submit(world, run)
    body = world.objects[("AlignmentRun", name)]
    config = world.config_map(body["spec"]["files"]["configMap"])
    (tmp_path / "rows.jsonl").unlink()
    assert [stage.digest for stage in prepare(READS, body, config).stages] == list(body["spec"]["digests"].values())
    body["spec"]["run"]["seed"] = 99
    with pytest.raises(Refused, match="submit the changed run again") as refused:
        prepare(READS, body, config)
    assert refused.value.reason == "SourceUnreadable"
