"""Profiles: what is shipped loads, every mistake is found at its line, and a profile says where, never what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.config import Run, bytes_of, load_profile, load_run, parse_run, profile_json
from alignment.config.arithmetic import settled
from alignment.config.profile import Profile
from alignment.config.yaml_file import parse_tree
from alignment.config.yaml_text import dump
from alignment.errors import ConfigErrors
from alignment.pipeline.keys import keys

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path.stem for path in (ROOT / "configs" / "profiles").glob("*.yaml"))
PROFILE = """\
name: mine
compute: {workers: 4, gpus_per_worker: 1, cpus_per_worker: 2}
cluster:
  storage:
    url: /artifacts/runs
    claim: artifacts
  images: {train: r.example.org/train:1, control: r.example.org/control:1}
  head: {cpu: "2", memory: 8Gi}
  worker: {cpu: "8", memory: 64Gi, shm: 8Gi, gpus: 2, workers: 2}
  stages:
    sft: {workers: 2}
    dpo: {workers: 1, worker: {gpus: 1}}
    train: {workers: 8}
    evaluate: {worker: {gpus: 1}}
  queue: lane
"""
CASES = [
    # (name, text to replace, by what, the text whose line is named, part of the problem, found, part of expected)
    ("unknown key", "  queue: lane", "  que: lane", "que:", "an unknown key", "que", "perhaps queue"),
    ("unknown key deep", "memory: 8Gi", "memori: 8Gi", "head:", "an unknown key", "memori", "perhaps memory"),
    ("unknown key in an override", "{workers: 2}\n", "{worker_s: 2}\n", "sft:", "an unknown key", "worker_s",
     "perhaps workers"),
    ("missing key", "name: mine\n", "", "compute:", "a key is missing", None, "name:"),
    ("missing storage", "    claim: artifacts\n", "", "storage:", "`claim` must name the volume", None, None),
    ("a number for a quantity", 'cpu: "2"', "cpu: 2", "head:", "not text", 2, 'text, so in quotes: "2"'),
    ("no quantity", "memory: 8Gi", "memory: 8GB", "head:", "not of the right form", "8GB", None),
    ("shared memory over memory", "memory: 8Gi", "memory: 1Gi, shm: 2Gi", "head:", "is part of memory", None, None),
    ("two storages", "    claim: artifacts", "    url2: s3://b", "url2:", "an unknown key", "url2", "perhaps url"),
    ("folder outside the mount", "url: /artifacts/runs", "url: /data/runs", "storage:", "not below", None, None),
    ("a claim for objects", "url: /artifacts/runs", "url: s3://b/runs", "storage:", "needs `secret`", None, None),
    ("no tag", "train:1,", "train,", "images:", "needs a tag", None, None),
    ("latest", "train:1,", "train:latest,", "images:", "needs a tag", None, None),
    ("store beside a cluster", "name: mine", "name: mine\nstore: runs", "name:", "remove `store`", None, None),
    ("address beside a cluster", "{workers: 4,", "{workers: 4, address: auto,", "name:", "remove compute.address",
     None, None),
    ("bad environment name", "  queue: lane", "  env: {A-B: x}", "env:", "not of the right form", None, None),
    ("bad name of an override", "    sft: {", "    SFT: {", "SFT:", "not of the right form", None, None),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(PROFILE, encoding="utf-8")
    return path


@pytest.fixture
def run(run_text: str) -> Run:
    return parse_run(run_text)


def test_every_profile_of_the_issue_is_shipped() -> None:
    assert {"local", "dev-cpu", "single-24gb", "multi-gpu", "s3"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_profile_loads_by_name_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    profile = load_profile(name)
    assert profile.name == name
    assert profile.description
    assert (profile.cluster is None) == (name == "local")
    assert Profile.model_validate_json(json.dumps(profile_json(profile))) == profile


def test_a_profile_in_the_working_directory_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "configs" / "profiles"
    folder.mkdir(parents=True)
    (folder / "dev-cpu.yaml").write_text("name: ours\n")
    monkeypatch.chdir(tmp_path)
    assert load_profile("dev-cpu").name == "ours"
    assert load_profile("configs/profiles/dev-cpu.yaml").name == "ours"
    assert load_profile("local").name == "local"


@pytest.mark.parametrize(("name", "old", "new", "at", "problem", "found", "expected"), CASES, ids=[c[0] for c in CASES])
def test_finding(
    name: str, old: str, new: str, at: str, problem: str, found: object, expected: str | None, file: Path
) -> None:
    assert PROFILE.count(old) == 1, f"{name}: the case must change one place"
    text = PROFILE.replace(old, new)
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigErrors) as caught:
        load_profile(file)
    places = [(finding.where or "", finding) for finding in caught.value.findings]
    line = text[: text.index(at)].count("\n") + 1
    [finding] = [found for where, found in places if where.split(" ")[0] == f"{file}:{line}"]
    assert problem in finding.problem
    assert found is None or str(finding.found) == str(found)
    assert expected is None or expected in str(finding.expected)


@pytest.mark.parametrize(("text", "line", "problem"), [
    ("name: a\nname: b\n", ":2", "stands twice"), ("- a\n", ":1", "a profile file is a mapping"),
    ("", ":1", "a profile file is a mapping"), ("name: [a\n", ":2", "not valid YAML"), ("name: a\x00b\n", ":1", "YAML"),
])
def test_broken_files(text: str, line: str, problem: str, file: Path) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigErrors) as caught:
        load_profile(file)
    assert str(caught.value).startswith(f"{file}{line}: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize(("name", "expected"), [
    ("dev-cup", "perhaps dev-cpu; one of dev-cpu, local, multi-gpu, s3, single-24gb"),
    ("single", "one of dev-cpu, local"), ("", "one of dev-cpu, local"),
])
def test_an_unknown_name_is_met_with_the_known_ones(name: str, expected: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load_profile(name)
    [finding] = caught.value.findings
    assert (finding.where, finding.found) == ("--profile", name)
    assert expected in str(finding.expected)
    assert f"./{name}.yaml" in str(finding.hint)


@pytest.mark.parametrize("path", ["./nowhere.yaml", "nowhere.yml", "some/folder/"])
def test_a_path_that_is_not_there_is_named(path: str) -> None:
    with pytest.raises(ConfigErrors, match="the profile file cannot be read") as caught:
        load_profile(path)
    assert path.strip("./") in str(caught.value)


def test_overrides(file: Path) -> None:
    profile = load_profile(file, ["cluster.worker.memory=16Gi", "cluster.images.pull_policy=Never", "compute.workers=6",
                                  "cluster.stages.rs.workers=3", "cluster.env.NCCL_DEBUG=INFO"])
    assert profile.cluster is not None
    assert (profile.cluster.worker.memory, profile.cluster.images.pull_policy) == ("16Gi", "Never")
    assert (profile.compute.workers, profile.cluster.stages["rs"].workers) == (6, 3)
    assert profile.cluster.env == {"NCCL_DEBUG": "INFO"}


@pytest.mark.parametrize(("override", "problem"), [
    ("cluster", "not an override"), ("clustr.queue=x", "perhaps cluster"), ("cluster.que=x", "unknown key"),
    ("cluster.worker.cpu=2", "in quotes"), ("name.x=2", "below a plain value"), ("cluster.env_from.0=x", "not a list"),
])
def test_bad_overrides(override: str, problem: str, file: Path) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load_profile(file, [override])
    assert problem in str(caught.value)


def test_name_then_method_then_kind_then_all(file: Path, run: Run) -> None:
    profile = load_profile(file)
    found = {stage.name: (profile.workers_of(stage), profile.pods_of(stage), profile.pod_of(stage).gpus)
             for stage in run.stages}
    assert found == {
        "base": (0, 0, 2), "seed": (0, 0, 2),   # imports run in one process
        "sft": (2, 1, 2),                       # two workers share one pod
        "rm": (8, 4, 2),                        # by kind: train
        "rs": (4, 2, 2),                        # compute.workers
        "dpo": (1, 1, 1), "eval": (0, 0, 1),
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_a_profile_changes_no_digest_of_stages_that_say_their_dtype(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    run, profile = settled(load_run("configs/runs/tiny.yaml"), lambda stage: None), load_profile(name)
    applied = [profile.applied(run), *(profile.applied(run, stage) for stage in run.stages)]
    assert {tuple(key.digest for key in keys(each).values()) for each in applied} == {
        tuple(key.digest for key in keys(run).values())}
    assert applied[0].store == (profile.cluster.storage.url if profile.cluster else profile.store)


@given(st.integers(1, 9999), st.sampled_from(["", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"]))
def test_quantities(number: int, unit: str) -> None:
    scale = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "m": 0.001}
    scale |= {f"{letter}i": 2 ** (10 * power) for power, letter in enumerate("KMGT", 1)}
    assert bytes_of(f"{number}{unit}") == number * scale[unit]
    with pytest.raises(ValueError, match="no quantity"):
        bytes_of(f"{number}{unit}B")


@given(st.recursive(st.text(max_size=12) | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none(),
                    lambda inner: st.lists(inner, max_size=3), max_leaves=6),
       st.sampled_from(["1e-4", "1E5", "0x10", "1_000", "no", "2026-01-01", "12:30", "=", "${a}", "a\x85b", ""]))
def test_what_is_dumped_is_read_again(value: object, text: str) -> None:
    tree = {"name": value, "description": text}
    assert parse_tree(dump(tree), "f.yaml", "run", "")[0] == tree


@pytest.mark.parametrize(("stages", "place", "problem"), [
    ({"evaluate": {"workers": 4}}, ("cluster", "stages", "evaluate", "workers"), "runs in one process"),
    ({"eval": {"workers": 4}}, ("cluster", "stages", "eval", "workers"), "runs in one process"),
    ({"import": {"workers": 1}}, ("cluster", "stages", "import", "workers"), "runs in one process"),
])
def test_workers_for_a_stage_in_one_process_are_refused(
    stages: dict[str, dict[str, int]], place: tuple[str, ...], problem: str
) -> None:
    found = list(_with_stages(stages).findings(load_run(ROOT / "configs" / "runs" / "tiny.yaml")))
    assert [finding.place for finding in found] == [place]
    assert problem in found[0].problem


@pytest.mark.parametrize("name", ["rs", "sft", "kto", "train", "sample"])
def test_stages_methods_and_kinds_may_be_named(name: str) -> None:
    run, profile = load_run(ROOT / "configs" / "runs" / "tiny.yaml"), _with_stages({name: {"workers": 3}})
    assert not list(profile.findings(run))
    assert not profile.idle(run)


def test_an_override_that_nothing_obeys_is_said() -> None:
    """Not refused: one profile serves several runs."""
    run = load_run(ROOT / "configs" / "runs" / "tiny.yaml")
    profile = _with_stages({"stf": {"workers": 2}, "sft": {"workers": 2}})
    assert not list(profile.findings(run))
    (said,) = profile.idle(run)
    assert said.startswith("profile mine: cluster.stages.stf is no stage, method or kind of this run")
    assert "perhaps sft" in said


def test_a_stage_in_one_process_may_have_a_pod_of_its_own() -> None:
    run = load_run(ROOT / "configs" / "runs" / "tiny.yaml")
    assert not list(_with_stages({"evaluate": {"workers": 0, "worker": {"memory": "4Gi"}}}).findings(run))


def _with_stages(stages: dict[str, Any]) -> Profile:
    tree = parse_tree(PROFILE, "mine.yaml", "profile", "")[0]
    tree["cluster"]["stages"] = stages
    return Profile.model_validate(tree, strict=False)


@pytest.mark.parametrize("where", ["compute: {workers: %s}", "cluster: {stages: {sft: {workers: %s}}}"])
@pytest.mark.parametrize("counts", ["{min: 1, max: 4}", "[1, 4]"])
def test_a_range_of_workers_is_refused_with_what_to_write(where: str, counts: str, file: Path) -> None:
    file.write_text("name: p\n" + where % counts, encoding="utf-8")
    with pytest.raises(ConfigErrors, match="workers is one number") as refused:
        load_profile(str(file))
    assert "by which a stage's batch_size cannot be divided" in str(refused.value)
