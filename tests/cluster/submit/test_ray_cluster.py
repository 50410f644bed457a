"""`--target job`: the same driver over Ray's job API, here one in small."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from alignment.cluster.client.client import Client
from alignment.cluster.storage.truth import Truth
from alignment.cluster.submit.driver import Driver
from alignment.cluster.submit.ray_cluster import RayClusterJobs, job_specs, stop_jobs
from alignment.cluster.watch.voice import Voice
from alignment.config import Profile, Run, parse_run
from alignment.errors import StageError
from alignment.pipeline.run import execute
from tests.cluster.api_server import serving
from tests.small import rows

ADDRESS = "http://there:8265"


class Ray:
    """Jobs by id: their state, and what they come to. 0 makes the stage, as the entrypoint would."""

    def __init__(self) -> None:
        self.jobs: dict[str, str] = {}
        self.codes: list[int] = []
        self.submitted: list[tuple[str, str, dict[str, str], dict[str, str]]] = []
        self.made: Callable[[str], object] = lambda stage: None

    def __call__(self, address: str, token: str | None) -> Ray:
        assert address == ADDRESS
        return self

    def attempts(self, prefix: str) -> dict[int, str]:
        return {int(name.removeprefix(prefix)): state for name, state in self.jobs.items() if name.startswith(prefix)}

    def submit(self, name: str, entrypoint: str, folder: Path, env: dict[str, str], marks: dict[str, str]) -> None:
        assert (folder / "run.yaml").exists()
        self.submitted.append((name, entrypoint, env, marks))
        self.jobs[name] = "RUNNING"

    def wait(self, name: str, write: Callable[[str], None]) -> int:
        code = self.codes.pop(0) if self.codes else 0
        write(f"output of {name}")
        self.jobs[name] = "FAILED" if code else "SUCCEEDED"
        if code == 0:
            self.made(name.split("-")[1])
        return code

    def stop(self, marks: dict[str, str]) -> list[str]:
        assert marks == {"kubealign.dev/run": "mine"}
        return [name for name, state in self.jobs.items() if state == "RUNNING"]


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    made = Ray()
    monkeypatch.setattr("alignment.distributed.submit.JobApi", made)
    return made


@pytest.fixture
def run() -> Run:
    return parse_run(yaml.safe_dump({"name": "mine", "seed": 3, "stages": [
        {"name": name, "kind": "import", "data": [{"path": f"{name}.jsonl", "format": "passage-qa"}],
         "split": {"by": "ratio", "ratios": {"train": 0.5, "dev": 0.5}}} for name in ("one", "two")]}))


class World:
    """A driver, and what was said."""

    def __init__(self, run: Run, profile: Profile, client: Client) -> None:
        self.run, self.profile, self.client = run, profile, client
        self.said: list[str] = []
        self.lines: list[str] = []

    def drive(self) -> Driver:
        voice = Voice(self.said.append, self.lines.append)
        truth = Truth(self.run, self.profile, self.client, voice.say)
        truth.near = True
        return Driver(truth, RayClusterJobs(truth, voice, ADDRESS), voice)


@pytest.fixture
def world(run: Run, ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(20)))
    storage = str(tmp_path / "artifacts")
    profile = Profile.model_validate({"name": "test", "cluster": {
        "storage": {"url": storage, "mount": storage, "claim": "artifacts"}}})
    ray.made = lambda stage: execute(profile.applied(run), only=stage)
    with serving(tmp_path) as (_, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield World(run, profile, Client())


def test_stages_are_submitted_in_order_and_once(world: World, ray: Ray) -> None:
    found = world.drive().submit(wait=True)
    assert all(found.values())
    specs = job_specs(world.run, world.profile)
    assert [(spec["submission_id"], spec["entrypoint"], spec["runtime_env"]["env_vars"], spec["metadata"])
            for spec in specs] == ray.submitted
    assert world.lines == [f"output of {name}" for name, *_ in ray.submitted]
    assert world.said[0].startswith("> one ")
    assert world.said[0].endswith(f" job {specs[0]['submission_id']}")
    assert world.drive().submit(wait=True) == found
    assert len(ray.submitted) == 2


def test_a_failure_is_tried_again_and_the_users_error_is_not(world: World, ray: Ray) -> None:
    ray.codes = [3, 0, 2]
    with pytest.raises(StageError, match="only a change of the run or its data") as failed:
        world.drive().submit()
    assert (failed.value.where, failed.value.found) == ("stage two", "exit code 2")
    assert "! one failed (exit code 3), next attempt" in world.said
    assert [name[-2:] for name, *_ in ray.submitted] == ["-1", "-2", "-1"]
    assert ray.submitted[1][2] == {"KUBEALIGN_ATTEMPT": ".".join(ray.submitted[1][0].split("-")[-2:])}
    ray.codes = [1, 1]
    with pytest.raises(StageError, match="failed 2 times"):
        world.drive().submit(retries=1, wait=True)


def test_one_that_is_at_work_is_joined_and_one_alone_is_not_waited_for(world: World, ray: Ray) -> None:
    assert world.drive().submit(only="one") == {"one": None, "two": None}
    [(name, *_)] = ray.submitted
    assert world.said[-1] == f"  it goes on without this command as job {name}"
    assert world.drive().submit(only="one", wait=True)["one"] is not None
    assert any(sentence.endswith(f"job {name}, which is at work already") for sentence in world.said)
    assert len(ray.submitted) == 1


def test_a_runs_jobs_are_stopped(world: World, ray: Ray) -> None:
    world.drive().submit(only="one")
    assert stop_jobs("mine", world.client, ADDRESS, print) == [f"job {ray.submitted[0][0]} is stopped"]
    assert stop_jobs("mine", world.client, None, print) == [], "there is no RayCluster of the chart"


def test_rounds_end_with_the_first_that_does_not_meet_its_gate(world: World, ray: Ray) -> None:
    """Rounds that cost next to nothing: an import each, of another size."""
    tiny = {"source": "tiny", "hidden_size": 16, "layers": 1, "heads": 2, "vocab_size": 384}
    run = world.run = parse_run(yaml.safe_dump({"name": "mine", "stages": [
        {"name": "base", "kind": "import", "model": tiny},
        {"group": "grow", "rounds": 3, "first": {"m": "base"}, "gate": "m.parameters > 10000",
         "stages": [{"name": "m", "kind": "import", "model": tiny}]},
    ]}), overrides=["m-1.model.layers=2", "m-2.model.hidden_size=8", "m-3.model.layers=3"])
    entry = {f"mine-{stage.name}-": stage.name for stage in run.stages}
    made: list[str] = []

    def make(name: str) -> None:
        made.append(name)
        execute(world.profile.applied(run), only=name)

    ray.wait = lambda name, write: (make(next(entry[start] for start in entry if name.startswith(start)  # type: ignore
                                              and name.count("-") == start.count("-") + 1)), 0)[1]
    found = world.drive().submit(wait=True)
    assert made == ["base", "m-1", "m-2", "m"]
    assert found["m-3"] is None
    assert any(line.startswith("- m-3 not needed: round 2 of grow did not meet its gate") for line in world.said)
    assert found["m"] is not None
    assert found["m"].facts["chosen"]["stage"] == "m-1"
    assert (found["m"].metrics["round"], found["m"].metrics["rounds"]) == (1, 2)
    world.said.clear()
    assert world.drive().submit(wait=True) == found
    assert made == ["base", "m-1", "m-2", "m"]
