"""Whole AlignmentRuns that are served, on a small cluster in memory: start, upgrade, rollback, failures, edits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from alignment.cluster.client.refusals import cluster_error
from alignment.cluster.manifests.alignment_run import RETRY, SERVE, Gate, ServingStatus, Status, status_of
from alignment.cluster.operator.controller import Controller
from alignment.cluster.operator.served import REVISIONS, service_of
from tests.cluster.operator.test_reconcile import condition
from tests.cluster.operator_world import (
    NAMESPACE,
    Store,
    World,
    calm,
    chain,
    operator,
    profile,
    revision_of,
    states,
    step,
    submit,
    told,
)

NAME = "chain"
SERVED: dict[str, Any] = {"models": ["sft", "dpo"]}


@pytest.fixture
def world() -> World:
    return World(Store())


@pytest.fixture
def controller(world: World) -> Controller:
    return operator(world)


def status(world: World) -> Status:
    return status_of(world.objects[("AlignmentRun", NAME)])


def serving(world: World) -> ServingStatus:
    found = status(world).serving
    assert found is not None
    return found


def service(world: World) -> dict[str, Any]:
    return world.objects[("RayService", NAME)]


def edit(world: World, stage: str | None = None, serve: Any = None, **keys: Any) -> None:
    """Other keys of one stage, or another `serve`."""
    run = copy.deepcopy(world.objects[("AlignmentRun", NAME)]["spec"]["run"])
    if serve is not None:
        run.pop("serve")
        run |= {"serve": serve} if serve else {}
    for one in run["stages"]:
        one |= keys if one["name"] == stage else {}
    world.edit(NAME, run=run)


def served(world: World, controller: Controller, folder: Path, **more: Any) -> None:
    """A run that has come to its end, and is served."""
    submit(world, chain(folder, serve={**SERVED, **more}))
    calm(world, controller, NAME)
    assert serving(world).state == "Ready"


def applied(world: World) -> list[int]:
    """Revisions in the order in which the RayService's spec became theirs."""
    return [int(what) for kind, what in world.log if kind == "serve"]


def test_a_run_is_served_once_it_has_succeeded_and_is_ready_once_that_is_proved(
    world: World, controller: Controller, tmp_path: Path
) -> None:
    submit(world, chain(tmp_path, serve=SERVED))
    waited = set()
    for _ in range(400):
        controller.resync()
        controller.look(NAME)
        now = status(world)
        if ("RayService", NAME) not in world.objects:
            waited.add(serving(world).state)
            assert condition(now, "Ready").status == "False"
        if now.phase == "Succeeded":
            break
        world.now += 1
        for job in world.jobs():
            step(world, job)
    assert waited == {"Waiting"}
    assert (serving(world).state, condition(now, "Ready").reason) == ("Starting", "NotServed")
    calm(world, controller, NAME)
    now, keys = status(world), {row.name: row.key for row in status(world).stages}
    assert (now.phase, condition(now, "Ready").status) == ("Succeeded", "True")
    assert (condition(now, "Serving").status, condition(now, "Serving").reason) == ("True", "Proved")
    assert told(service(world))["models"] == {"sft": keys["sft"], "dpo": keys["dpo"]}
    got = serving(world)
    assert (got.revision, got.wanted, got.pinned, got.replicas) == (1, 1, None, 1)
    assert got.endpoint == f"http://{NAME}-serve-svc.{NAMESPACE}.svc:8000/v1"
    assert [(model.name, model.proved, model.rows) for model in got.models] == [("sft", True, 8), ("dpo", True, 8)]
    assert [(one.number, one.proved) for one in got.history] == [(1, True)]
    assert applied(world) == [1]
    uid = world.objects[("AlignmentRun", NAME)]["metadata"]["uid"]
    assert service_of(service(world), uid).mine
    assert [reason for reason, _ in world.events if reason.startswith("Serving")] == ["ServingRevision", "ServingReady"]


def test_what_is_served_costs_nothing_while_nothing_changes(
    world: World, controller: Controller, tmp_path: Path
) -> None:
    served(world, controller, tmp_path)
    asked, log, store = len(world.asked), len(world.log), world.store.asked
    for _ in range(5):
        controller.resync()
        assert controller.look(NAME) is None
    assert (len(world.asked), len(world.log), world.store.asked) == (asked, log, store)


