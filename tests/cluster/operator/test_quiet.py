"""A world that does not change is written once, whatever is wrong with it: a hundred looks, one status, few events."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignment.cluster.client.refusals import cluster_error
from alignment.cluster.manifests.alignment_run import RETRY, status_of
from alignment.cluster.operator.controller import EVENTS, REFUSED, REFUSED_MOST, REWORDED, Controller
from alignment.cluster.operator.prepare import prepare
from alignment.cluster.operator.world import Finished
from alignment.errors import ArtifactError
from alignment.pipeline.keys import keys
from tests.cluster.operator.test_reconcile import condition
from tests.cluster.operator_world import (
    READS,
    THEIRS,
    Store,
    World,
    chain,
    operator,
    profile,
    step,
    submit,
)

Object = dict[str, Any]
COUNT = itertools.count()


def edited(**spec: Any) -> Callable[[World, str, Controller], None]:
    return lambda world, name, controller: world.edit(name, **spec)


def stage(name: str, **keys: Any) -> Callable[[World, str, Controller], None]:
    """One stage of the run with other keys, and no ConfigMap."""
    def change(world: World, of: str, controller: Controller) -> None:
        run = copy.deepcopy(world.objects[("AlignmentRun", of)]["spec"]["run"])
        next(found for found in run["stages"] if found["name"] == name).update(keys)
        world.edit(of, run=run, files=None, digests=None)
    return change


def reading(path: str) -> Callable[[World, str, Controller], None]:
    """The data from another place."""
    return stage("data", data=[{"path": path, "format": "passage-qa"}])


def volatile_store(world: World, name: str, controller: Controller) -> None:
    def refuse(url: str, keys: Any) -> dict[str, Finished]:
        raise ArtifactError(f"the store does not answer, request {next(COUNT)}", where=url)
    controller.look_up = refuse


def volatile_admission(world: World, name: str, controller: Controller) -> None:
    def refuse(manifest: Object) -> Object:
        raise cluster_error(f"quota exceeded, request {next(COUNT)}", 403)
    world.create_rayjob = refuse  # type: ignore[method-assign]


def volatile_trouble(world: World, name: str, controller: Controller) -> None:
    controller.trouble = lambda run, stage, job: f"0/{next(COUNT)} nodes are available"


def without_kuberay(world: World, name: str, controller: Controller) -> None:
    world.kuberay = False


def config_map_lost(world: World, name: str, controller: Controller) -> None:
    del world.objects[("ConfigMap", world.objects[("AlignmentRun", name)]["spec"]["files"]["configMap"])]


def stored(url: str, **more: str) -> Object:
    return profile(storage={"url": url, **more}).model_dump(mode="json", exclude_none=True)


STEADY: dict[str, tuple[str, str, Callable[[World, str, Controller], None]]] = {
    # what -> reason, what the message has to say, how it comes about
    "no stages": ("InvalidRun", "stages", edited(run={"name": "chain", "stages": []})),
    "another name": ("InvalidRun", "same name", edited(run={"name": "other", "stages": [
        {"name": "a", "kind": "import", "model": {"source": "tiny"}}]})),
    "no cluster": ("InvalidProfile", "no `cluster`", edited(profile={"name": "local"})),
    "token off": ("InvalidProfile", "RAY_AUTH_MODE", edited(profile={"name": "p", "cluster": {
        "storage": {"url": "s3://bucket/artifacts"}, "env": {"RAY_AUTH_MODE": "disabled"}}})),
    "metadata service": ("InvalidProfile", "not where this operator may read",
                         edited(profile=stored("http://169.254.169.254/latest/meta-data"))),
    "API server": ("InvalidProfile", "not where this operator may read",
                   edited(profile=stored("https://kubernetes.default.svc/api/v1/secrets?x="))),
    "another bucket": ("InvalidProfile", "not where this operator may read", edited(profile=stored("s3://bucket/art"))),
    "bad gate": ("InvalidGate", "no bound", edited(gates=[{"after": "sft", "metric": "good"}])),
    "files missing": ("FilesMissing", "nowhere", edited(files={"configMap": "nowhere"})),
    "ConfigMap lost": ("FilesMissing", "is not there", config_map_lost),
    "relative data": ("SourceUnreadable", "data/rows.jsonl", reading("data/rows.jsonl")),
    "dots": ("SourceUnreadable", "does not bring it", reading("data/..")),
    "a device": ("SourceUnreadable", "/dev/zero", reading("/dev/zero")),
    "web data": ("SourceUnreadable", "https://internal/x.jsonl",
                 reading("https://internal/x.jsonl")),
    "a chain": ("SourceUnreadable", "does not say where it leads",
                reading("s3://bucket/artifacts/x::http://169.254.169.254/y.jsonl")),
    "model folder": ("SourceUnreadable", "../../etc", stage("base", model={"source": "folder", "path": "../../etc"})),
    "model in a package": ("SourceUnreadable", "package", stage("base", model={
        "source": "gguf", "file": "../../../etc/passwd", "package": "alignment"})),
    "no KubeRay": ("", "", without_kuberay),
}
VOLATILE = {"store": volatile_store, "admission": volatile_admission, "pods": volatile_trouble}


def hundred_looks(world: World, controller: Controller, name: str, seconds: float) -> float:
    """As the queue would: at every word of the watch, at every wake and at every full read. Returns the time taken."""
    began = world.now
    for _ in range(100):
        before = len(world.log)
        controller.resync()
        wake = controller.look(name)
        # Its own write wakes the watch at once.
        world.now += 0.1 if len(world.log) > before else min(seconds, wake or seconds)
    return world.now - began


@pytest.mark.parametrize("what", list(STEADY))
@given(seconds=st.sampled_from([0.1, 7.0, 30.0]))
@settings(max_examples=3, suppress_health_check=list(HealthCheck))
def test_every_refusal_is_written_once(what: str, tmp_path_factory: pytest.TempPathFactory, seconds: float) -> None:
    reason, said, spoil = STEADY[what]
    world = World(Store())
    name = submit(world, chain(tmp_path_factory.mktemp("run")))
    controller = operator(world)
    spoil(world, name, controller)
    hundred_looks(world, controller, name, seconds)
    assert [what for what, _ in world.log].count("status") == 1
    assert len(world.events) <= 1
    if reason:
        failed = condition(status_of(world.objects[("AlignmentRun", name)]), "Failed")
        assert (failed.status, failed.reason) == ("True", reason)
        assert said in failed.message
        assert "/kubealign-" not in failed.message, "a folder that nobody wrote"


@pytest.mark.parametrize("what", list(VOLATILE))
@given(seconds=st.sampled_from([1.0, 15.0, 30.0]))
@settings(max_examples=3, suppress_health_check=list(HealthCheck))
def test_words_that_change_each_time_are_written_seldom(what: str, tmp_path_factory: pytest.TempPathFactory,
                                                        seconds: float) -> None:
    world = World(Store())
    name = submit(world, chain(tmp_path_factory.mktemp("run")))
    controller = operator(world)
    VOLATILE[what](world, name, controller)
    taken = hundred_looks(world, controller, name, seconds)
    written = [what for what, _ in world.log].count("status")
    retries = taken / REFUSED if what == "admission" else 0  # an attempt is written down before it is made
    assert written <= 4 + taken / REWORDED + retries
    assert len(set(world.events)) <= 2 * EVENTS + 2


@pytest.mark.parametrize("pods", [False, True])
@given(seconds=st.sampled_from([0.1, 7.0, 30.0]))
@settings(max_examples=3, suppress_health_check=list(HealthCheck))
def test_a_stage_that_another_run_makes_is_written_once(pods: bool, tmp_path_factory: pytest.TempPathFactory,
                                                        seconds: float) -> None:
    run = chain(tmp_path_factory.mktemp("run"))
    world = World(Store())
    name = submit(world, run)
    controller = operator(world)
    known = keys(profile().applied(run))
    key = known["base"].key
    world.store.finish(known["data"].key, known["data"].digest)
    if pods:  # both began before either had the lease
        controller.resync()
        controller.look(name)
        for _ in range(2):
            step(world, world.jobs()[0])
            controller.look(name)
    world.store.held[key] = True
    if pods:
        step(world, world.jobs()[0])
    hundred_looks(world, controller, name, 1.0)
    log, events = len(world.log), [event for event in world.events if event[0] == "StageElsewhere"]
    assert len(events) == 1
    assert ["deletionTimestamp" in job["metadata"] for job in world.jobs()] == [True] * pods
    hundred_looks(world, controller, name, seconds)
    assert len(world.log) - log <= pods, "that its pause is over, once"
    assert [event for event in world.events if event[0] == "StageElsewhere"] == events
    row = status_of(world.objects[("AlignmentRun", name)]).stages[0]
    assert (row.state, row.message, row.failures) == ("Elsewhere", THEIRS, 0)


def test_a_refused_spec_is_read_again_at_growing_intervals(tmp_path: Path) -> None:
    world, read = World(Store()), []
    name = submit(world, chain(tmp_path))
    controller = operator(world)
    config_map_lost(world, name, controller)

    def counted(*arguments: Any) -> Any:
        read.append(world.now)
        return prepare(READS, *arguments)

    controller.prepare = counted
    hundred_looks(world, controller, name, 30.0)
    waits = [later - earlier for earlier, later in itertools.pairwise(read)]
    assert REFUSED <= min(waits) < 2 * REFUSED
    assert all(later >= earlier for earlier, later in itertools.pairwise(waits[:4]))
    assert max(waits) <= REFUSED_MOST + 30
    world.annotate(name, RETRY, "now")  # as `kubealign resume` and a new submit do
    controller.resync()
    controller.look(name)
    assert read[-1] == world.now


def test_what_is_mended_without_an_edit_goes_on_by_itself(tmp_path: Path) -> None:
    world = World(Store())
    name = submit(world, chain(tmp_path))
    controller = operator(world)
    kept = dict(world.objects)
    config_map_lost(world, name, controller)
    hundred_looks(world, controller, name, 30.0)
    world.objects |= {key: thing for key, thing in kept.items() if key[0] == "ConfigMap"}
    hundred_looks(world, controller, name, 30.0)
    assert world.jobs()


def test_an_edit_that_leaves_the_data_alone_needs_no_look_at_it(tmp_path: Path) -> None:
    """The client's digests hold for every stage that is what it was: only what changed is computed anew."""
    world = World(Store())
    name = submit(world, chain(tmp_path))
    (tmp_path / "rows.jsonl").unlink()
    body = world.objects[("AlignmentRun", name)]
    before = dict(body["spec"]["digests"])
    next(found for found in body["spec"]["run"]["stages"] if found["name"] == "dpo")["learning_rate"] = 0.5
    config = world.config_map(body["spec"]["files"]["configMap"])
    made = partial(prepare, READS)(body, config)
    assert {found.name for found in made.stages if found.digest != before[found.name]} == {"dpo", "eval"}
