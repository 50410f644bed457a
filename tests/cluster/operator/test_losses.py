"""A lost pod stands in the status with node and reason, is counted once and told as an event; a good end is no loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignment.cluster.manifests.alignment_run import StageRow, status_of
from alignment.cluster.manifests.labels import COMPONENT_LABEL
from alignment.cluster.operator.controller import Controller
from alignment.cluster.operator.world import stamp_of
from tests.cluster.operator_world import Store, World, chain, operator, step, submit

Object = dict[str, Any]


@pytest.fixture
def world() -> World:
    return World(Store())


def pod(world: World, job: Object, name: str, **status: Any) -> Object:
    labels = {**job["metadata"]["labels"], COMPONENT_LABEL: "ray", "ray.io/cluster": f"{job['metadata']['name']}-abcde"}
    return {"metadata": {"name": name, "labels": labels, "creationTimestamp": stamp_of(world.now)},
            "spec": {"nodeName": "n2", "containers": [{"name": "ray-worker"}]}, "status": status}


def evicted(world: World, job: Object, name: str) -> Object:
    return pod(world, job, name, phase="Failed", reason="Evicted", message="low on memory")


def deleted(world: World, job: Object, name: str) -> Object:
    made = pod(world, job, name, phase="Running")
    made["metadata"] |= {"deletionTimestamp": stamp_of(world.now + 30), "deletionGracePeriodSeconds": 30}
    return made


def running(world: World, folder: Path) -> tuple[str, Controller, Object]:
    """A run whose first stage computes."""
    name = submit(world, chain(folder))
    controller = operator(world)
    look(world, controller, name)
    for _ in range(2):
        step(world, world.jobs()[0])
    look(world, controller, name)
    return name, controller, world.jobs()[0]


def look(world: World, controller: Controller, name: str) -> None:
    controller.resync()
    for _ in range(3):
        controller.look(name)


def row(world: World, name: str) -> StageRow:
    return status_of(world.objects[("AlignmentRun", name)]).stages[0]


def test_a_lost_worker_is_named_and_counted_while_the_stage_goes_on(world: World, tmp_path: Path) -> None:
    name, controller, job = running(world, tmp_path)
    for _ in range(3):  # the watch says it more than once
        assert controller.seen.pod(evicted(world, job, "w-1")) in (name, None)
        look(world, controller, name)
    found = row(world, name)
    assert (found.state, found.lost) == ("Running", 1)
    assert found.message == "1 lost so far, the last: pod w-1 on node n2: Evicted: low on memory"
    assert [event for event in world.events if event[0] == "PodLost"] == [
        ("PodLost", "stage base lost pod w-1 on node n2: Evicted: low on memory")]
    controller = operator(world)  # a fresh one, which sees the pod once more
    controller.seen.pod(evicted(world, job, "w-1"))
    look(world, controller, name)
    assert row(world, name).lost == 1
    step(world, world.jobs()[0])
    look(world, controller, name)
    found = row(world, name)
    assert (found.state, found.lost, [loss.pod for loss in found.losses or ()]) == ("Finished", 1, ["w-1"])


def test_a_lost_head_is_named_in_the_failure(world: World, tmp_path: Path) -> None:
    name, controller, job = running(world, tmp_path)
    controller.seen.pod(deleted(world, job, "head"))
    world.now += 5
    world.move(job, "Failed", "", "head pod not found", "DeadlineExceeded")
    look(world, controller, name)
    found = row(world, name)
    assert found.state == "Retrying"
    assert "lost before: pod head on node n2: deleted" in (found.message or "")
    assert found.lost == 1


def test_pods_that_go_with_their_cluster_are_not_lost(world: World, tmp_path: Path) -> None:
    name, controller, job = running(world, tmp_path)
    controller.seen.pod(deleted(world, job, "early"))  # the watch of pods may be quicker than the one of RayJobs
    look(world, controller, name)
    step(world, world.jobs()[0])
    controller.seen.pod(deleted(world, job, "late"))
    world.now += 60
    look(world, controller, name)
    found = row(world, name)
    assert (found.state, found.lost) == ("Finished", None)


def test_a_deleted_worker_counts_once_the_stage_has_gone_on_without_it(world: World, tmp_path: Path) -> None:
    name, controller, job = running(world, tmp_path)
    controller.seen.pod(deleted(world, job, "w-1"))
    controller.resync()
    wake = controller.look(name)
    assert wake is not None
    assert row(world, name).lost is None
    world.now += wake
    look(world, controller, name)
    assert row(world, name).lost == 1


def test_another_attempts_pods_are_its_own(world: World, tmp_path: Path) -> None:
    name, controller, job = running(world, tmp_path)
    other = {**job, "metadata": {**job["metadata"], "name": "chain-base-00000000-1"}}
    controller.seen.pod(evicted(world, other, "w-1"))
    look(world, controller, name)
    assert row(world, name).lost is None


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=60))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_lost_pod_is_counted_exactly_once(tmp_path_factory: pytest.TempPathFactory,
                                                news: list[tuple[int, bool]]) -> None:
    """However often and in whatever order the watch says it, and though the operator is killed in between."""
    world = World(Store())
    name, controller, job = running(world, tmp_path_factory.mktemp("run"))
    lost: dict[int, None] = {}
    for number, killed in news:
        if number not in lost and len(lost) == 16:
            continue  # of more, the oldest are not named, and a fresh operator could not know them
        lost[number] = None
        if killed:
            controller = operator(world)
        controller.seen.pod(evicted(world, job, f"w-{number}"))
        look(world, controller, name)
    found = row(world, name)
    assert (found.lost or 0) == len(lost)
    assert len([event for event in world.events if event[0] == "PodLost"]) == len(lost)
