"""The controller on a small cluster in memory: whole AlignmentRuns, edits, refusals, and what is asked of the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignment.cluster.manifests.alignment_run import APPROVE, RETRY, Gate, Status, status_of
from alignment.cluster.manifests.labels import STAGE_LABEL
from alignment.cluster.operator.controller import Controller
from alignment.cluster.operator.world import Finished
from alignment.errors import ArtifactError
from tests.cluster.operator.test_reconcile import condition
from tests.cluster.operator_world import (
    NAMESPACE,
    Store,
    World,
    attempts,
    calm,
    chain,
    mounted,
    operator,
    profile,
    states,
    step,
    submit,
)


@pytest.fixture
def world() -> World:
    return World(Store())


def status(world: World, name: str = "chain") -> Status:
    return status_of(world.objects[("AlignmentRun", name)])


def settle_once(world: World, controller: Controller, name: str = "chain") -> None:
    controller.resync()
    for _ in range(4):
        controller.look(name)


def test_a_run_goes_to_its_end_and_then_costs_nothing(world: World, tmp_path: Path) -> None:
    name = submit(world, chain(tmp_path))
    controller = operator(world)
    calm(world, controller, name)
    assert set(states(world, name).values()) == {"Finished"}
    assert len([what for what, _ in world.log if what == "create"]) == 6
    config = next(thing for (kind, _), thing in world.objects.items() if kind == "ConfigMap")
    assert [owner["kind"] for owner in config["metadata"]["ownerReferences"]] == ["AlignmentRun"]
    asked, log = world.store.asked, len(world.log)
    for _ in range(5):
        controller.resync()
        assert controller.look(name) is None
    assert (world.store.asked, len(world.log)) == (asked, log)


def test_news_that_are_not_true_any_more_do_no_harm(world: World, tmp_path: Path) -> None:
    name = submit(world, chain(tmp_path))
    controller = operator(world)
    settle_once(world, controller)
    step(world, world.jobs()[0])
    settle_once(world, controller)
    assert states(world, name)["base"] == "Pending"
    controller.seen.job(world.jobs()[0], gone=True)  # it is there, whatever the watch says
    controller.look(name)
    assert states(world, name)["base"] == "Pending"
    assert status(world).stages[0].failures == 0
    assert attempts(world) == [("base", 1)]


def test_rayjobs_are_asked_for_by_name_once_all_are_known(world: World, tmp_path: Path) -> None:
    name = submit(world, chain(tmp_path))
    controller, read = operator(world), world.rayjobs

    def all_at_once(run: str | None = None) -> Any:
        assert run is None, "every look would go through all RayJobs of the namespace"
        return read()

    world.rayjobs = all_at_once  # type: ignore[method-assign]
    calm(world, controller, name)
    assert status(world).phase == "Succeeded"


def test_a_fresh_operator_asks_for_all_before_it_acts(world: World, tmp_path: Path) -> None:
    name = submit(world, chain(tmp_path))
    settle_once(world, operator(world))
    world.edit(name, suspend=True)
    world.objects[("AlignmentRun", name)].pop("status")
    fresh = operator(world)
    fresh.seen.run(world.run(name) or {})  # a watch is quicker than the first full read
    fresh.look(name)
    assert [job["metadata"].get("deletionTimestamp") is not None for job in world.jobs()] == [True]



def test_a_second_run_finds_everything_and_makes_nothing(world: World, tmp_path: Path) -> None:
    calm(world, operator(world), submit(world, chain(tmp_path)))
    again = World(world.store)
    calm(again, operator(again), submit(again, chain(tmp_path)))
    assert attempts(again) == []
    config = next(thing for (kind, _), thing in again.objects.items() if kind == "ConfigMap")
    assert config["metadata"]["ownerReferences"][0]["kind"] == "AlignmentRun"
    assert status(again).phase == "Succeeded"


@pytest.mark.parametrize(("change", "reason", "said"), [
    ({"run": {"name": "chain", "stages": [{"name": "a", "kind": "import", "modell": {}}]}}, "InvalidRun",
     "spec.run:5"),
    ({"run": {"name": "other", "stages": [{"name": "a", "kind": "import", "model": {"source": "tiny"}}]}},
     "InvalidRun", "give both the same name"),
    ({"run": {"name": "chain", "stages": [{"group": "g", "rounds": 2, "stages": [{"name": "a"}]}]}},
     "InvalidRun", "spec.run.stages[0] is a group of rounds"),
    ({"profile": {"name": "local"}}, "InvalidProfile", "has no `cluster`"),
    ({"profile": {"name": "x", "cluster": {}}}, "InvalidProfile", "spec.profile.cluster.storage"),
    ({"gates": [{"after": "sft", "metric": "eval.f1 > 0.5"}]}, "InvalidGate", "not known by then"),
    ({"gates": [{"after": "sft", "metric": "good enough"}]}, "InvalidGate", "is no bound"),
    ({"files": {"configMap": "nowhere"}}, "FilesMissing", "ConfigMap nowhere"),
])
def test_a_spec_that_cannot_be_carried_out_has_one_clear_condition(
    world: World, tmp_path: Path, change: dict[str, Any], reason: str, said: str
) -> None:
    name = submit(world, chain(tmp_path))
    world.edit(name, **change)
    settle_once(world, operator(world))
    failed = condition(status(world), "Failed")
    assert (failed.status, failed.reason) == ("True", reason)
    assert said in failed.message
    assert attempts(world) == []
    assert status(world).observed_generation == 2


def test_a_spoilt_edit_in_mid_run_stops_nothing_and_loses_nothing(world: World, tmp_path: Path) -> None:
    name = submit(world, chain(tmp_path))
    controller, good = operator(world), world.objects[("AlignmentRun", name)]["spec"]["run"]
    settle_once(world, controller)
    step(world, world.jobs()[0])
    first = world.jobs()[0]["metadata"]["name"]
    step(world, world.jobs()[0])
    settle_once(world, controller)
    rows = status(world).stages
    world.edit(name, run={**good, "stages": []})
    settle_once(world, controller)
    assert attempts(world) == [("base", 1)]
    assert status(world).stages == rows
    world.edit(name, run=good)
    calm(world, controller, name)
    assert first.endswith("-1")
    assert ("create", f"{first[:-1]}2") not in world.log
    assert status(world).phase == "Succeeded"


def test_an_edited_stage_and_those_after_it_are_made_anew_from_a_new_configmap(world: World, tmp_path: Path) -> None:
    name = submit(world, chain(tmp_path))
    controller = operator(world)
    calm(world, controller, name)
    before = {row.name: row.key for row in status(world).stages}
    run = world.objects[("AlignmentRun", name)]["spec"]["run"]
    stages = [{**stage, "epochs": 2} if stage["name"] == "dpo" else stage for stage in run["stages"]]
    world.edit(name, run={**run, "stages": stages})
    settle_once(world, controller)
    assert [job["metadata"]["labels"][STAGE_LABEL] for job in world.live()] == ["dpo"]
    made = world.objects[("ConfigMap", mounted(world.live()[0]))]
    assert "epochs: 2" in made["data"]["run.yaml"]
    calm(world, controller, name)
    after = {row.name: row.key for row in status(world).stages}
    assert {stage for stage in after if after[stage] != before[stage]} == {"dpo", "eval"}
    assert status(world).phase == "Succeeded"


def test_whole_numbers_that_json_makes_of_floats_change_no_key(world: World, tmp_path: Path) -> None:
    name = submit(world, chain(tmp_path))
    body = world.objects[("AlignmentRun", name)]
    body["spec"]["run"]["scale"] = 1  # 1.0 comes back as 1
    for stage in body["spec"]["run"]["stages"]:
        stage |= {"epochs": 1} if "epochs" in stage else {}
    settle_once(world, operator(world))
    assert [mounted(job) for job in world.jobs()] == [body["spec"]["files"]["configMap"]]


def test_a_refused_rayjob_is_shown_and_tried_again_later(world: World, tmp_path: Path) -> None:
    name = submit(world, chain(tmp_path))
    controller, world.refuse = operator(world), True
    settle_once(world, controller)
    row = status(world).stages[0]
    assert (row.state, row.tries) == ("Starting", 1)
    assert "no RayJobs today" in (row.message or "")
    assert ("StagePending", f"stage base (RayJob {row.ray_job}): {row.message}") in world.events
    world.refuse = False
    calm(world, controller, name)
    assert status(world).stages[0].tries == 1
    assert status(world).phase == "Succeeded"


def test_without_kuberay_the_condition_says_what_to_install(world: World, tmp_path: Path) -> None:
    name = submit(world, chain(tmp_path))
    controller, world.kuberay = operator(world), False
    settle_once(world, controller)
    assert condition(status(world), "Progressing").reason == "KubeRayMissing"
    world.kuberay = True
    calm(world, controller, name)
    assert status(world).phase == "Succeeded"


def test_an_unreadable_store_keeps_the_run_as_it_is(world: World, tmp_path: Path) -> None:
    name = submit(world, chain(tmp_path))
    controller = operator(world)
    good = controller.look_up

    def refuse(url: str, key: str) -> Finished | None:
        raise ArtifactError("the store cannot be read: 403", where=url)

    controller.look_up = refuse
    settle_once(world, controller)
    assert condition(status(world), "Progressing").reason == "StoreUnreadable"
    assert attempts(world) == []
    controller.look_up = good
    calm(world, controller, name)
    assert status(world).phase == "Succeeded"


def test_pods_that_do_not_run_are_asked_why_after_a_while_and_not_too_often(world: World, tmp_path: Path) -> None:
    submit(world, chain(tmp_path))
    asked: list[tuple[str, str]] = []

    def trouble(run: str, stage: str, job: str) -> str:
        asked.append((stage, job))
        return "pod x: no node has enough free nvidia.com/gpu"

    controller = operator(world)
    controller.trouble = trouble
    settle_once(world, controller)
    assert asked == []
    world.now += 20
    settle_once(world, controller)
    assert asked == [("base", world.jobs()[0]["metadata"]["name"])]
    assert status(world).stages[0].message == "pod x: no node has enough free nvidia.com/gpu"
    assert "nvidia.com/gpu" in condition(status(world), "Progressing").message


def test_queue_and_profile_reach_the_rayjob(world: World, tmp_path: Path) -> None:
    submit(world, chain(tmp_path), profile(env={"X": "1"}), queue="gpus")
    settle_once(world, operator(world))
    job = world.jobs()[0]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert job["metadata"]["namespace"] == NAMESPACE
    assert job["metadata"]["ownerReferences"][0]["uid"] == world.objects[("AlignmentRun", "chain")]["metadata"]["uid"]
    world.move(job, "Suspended")
    settle_once(world, operator(world))
    assert (status(world).stages[0].state, status(world).stages[0].message) == ("Queued", "waits for its queue")


def test_children_of_a_deleted_run_of_the_same_name_are_not_taken_over(world: World, tmp_path: Path) -> None:
    name = submit(world, chain(tmp_path))
    settle_once(world, operator(world))
    del world.objects[("AlignmentRun", name)]
    submit(world, chain(tmp_path))
    controller = operator(world)
    settle_once(world, controller)
    assert attempts(world) == [("base", 1), ("base", 2)]
    calm(world, controller, name)
    assert status(world).phase == "Succeeded"


def test_retry_annotation_and_gates_through_the_whole(world: World, tmp_path: Path) -> None:
    name = submit(world, chain(tmp_path), gates=(Gate(after="sft", approval=True),))
    controller = operator(world)
    calm(world, controller, name, {"sft": "user"})
    assert status(world).phase == "Failed"
    world.annotate(name, RETRY, "2026-01-01")
    calm(world, controller, name)
    assert (status(world).phase, status(world).stage) == ("Waiting", "sft")
    world.annotate(name, APPROVE, "sft")
    calm(world, controller, name)
    assert status(world).phase == "Succeeded"
