"""Sending runs: stages in order, what is finished is left alone, what fails is tried again or not, and the storage is
believed. Stages are really made, by controllers in small (kuberay.py)."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.artifacts import Store
from alignment.cluster.client.client import Client
from alignment.cluster.manifests.alignment_run import Gate
from alignment.cluster.manifests.labels import labels
from alignment.cluster.manifests.submission import dry_run
from alignment.cluster.operator.crd import definition
from alignment.cluster.storage.truth import Truth, manifests_in
from alignment.cluster.submit.cancel import cancel
from alignment.cluster.submit.driver import Driver
from alignment.cluster.submit.ray_jobs import RayJobs
from alignment.cluster.submit.to_operator import resume, submit_run
from alignment.cluster.watch.follow import wait_run
from alignment.cluster.watch.voice import Voice
from alignment.config import Profile, Run, parse_run
from alignment.errors import ConfigError, StageError
from alignment.pipeline.keys import keys
from tests.artifacts.built import publish
from tests.cluster.api_server import Api, serving
from tests.cluster.kuberay import Controllers
from tests.schemas import against, of_crd, problems
from tests.small import rows

GOOD = "".join(json.dumps(row) + "\n" for row in rows(20))


@dataclass
class World:
    """An API server, its controllers, a client, and what was said."""

    api: Api
    controllers: Controllers
    client: Client
    profile: Profile
    said: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @property
    def voice(self) -> Voice:
        return Voice(self.said.append, self.lines.append)

    def drive(self, run: Run) -> Driver:
        truth = Truth(run, self.profile, self.client, self.said.append)
        return Driver(truth, RayJobs(truth, self.voice), self.voice)

    def jobs(self) -> list[str]:
        return [job["metadata"]["name"] for job in self.api.of_kind("RayJob")]


def data(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "import", "data": [{"path": f"{name}.jsonl", "format": "passage-qa"}],
            "split": {"by": "ratio", "ratios": {"train": 0.5, "dev": 0.5}}, **more}


def run_of(*stages: dict[str, Any]) -> Run:
    return parse_run(yaml.safe_dump({"name": "mine", "seed": 3, "stages": list(stages)}))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    storage = tmp_path / "artifacts"
    storage.mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        Path(f"{name}.jsonl").write_text(GOOD)
    profile = Profile.model_validate({"name": "test", "cluster": {
        "storage": {"url": str(storage), "mount": str(storage), "claim": "artifacts"}, "start_within": 60}})
    with serving(tmp_path) as (api, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        controllers = Controllers(api, tmp_path)
        api.reacts = controllers.react
        yield World(api, controllers, Client(), profile)


def test_stages_are_made_in_order_and_once(world: World) -> None:
    run = run_of(data("one"), data("two"))
    found = world.drive(run).submit()
    known = keys(run)
    assert {name: manifest.key for name, manifest in found.items() if manifest} == {
        name: key.key for name, key in known.items()}
    assert world.jobs() == [f"mine-{name}-{known[name].digest[:8]}-1" for name in ("one", "two")]
    assert [entry.split()[-2] for entry in world.controllers.entrypoints] == ["one", "two"]
    assert any("import · 1 file" in line for line in world.lines)
    again = world.drive(run).submit()
    assert again == found
    assert len(world.jobs()) == 2
    assert [sentence for sentence in world.said if "finished before" in sentence] == [
        f"= {name} {known[name].digest[:12]} finished before" for name in ("one", "two")]


def test_a_lost_cluster_is_tried_again_as_another_attempt(world: World) -> None:
    world.controllers.mishaps = ["lost", ""]
    found = world.drive(run_of(data("one"))).submit(wait=True)
    assert found["one"] is not None
    assert [name[-2:] for name in world.jobs()] == ["-1", "-2"]
    assert any("fresh cluster: Ray head pod not found." in sentence for sentence in world.said)


def test_attempts_end(world: World) -> None:
    world.controllers.mishaps = ["lost"] * 3
    with pytest.raises(StageError, match="failed 2 times") as failed:
        world.drive(run_of(data("one"))).submit(retries=1, wait=True)
    assert len(world.jobs()) == 2
    assert "head pod not found" in str(failed.value)


def test_the_users_error_is_not_tried_again(world: World) -> None:
    Path("one.jsonl").write_text('{"question": "without an answer"}\n' * 5)
    with pytest.raises(StageError, match="only a change of the run") as failed:
        world.drive(run_of(data("one"), data("two"))).submit()
    assert len(world.jobs()) == 1
    assert "rows are bad" in str(failed.value)
    assert "stage one, RayJob mine-one-" in str(failed.value)


def test_success_without_an_artifact_is_not_believed(world: World) -> None:
    world.controllers.mishaps = ["lie", ""]
    found = world.drive(run_of(data("one"))).submit(wait=True)
    assert found["one"] is not None
    assert len(world.jobs()) == 2
    assert any("the storage has no artifact" in sentence for sentence in world.said)


def test_a_failure_with_an_artifact_is_a_success(world: World) -> None:
    run = run_of(data("one"))
    world.drive(run).submit(wait=True)
    name = world.jobs()[0]
    driver = world.drive(run)
    # The head was lost after the artifact had been published.
    world.api.objects.pop(("RayJob", "align", name))
    world.controllers.mishaps = ["lost"]
    assert driver._make(run.stages[0], 0)["one"] is not None


def test_a_live_attempt_is_joined(world: World) -> None:
    run = run_of(data("one"))
    world.controllers.mishaps = ["hang"]
    world.drive(run).submit()
    name = world.jobs()[0]
    assert "goes on without this command" in world.said[-1]

    def lose() -> None:
        while not any("at work already" in sentence for sentence in world.said):
            time.sleep(0.1)
        world.controllers._end(name, "FAILED", "AppFailed", "lost")

    threading.Thread(target=lose, daemon=True).start()
    found = world.drive(run).submit(wait=True)
    assert any(f"RayJob {name}, which is at work already" in sentence for sentence in world.said)
    assert found["one"] is not None
    assert [job[-2:] for job in world.jobs()] == ["-1", "-2"]


@pytest.mark.parametrize("finishes", [True, False])
def test_a_stage_that_another_run_makes_holds_no_pods_and_is_no_failure(
    world: World, monkeypatch: pytest.MonkeyPatch, finishes: bool
) -> None:
    monkeypatch.setattr("alignment.cluster.submit.driver.PAUSES", (0.5,))
    run = run_of(data("one"))
    truth = Truth(run, world.profile, world.client, world.said.append)
    store, key = Store(truth.url), truth.keys["one"].key
    with ThreadPoolExecutor(1) as pool:
        with store.lease(key, by="run theirs, stage two", ttl=1.2) as lease:
            driven = pool.submit(world.drive(run).submit, retries=0, wait=True)
            until = time.monotonic() + 60
            while not any("its pods are given back" in sentence for sentence in world.said):
                assert time.monotonic() < until, world.said
                time.sleep(0.1)
            (sentence,) = (sentence for sentence in world.said if "given back" in sentence)
            assert "run theirs, stage two, since " in sentence
            time.sleep(3.0)
            assert not driven.done()
            assert [name[-2:] for name in world.jobs()] == ["-1"]
            if finishes:
                publish(store, key, lease)
        assert driven.result(timeout=60)["one"] is not None
    assert [name[-2:] for name in world.jobs()] == (["-1"] if finishes else ["-1", "-2"])


def test_a_deleted_rayjob_ends_the_wait(world: World) -> None:
    world.controllers.mishaps = ["hang"]
    run = run_of(data("one"))

    def delete() -> None:
        while not world.jobs():
            time.sleep(0.1)
        time.sleep(1.0)
        world.api.objects.pop(("RayJob", "align", world.jobs()[0]))

    threading.Thread(target=delete, daemon=True).start()
    with pytest.raises(StageError, match="its RayJob was deleted"):
        world.drive(run).submit(wait=True)


def test_cancel_keeps_artifacts_and_other_runs(world: World) -> None:
    run = run_of(data("one"))
    world.drive(run).submit(wait=True)
    other = {"apiVersion": "ray.io/v1", "kind": "RayJob", "status": {"jobDeploymentStatus": "Running"},
             "metadata": {"name": "x", "namespace": "align", "labels": {
                 "kubealign.dev/run": "other", "app.kubernetes.io/part-of": "kubealign",
                 "app.kubernetes.io/managed-by": "kubealign"}}}
    world.api.put(other)
    done = cancel(world.client, "mine")
    assert any("RayJob mine-one-" in sentence for sentence in done)
    assert any("ConfigMap mine-" in sentence for sentence in done)
    assert world.jobs() == ["x"]
    assert Truth(run, world.profile, world.client, print).manifests()["one"] is not None
    assert cancel(world.client, "mine") == []


def test_cancel_of_an_alignment_run_also_stops_rayjobs_that_are_not_its_own(world: World) -> None:
    run = run_of(data("one"))
    submit_run(run, world.profile, world.client, world.voice)
    for name, owners in (("by-hand", []), ("operated", [{"uid": "u", "kind": "AlignmentRun"}])):
        world.api.put({"kind": "RayJob", "metadata": {
            "name": name, "namespace": "align", "ownerReferences": owners, "labels": labels("mine")}})
    assert cancel(world.client, "mine") == ["AlignmentRun mine is suspended", "RayJob by-hand is deleted"]
    assert world.jobs() == ["operated"]
    assert world.client.list("ConfigMap", labels("mine")), "needed when it goes on"


def test_looking_leaves_nothing_behind(world: World) -> None:
    run = run_of(data("one"))
    truth = Truth(run, world.profile, world.client, world.said.append)
    assert truth.manifests() == {"one": None}
    assert world.api.of_kind("Job") == []
    assert world.api.of_kind("ConfigMap") == []
    world.drive(run).submit(wait=True)
    page = truth.report("submit run.yaml")
    assert page.startswith("<!doctype html")
    assert page.rstrip().endswith("</html>")
    assert "one" in page
    logs = truth.logs("one")
    assert re.match(r"--- one, attempt [0-9a-f]{8}\.1\n", logs)
    assert "import · 1 file" in logs


def test_an_unknown_stage(world: World) -> None:
    with pytest.raises(ConfigError, match="no stage of this name"):
        world.drive(run_of(data("one"))).submit(only="two")


def test_what_status_printed_is_found_among_other_lines() -> None:
    line = json.dumps({"run": "r", "store": "s", "stages": [{"name": "a", "kind": "import", "manifest": None}]})
    assert manifests_in(f"a warning\n{line}\n[1, 2]\n") == {"a": None}
    with pytest.raises(Exception, match="not understood"):
        manifests_in("Traceback (most recent call last):\nValueError: x\n")


# --- AlignmentRuns ---

def write_status(world: World, phase: str, state: str, **row: Any) -> None:
    generation = world.api.objects["AlignmentRun", "align", "mine"]["metadata"]["generation"]
    conditions = [{"type": "Failed", "status": "True", "reason": "StageFailed", "message": "stage one failed",
                   "observedGeneration": generation, "lastTransitionTime": "2026-01-01T00:00:00Z"}]
    world.api.status("AlignmentRun", "mine", observedGeneration=generation, phase=phase,
                     conditions=conditions if phase == "Failed" else [],
                     stages=[{"name": "one", "key": "one-1", "state": state, **row}])


def test_an_alignment_run_is_followed_to_its_end(world: World) -> None:
    run = run_of(data("one"))
    submit_run(run, world.profile, world.client, world.voice, gates=(Gate(after="one", approval=True),), retries=1)
    spec = world.api.objects["AlignmentRun", "align", "mine"]["spec"]
    assert spec["retries"] == 1
    assert spec["gates"] == [{"after": "one", "approval": True}]
    assert ("ConfigMap", "align", spec["files"]["configMap"]) in world.api.objects
    steps = [("Running", "Starting", {"rayJob": "j"}), ("Running", "Running", {"rayJob": "j"}),
             ("Succeeded", "Finished", {"rayJob": "j", "digest": "ab" * 32, "artifact": "/a/one-1"})]

    def operate() -> None:
        for phase, state, row in steps:
            time.sleep(0.3)
            write_status(world, phase, state, **row)

    threading.Thread(target=operate, daemon=True).start()
    assert wait_run(world.client, "mine", world.voice).phase == "Succeeded"
    assert world.said[1:] == ["> one starting, RayJob j", "> one running, RayJob j", "+ one abababababab finished"]


def test_a_cancel_meanwhile_is_no_operator_that_is_missing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each change of the AlignmentRun has its own time to be taken up, however long it was followed before."""
    monkeypatch.setattr("alignment.cluster.watch.follow.UNTOUCHED", 1.0)
    monkeypatch.setattr("alignment.cluster.watch.follow.RESYNC", 0.5)
    submit_run(run_of(data("one")), world.profile, world.client, world.voice)
    write_status(world, "Running", "Running", rayJob="j")

    def operate() -> None:
        time.sleep(1.5)
        cancel(world.client, "mine")
        body = world.api.objects["AlignmentRun", "align", "mine"]
        body["metadata"]["generation"] = 2
        time.sleep(0.5)
        world.api.status("AlignmentRun", "mine", observedGeneration=2, phase="Suspended", conditions=[
            {"type": "Suspended", "status": "True", "reason": "Asked", "message": "", "observedGeneration": 2,
             "lastTransitionTime": "2026-01-01T00:00:00Z"}])
        world.api.objects["AlignmentRun", "align", "mine"]["metadata"]["generation"] = 2

    threading.Thread(target=operate, daemon=True).start()
    with pytest.raises(StageError, match="the run is suspended"):
        wait_run(world.client, "mine", world.voice)
    assert not [text for text in world.said if "no operator" in text]


