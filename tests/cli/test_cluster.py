"""The cluster's verbs as a user types them: exit codes, what is printed where, options that do not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Call
from tests.cluster.api_server import Api, serving
from tests.cluster.kuberay import Controllers
from tests.small import rows

RUN = """
name: mine
seed: 3
stages:
  - {name: one, kind: import, data: [{path: one.jsonl, format: passage-qa}],
     split: {by: ratio, ratios: {train: 0.5, dev: 0.5}}}
"""
TRAIN = """
  - {name: base, kind: import, model: {source: tiny}}
  - {name: sft, kind: train, method: sft, model: base, rows: [one/train], batch_size: 9, micro_batch_size: 9,
     learning_rate: 1e-3, strategy: {kind: lora}}
"""
VERBS = ("preflight", "submit", "logs", "resume", "status", "report")


@pytest.fixture
def here(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run, its data, and a profile whose volume is a folder of the test."""
    monkeypatch.delenv("KUBEALIGN_PROFILE", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    storage = tmp_path / "artifacts"
    storage.mkdir()
    Path("run.yaml").write_text(RUN)
    Path("one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(20)))
    Path("cluster.yaml").write_text(yaml.safe_dump({"name": "mine", "compute": {"workers": 2}, "cluster": {
        "storage": {"url": str(storage), "mount": str(storage), "claim": "artifacts"}}}))
    Path("laptop.yaml").write_text(yaml.safe_dump({"name": "laptop", "store": str(tmp_path / "kept")}))
    return tmp_path


@pytest.fixture
def api(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with serving(here) as (made, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        made.reacts = Controllers(made, here).react
        yield made


# --- without a cluster ---

@pytest.mark.parametrize(("target", "kinds"), [
    ("rayjob", ["ConfigMap", "RayJob"]), ("run", ["ConfigMap", "AlignmentRun"]), ("job", [None]),
])
def test_a_dry_run_prints_yaml_and_contacts_nothing(
    target: str, kinds: list[str | None], here: Path, call: Call
) -> None:
    said = call("submit", "run.yaml", "--profile", "cluster.yaml", "--target", target, "--dry-run", "-n", "there")
    assert said.code == 0, said.err
    documents = list(yaml.safe_load_all(said.out))
    assert [document.get("kind") for document in documents] == kinds
    if target != "job":
        assert {document["metadata"]["namespace"] for document in documents} == {"there"}
        assert yaml.safe_load(documents[0]["data"]["run.yaml"])["store"] == str(here / "artifacts")
    else:
        assert documents[0]["entrypoint"].endswith("import_stage.py run.yaml one compute.workers=0")
        assert documents[0]["runtime_env"]["working_dir"] == ["run.yaml", "files/0/one.jsonl"]


def test_overrides_reach_run_and_profile(here: Path, call: Call) -> None:
    said = call("submit", "run.yaml", "--profile", "cluster.yaml", "--dry-run", "--set", "seed=9",
                "--set", "cluster.worker.memory=5Gi", "--set", "compute.workers=3")
    assert said.code == 0, said.err
    files, job = yaml.safe_load_all(said.out)
    resolved = yaml.safe_load(files["data"]["run.yaml"])
    assert resolved["seed"] == 9
    assert resolved["compute"]["workers"] == 3
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["resources"]["limits"]["memory"] == "5Gi"
    void = call("submit", "run.yaml", "--profile", "cluster.yaml", "--dry-run", "--set", "store=/elsewhere")
    assert void.code == 2
    assert "has no effect" in void.err


@pytest.mark.parametrize("verb", VERBS)
def test_no_kubeconfig_is_one_clear_error(verb: str, here: Path, call: Call) -> None:
    said = call(verb, "run.yaml", "--profile", "cluster.yaml")
    assert said.code == 2
    assert "there is no kubeconfig" in said.err
    assert "Traceback" not in said.err


def test_profiles_in_the_wrong_place(here: Path, call: Call) -> None:
    for verb in ("submit", "preflight", "resume"):
        said = call(verb, "run.yaml", "--profile", "laptop.yaml")
        assert said.code == 2
        assert "kubealign run run.yaml --profile laptop.yaml" in said.err
    assert call("status", "run.yaml", "--profile", "no-such").code == 2


@pytest.mark.parametrize(("options", "says"), [
    (["--target", "run", "--stage", "one"], "--target rayjob or --target job"),
    (["--target", "rayjob", "--gate", "one:approval"], "--target run"),
    (["--address", "http://x:8265"], "--target job"),
    (["--target", "run", "--gate", "two:approval", "--dry-run"], "not a gate"),
    (["--target", "run", "--gate", "one:rows_train", "--dry-run"], "not a bound"),
    (["--stage", "two", "--dry-run"], "no stage of this name"),
])
def test_options_that_do_not_fit(options: list[str], says: str, here: Path, call: Call) -> None:
    said = call("submit", "run.yaml", "--profile", "cluster.yaml", *options)
    assert said.code == 2
    assert says in said.err


def test_gates_stand_in_the_alignment_run(here: Path, call: Call) -> None:
    said = call("submit", "run.yaml", "--profile", "cluster.yaml", "--target", "run", "--dry-run",
                "--gate", "one: one.rows_train >= 5", "--gate", "one:approval", "--retries", "0")
    assert said.code == 0, said.err
    spec = list(yaml.safe_load_all(said.out))[1]["spec"]
    assert spec["gates"] == [{"after": "one", "metric": "one.rows_train >= 5"}, {"after": "one", "approval": True}]
    assert spec["retries"] == 0


def test_check_looks_at_the_run_under_its_profile(here: Path, call: Call) -> None:
    Path("run.yaml").write_text(RUN + TRAIN)
    assert call("check", "run.yaml").code == 0
    said = call("check", "run.yaml", "--profile", "cluster.yaml")
    assert said.code == 2
    assert "a multiple of 2" in said.err  # two workers
    assert call("submit", "run.yaml", "--profile", "cluster.yaml", "--dry-run").code == 2
    assert call("check", "run.yaml", "--profile", "cluster.yaml", "--set", "compute.workers=1").code == 0
    tiny = call("check", "run.yaml", "--profile", "cluster.yaml", "--set", "compute.workers=1",
                "--set", "cluster.worker.shm=1Mi")
    assert tiny.code == 2
    assert "too small for Ray's object store" in tiny.err


def test_a_profile_of_this_machine_moves_the_store(here: Path, call: Call) -> None:
    assert call("run", "run.yaml", "--profile", "laptop.yaml").code == 0
    assert (here / "kept" / "runs" / "mine" / "report.html").exists()
    assert "1 of 1 stages finished" in call("status", "run.yaml", "--profile", "laptop.yaml").out
    assert "0 of 1 stages finished" in call("status", "run.yaml").out
    tree = json.loads(call("status", "run.yaml", "--profile", "laptop.yaml", "--json").out)
    assert tree["stages"][0]["manifest"]["stage"] == "one"
    page = call("report", "run.yaml", "--profile", "laptop.yaml", "--print").out
    assert page.startswith("<!doctype html")
    assert "finished" in call("plan", "run.yaml", "--profile", "laptop.yaml").out


def test_planning_for_a_cluster_asks_none(here: Path, call: Call) -> None:
    said = call("plan", "run.yaml", "--profile", "cluster.yaml")
    assert said.code == 0, said.err
    assert "kubealign submit run.yaml --profile cluster.yaml" in said.out


def test_logs_of_a_store_on_this_machine(here: Path, call: Call) -> None:
    folder = here / "kept" / "runs" / "mine" / "logs"
    folder.mkdir(parents=True)
    for name, text in (("one-2", "second\n"), ("one-10", "tenth\n"), ("two-1", "other\n")):
        (folder / f"{name}.log").write_text(text)
    said = call("logs", "run.yaml", "--profile", "laptop.yaml", "--stage", "one")
    assert said.out == "--- one, attempt 2\nsecond\n--- one, attempt 10\ntenth\n"
    assert "other" in call("logs", "run.yaml", "--profile", "laptop.yaml").out
    assert call("logs", "run.yaml", "--profile", "laptop.yaml", "--follow").code == 2


# --- with an API server ---

def test_a_run_from_submit_to_report(api: Api, here: Path, call: Call) -> None:
    options = ("run.yaml", "--profile", "cluster.yaml")
    before = call("status", *options)
    assert before.code == 0, before.err
    assert "0 of 1 stages finished" in before.out
    said = call("submit", *options, "--wait")
    assert said.code == 0, said.err
    assert "every stage asked for is finished" in said.out
    assert "import · 1 file" in said.out  # the driver's output
    assert "+ one" in said.err  # progress
    assert "1 of 1 stages finished" in call("status", *options).out
    tree = json.loads(call("status", *options, "--json").out)
    assert tree["stages"][0]["manifest"]["rows"]["written"] == {"train": 10, "dev": 10}
    assert call("report", *options).out.strip() == "mine-report.html"
    assert Path("mine-report.html").read_text().startswith("<!doctype html")
    assert "import · 1 file" in call("logs", *options).out
    done = call("cancel", "run.yaml")
    assert "artifacts are kept" in done.out
    kept = call("logs", *options, "--stage", "one").out  # from the storage
    assert re.match(r"--- one, attempt [0-9a-f]{8}\.1\n", kept)
    again = call("resume", *options)
    assert again.code == 0
    assert "finished before" in again.err
    assert "has nothing of run mine" in call("cancel", "run.yaml").out


def test_cancel_says_what_it_could_not_look_at(api: Api, here: Path, call: Call) -> None:
    api.put({"kind": "RayCluster", "metadata": {"name": "kubealign", "namespace": "align"}})
    said = call("cancel", "run.yaml")
    assert said.code == 0
    assert "were not looked at: the RayCluster has no running head pod" in said.err
    assert call("cancel", "run.yaml", "--address", "http://127.0.0.1:1").code == 2


def test_the_users_error_ends_with_two_and_is_shown(api: Api, here: Path, call: Call) -> None:
    api.reacts = Controllers(api, here, mishaps=["lost"] * 2).react
    said = call("submit", "run.yaml", "--profile", "cluster.yaml", "--wait", "--retries", "1")
    assert said.code == 2
    assert "the stage failed 2 times" in said.err
    assert "Ray head pod not found." in said.err
    assert "failed" in call("status", "run.yaml", "--profile", "cluster.yaml").out
    # It ended before it had a log of its own: the last words are KubeRay's.
    said = call("logs", "run.yaml", "--profile", "cluster.yaml")
    assert said.out == "".join(f"--- one, attempt {number}\nRay head pod not found.\n" for number in (1, 2)), said.err


def test_forbidden_and_missing(api: Api, here: Path, call: Call) -> None:
    api.denied = {("patch", "rayjobs")}
    said = call("submit", "run.yaml", "--profile", "cluster.yaml")
    assert said.code == 2
    assert "dev may not patch rayjobs.ray.io in namespace align" in said.err
    said = call("submit", "run.yaml", "--profile", "cluster.yaml", "-n", "nowhere")
    assert said.code == 2
    assert "kubectl create namespace nowhere" in said.err
    said = call("submit", "run.yaml", "--profile", "cluster.yaml", "--context", "there")
    assert said.code == 2
    assert "one of here" in said.err
    api.absent = {"ray.io"}
    said = call("submit", "run.yaml", "--profile", "cluster.yaml")
    assert said.code == 2
    assert "helm install kuberay-operator" in said.err


def test_preflight_ends_with_two_when_something_would_fail(api: Api, here: Path, call: Call) -> None:
    said = call("preflight", "run.yaml", "--profile", "cluster.yaml", "--target", "rayjob")
    assert said.code == 2
    assert "FAIL  volumes" in said.out
    assert "artifacts does not exist" in said.out


def test_a_command_to_type_next_means_the_same_run_in_the_same_place(api: Api, here: Path, call: Call) -> None:
    said = call("cancel", "run.yaml", "--profile", "cluster.yaml", "-n", "align", "--set", "seed=8")
    assert "has nothing of run" in said.out
    call("submit", "run.yaml", "--profile", "cluster.yaml", "-n", "align", "--target", "run", "--context", "here",
         "--set", "seed=8")
    said = call("cancel", "run.yaml", "--profile", "cluster.yaml", "-n", "align", "--context", "here",
                "--set", "seed=8")
    assert said.out.splitlines()[-1].endswith(
        "kubealign resume run.yaml --profile cluster.yaml -n align --context here --set seed=8")


def test_the_default_profile_comes_from_the_environment(
    here: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBEALIGN_PROFILE", "cluster.yaml")
    said = call("submit", "run.yaml", "--dry-run")
    assert said.code == 0, said.err
    assert str(here / "artifacts") in said.out