def test_a_run_that_is_not_served_asks_for_no_rayservice(world: World, controller: Controller, tmp_path: Path) -> None:
    submit(world, chain(tmp_path))
    calm(world, controller, NAME)
    now = status(world)
    assert world.asked == []
    assert now.serving is None
    assert "Serving" not in {one.type for one in now.conditions}
    assert condition(now, "Ready").status == "True"


def test_the_old_models_go_on_while_an_edited_run_makes_others_and_are_then_replaced(
    world: World, controller: Controller, tmp_path: Path
) -> None:
    served(world, controller, tmp_path)
    before = copy.deepcopy(service(world))
    edit(world, "dpo", learning_rate=1e-4)
    controller.resync()
    for _ in range(4):
        controller.look(NAME)
    now = status(world)
    assert (now.phase, serving(world).state, serving(world).revision) == ("Running", "Ready", 1)
    assert condition(now, "Serving").status == "True"
    assert service(world) == before
    calm(world, controller, NAME)
    got = serving(world)
    assert (got.state, got.revision, got.wanted) == ("Ready", 2, 2)
    assert [one.number for one in got.history] == [1, 2]
    assert got.history[0].models["sft"] == got.history[1].models["sft"]
    assert got.history[0].models["dpo"] != got.history[1].models["dpo"] == told(service(world))["models"]["dpo"]
    assert applied(world) == [1, 2]


@pytest.mark.parametrize("how", ["failed", "suspended", "gated", "refused"])
def test_a_run_that_does_not_come_to_its_end_leaves_what_serves_alone(
    world: World, controller: Controller, tmp_path: Path, how: str
) -> None:
    served(world, controller, tmp_path)
    before = copy.deepcopy(service(world))
    edit(world, "dpo", learning_rate=1e-4)
    if how == "suspended":
        world.edit(NAME, suspend=True)
    if how == "gated":
        world.edit(NAME, gates=[{"after": "dpo", "approval": True}])
    if how == "refused":
        world.edit(NAME, run={"name": NAME, "stages": []})
    calm(world, controller, NAME, {"dpo": "user"} if how == "failed" else {})
    now = status(world)
    assert now.phase == {"failed": "Failed", "suspended": "Suspended", "gated": "Waiting", "refused": "Failed"}[how]
    assert (serving(world).state, serving(world).revision) == ("Ready", 1)
    assert service(world) == before


@pytest.mark.parametrize("how", ["refuted", "broken"])
def test_an_upgrade_that_fails_leaves_the_old_models_and_says_which_row_differs(
    world: World, controller: Controller, tmp_path: Path, how: str
) -> None:
    served(world, controller, tmp_path)
    edit(world, "dpo", learning_rate=1e-4)
    calm(world, controller, NAME, serving=how)
    now, got = status(world), serving(world)
    assert (now.phase, got.state, got.revision, got.wanted) == ("Succeeded", "Failed", 1, 2)
    assert condition(now, "Ready").status == "False"
    said = condition(now, "Serving")
    assert (said.status, said.reason) == ("False", {"refuted": "ProofFailed", "broken": "StartFailed"}[how])
    assert "row rows-r1: the prompt has other ids" in said.message
    assert said.message.endswith("revision 1 goes on serving")
    assert "Traceback" not in said.message
    assert "ray::" not in said.message
    assert [one.proved for one in got.history] == [True, False if how == "refuted" else None]
    assert applied(world) == [1, 2]
    assert "ServingFailed" in [reason for reason, _ in world.events]


def test_a_pin_goes_back_and_stays_over_the_next_edit(world: World, controller: Controller, tmp_path: Path) -> None:
    served(world, controller, tmp_path)
    edit(world, "dpo", learning_rate=1e-4)
    calm(world, controller, NAME)
    world.annotate(NAME, SERVE, "1")
    calm(world, controller, NAME)
    got = serving(world)
    assert (got.state, got.revision, got.wanted, got.pinned) == ("Ready", 1, 1, 1)
    assert got.message == "pinned to revision 1; the newest is 2"
    assert condition(status(world), "Ready").status == "True"
    assert "ServingRolledBack" in [reason for reason, _ in world.events]
    edit(world, "dpo", learning_rate=2e-4)
    calm(world, controller, NAME)
    got = serving(world)
    assert (got.revision, got.pinned, got.message) == (1, 1, "pinned to revision 1; the newest is 3")
    assert [one.number for one in got.history] == [1, 2, 3]
    assert applied(world) == [1, 2, 1]
    world.objects[("AlignmentRun", NAME)]["metadata"]["annotations"].pop(SERVE)
    world._touch(world.objects[("AlignmentRun", NAME)])
    calm(world, controller, NAME)
    got = serving(world)
    assert (got.state, got.revision, got.pinned, got.message) == ("Ready", 3, None, None)
    assert applied(world) == [1, 2, 1, 3]