def test_a_failed_alignment_run_says_why_and_resumes_with_a_new_start(world: World) -> None:
    run = run_of(data("one"))
    submit_run(run, world.profile, world.client, world.voice)
    write_status(world, "Failed", "Failed", message="exit code 2: no rows")
    with pytest.raises(StageError, match="the run is failed") as failed:
        wait_run(world.client, "mine", world.voice)
    assert "stage one failed" in str(failed.value.found)
    assert "no rows" in str(failed.value.found)
    cancel(world.client, "mine")
    assert world.api.objects["AlignmentRun", "align", "mine"]["spec"]["suspend"] is True
    resume(world.client, "mine")
    body = world.api.objects["AlignmentRun", "align", "mine"]
    assert body["spec"]["suspend"] is False
    assert "kubealign.dev/retry" in body["metadata"]["annotations"]


def test_without_the_operators_definitions(world: World) -> None:
    world.api.absent = {"kubealign.dev"}
    with pytest.raises(Exception, match="does not have KubeAlign's operator") as missing:
        submit_run(run_of(data("one")), world.profile, world.client, world.voice)
    assert "--target rayjob" in str(missing.value)


# --- dry runs ---

@pytest.mark.parametrize("target", ["rayjob", "run"])
def test_a_dry_run_is_valid_and_touches_nothing(target: str, world: World) -> None:
    before = len(world.api.requests)
    run = run_of(data("one"), data("two"))
    made = dry_run(run, world.profile, namespace="align", target=target)
    jobs = ["RayJob"] * 2 if target == "rayjob" else ["AlignmentRun"]
    assert [item["kind"] for item in made] == ["ConfigMap", *jobs]
    assert len(world.api.requests) == before
    for item in made:
        wrong = against(of_crd(definition()), item) if item["kind"] == "AlignmentRun" else problems(item)
        assert wrong == [], item["kind"]
    one = dry_run(run, world.profile, namespace="align", target="rayjob", only="two")
    assert [item["metadata"]["labels"].get("kubealign.dev/stage") for item in one] == [None, "two"]