def test_a_rollback_brings_back_images_and_settings_too(world: World, controller: Controller, tmp_path: Path) -> None:
    served(world, controller, tmp_path)
    of = profile(images={"train": "example.org/kubealign-train:9"}).model_dump(mode="json", exclude_none=True)
    world.edit(NAME, profile=of)
    edit(world, serve={**SERVED, "replicas": 3})
    calm(world, controller, NAME)
    group = service(world)["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    assert (group["replicas"], group["template"]["spec"]["containers"][0]["image"]) == (
        3, "example.org/kubealign-train:9")
    world.annotate(NAME, SERVE, "1")
    calm(world, controller, NAME)
    group = service(world)["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    assert group["replicas"] == 1
    assert group["template"]["spec"]["containers"][0]["image"] != "example.org/kubealign-train:9"


def test_a_rollback_is_obeyed_while_the_run_is_at_work_or_has_failed(
    world: World, controller: Controller, tmp_path: Path
) -> None:
    served(world, controller, tmp_path)
    edit(world, "dpo", learning_rate=1e-4)
    calm(world, controller, NAME)
    edit(world, "dpo", learning_rate=2e-4)
    calm(world, controller, NAME, {"dpo": "user"})
    assert status(world).phase == "Failed"
    world.annotate(NAME, SERVE, "1")
    calm(world, controller, NAME, {"dpo": "user"})
    assert (status(world).phase, serving(world).state, serving(world).revision) == ("Failed", "Ready", 1)


@pytest.mark.parametrize("pin", ["7", "zero", "-1"])
def test_a_pin_of_a_revision_that_is_not_known_changes_nothing_and_is_said(
    world: World, controller: Controller, tmp_path: Path, pin: str
) -> None:
    served(world, controller, tmp_path)
    before = copy.deepcopy(service(world))
    world.annotate(NAME, SERVE, pin)
    calm(world, controller, NAME)
    said = condition(status(world), "Serving")
    assert (said.status, said.reason) == ("False", "UnknownRevision")
    assert pin in said.message
    assert "it has 1" in said.message
    assert "revision 1 goes on serving" in said.message
    assert condition(status(world), "Ready").status == "False"
    assert service(world) == before


def test_without_serve_the_service_goes(world: World, controller: Controller, tmp_path: Path) -> None:
    served(world, controller, tmp_path)
    edit(world, serve={})
    calm(world, controller, NAME)
    assert ("RayService", NAME) not in world.objects
    now = status(world)
    assert now.serving is None
    assert (condition(now, "Ready").status, now.phase) == ("True", "Succeeded")
    assert [what for what, _ in world.log if what == "unserve"] == ["unserve"]
    assert "ServingWithdrawn" in [reason for reason, _ in world.events]
    edit_back = copy.deepcopy(world.objects[("AlignmentRun", NAME)]["spec"]["run"])
    world.edit(NAME, run={**edit_back, "serve": SERVED})
    calm(world, controller, NAME)
    assert (serving(world).state, serving(world).revision) == ("Ready", 1)


def test_somebody_elses_rayservice_is_not_touched(world: World, controller: Controller, tmp_path: Path) -> None:
    world.put("RayService", {"metadata": {"name": NAME, "labels": {}}, "spec": {"theirs": True}, "status": {}})
    theirs = copy.deepcopy(service(world))
    submit(world, chain(tmp_path, serve=SERVED))
    calm_until_done(world, controller)
    said = condition(status(world), "Serving")
    assert (said.status, said.reason) == ("False", "NameTaken")
    assert f"RayService {NAME} is there already" in said.message
    assert service(world) == theirs
    asked = len(world.asked)
    for _ in range(20):  # 300 seconds
        controller.resync()
        controller.look(NAME)
        world.now += 15
    assert len(world.asked) - asked <= 6
    del world.objects[("RayService", NAME)]
    world.now += 300
    calm(world, controller, NAME)
    assert serving(world).state == "Ready"


def calm_until_done(world: World, controller: Controller) -> None:
    """As `calm`, of a world that is looked at again and again."""
    with pytest.raises(AssertionError, match="does not come to rest"):
        calm(world, controller, NAME, steps=80)


def test_without_rayservices_the_condition_says_what_to_install(
    world: World, controller: Controller, tmp_path: Path
) -> None:
    world.rayservice_api = False
    submit(world, chain(tmp_path, serve=SERVED))
    calm_until_done(world, controller)
    now = status(world)
    assert now.phase == "Succeeded"
    assert condition(now, "Serving").reason == "RayServiceMissing"
    assert "helm install kuberay-operator" in condition(now, "Serving").message
    assert condition(now, "Ready").status == "False"
    world.rayservice_api = True
    calm(world, controller, NAME)
    assert serving(world).state == "Ready"


def test_a_refused_rayservice_is_told_and_tried_again(world: World, controller: Controller, tmp_path: Path) -> None:
    def refuse(manifest: Any, uid: str | None) -> Any:
        raise cluster_error("refused on admission: no RayServices today", 403)

    submit(world, chain(tmp_path, serve=SERVED))
    good, world.apply_rayservice = world.apply_rayservice, refuse  # type: ignore[method-assign]
    for _ in range(60):
        calm_step(world, controller)
    said = condition(status(world), "Serving")
    assert said.reason == "Refused"
    assert "no RayServices today" in said.message
    world.apply_rayservice = good  # type: ignore[method-assign]
    world.now += 300
    calm(world, controller, NAME)
    assert serving(world).state == "Ready"


def calm_step(world: World, controller: Controller) -> None:
    controller.resync()
    controller.look(NAME)
    for job in world.jobs():
        step(world, job)
    world.now += 1


def test_a_rayservice_that_somebody_deletes_is_made_anew_and_no_number_is_used_twice(
    world: World, controller: Controller, tmp_path: Path
) -> None:
    served(world, controller, tmp_path)
    del world.objects[("RayService", NAME)]
    calm(world, controller, NAME)
    got = serving(world)
    assert (got.state, got.revision, [one.number for one in got.history]) == ("Ready", 2, [2])


def test_a_lost_status_loses_nothing(world: World, controller: Controller, tmp_path: Path) -> None:
    served(world, controller, tmp_path)
    edit(world, "dpo", learning_rate=1e-4)
    calm(world, controller, NAME)
    world.annotate(NAME, SERVE, "1")
    calm(world, controller, NAME)
    before = serving(world)
    world.objects[("AlignmentRun", NAME)].pop("status")
    world._touch(world.objects[("AlignmentRun", NAME)])
    calm(world, operator(world), NAME)
    after = serving(world)
    known = [(one.number, one.models, one.when) for one in before.history]
    assert [(one.number, one.models, one.when) for one in after.history] == known
    assert after.model_copy(update={"history": ()}) == before.model_copy(update={"history": ()})
    assert applied(world) == [1, 2, 1]


def test_a_new_start_may_be_asked_for_after_a_failure(world: World, controller: Controller, tmp_path: Path) -> None:
    submit(world, chain(tmp_path, serve=SERVED))
    calm(world, controller, NAME, serving="broken")
    assert serving(world).state == "Failed"
    world.annotate(NAME, RETRY, "2026-01-01")
    calm(world, controller, NAME)
    got = serving(world)
    assert (got.state, got.revision) == ("Ready", 2)
    assert got.history[0].models == got.history[1].models
    assert applied(world) == [1, 2]


def test_no_more_than_ten_revisions_are_kept_and_the_pinned_one_with_them(
    world: World, controller: Controller, tmp_path: Path
) -> None:
    served(world, controller, tmp_path)
    world.annotate(NAME, SERVE, "1")
    for number in range(2, 14):
        edit(world, serve={**SERVED, "replicas": number})
        calm(world, controller, NAME)
    got = serving(world)
    assert [one.number for one in got.history] == [1, *range(4, 14)]
    assert (got.revision, applied(world)) == (1, [1])
    assert len(service(world)["metadata"]["annotations"][REVISIONS]) < 30_000


def test_ttl_beside_serve_is_refused(world: World, controller: Controller, tmp_path: Path) -> None:
    submit(world, chain(tmp_path, serve=SERVED), ttl=60)
    calm(world, controller, NAME)
    failed = condition(status(world), "Failed")
    assert (failed.status, failed.reason) == ("True", "InvalidRun")
    assert "spec.ttl (60)" in failed.message


def test_pods_that_cannot_hold_a_replica_are_refused_before_anything_is_made(
    world: World, controller: Controller, tmp_path: Path
) -> None:
    submit(world, chain(tmp_path, serve=SERVED), profile(serve={"worker": {"shm": "1Mi"}}))
    calm(world, controller, NAME)
    assert condition(status(world), "Failed").reason == "InvalidProfile"
    assert "cluster.serve.worker" in condition(status(world), "Failed").message
    assert world.jobs() == []


def test_a_gate_that_waits_holds_serving_back(world: World, controller: Controller, tmp_path: Path) -> None:
    submit(world, chain(tmp_path, serve=SERVED), gates=(Gate(after="eval", approval=True),))
    calm(world, controller, NAME)
    assert (status(world).phase, serving(world).state) == ("Waiting", "Waiting")
    assert ("RayService", NAME) not in world.objects
    assert set(states(world, NAME).values()) == {"Finished"}


def test_a_revision_that_does_not_come_up_in_time_is_late_and_may_come_up_later(
    world: World, controller: Controller, tmp_path: Path
) -> None:
    submit(world, chain(tmp_path, serve=SERVED), profile(serve={"start_within": 60}))
    for _ in range(100):
        calm_step(world, controller)
        if status(world).finished == "6/6":
            break
    world.serving_trouble = lambda run, revision, service: (  # type: ignore[method-assign]
        f"{service}-{revision}: no node has enough free memory")
    for _ in range(5):
        calm_step(world, controller)
        world.now += 10
    assert serving(world).message == "revision 1 starts: chain-1: no node has enough free memory"
    for _ in range(5):
        calm_step(world, controller)
        world.now += 10
    assert condition(status(world), "Serving").reason == "Late"
    calm(world, controller, NAME)
    assert serving(world).state == "Ready"


def test_a_service_without_replicas_that_answer_is_not_ready(
    world: World, controller: Controller, tmp_path: Path
) -> None:
    served(world, controller, tmp_path)
    service(world)["status"] |= {"numServeEndpoints": 0}
    world._touch(service(world))
    controller.resync()
    controller.look(NAME)
    now = status(world)
    assert (serving(world).state, serving(world).revision) == ("Unhealthy", None)
    assert condition(now, "Ready").status == "False"
    assert "ServingUnhealthy" in [reason for reason, _ in world.events]
    service(world)["status"] |= {"numServeEndpoints": 1}
    world._touch(service(world))
    calm(world, controller, NAME)
    assert serving(world).state == "Ready"


def test_one_that_answers_without_a_proof_in_the_store_is_not_called_ready(
    world: World, controller: Controller, tmp_path: Path
) -> None:
    served(world, controller, tmp_path)
    world.store.proved.pop((NAME, 1, "dpo"))
    fresh = operator(world)
    fresh.resync()
    fresh.look(NAME)
    assert serving(world).state == "Proving"
    said = condition(status(world), "Serving")
    assert (said.status, said.reason) == ("Unknown", "ProofUnseen")
    assert "no proof of dpo" in said.message
    assert condition(status(world), "Ready").status == "False"


def test_one_that_is_served_unproved_says_so(world: World, controller: Controller, tmp_path: Path) -> None:
    submit(world, chain(tmp_path, serve={**SERVED, "unproved": True}))
    calm(world, controller, NAME)
    said = condition(status(world), "Serving")
    assert (said.status, said.reason) == ("True", "Unproved")


def test_the_spec_says_its_revision(world: World, controller: Controller, tmp_path: Path) -> None:
    served(world, controller, tmp_path)
    assert revision_of(service(world)) == 1
