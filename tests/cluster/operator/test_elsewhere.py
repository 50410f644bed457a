"""A stage that another run makes holds no pods: none are asked for, or they are given back; it goes on when it may."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Store as RealStore
from alignment.cluster.manifests.alignment_run import Status
from alignment.cluster.operator.plan import Plan, PlannedStage
from alignment.cluster.operator.reads import readable
from alignment.cluster.operator.reconcile import Create, Hindrance, reconcile
from alignment.cluster.operator.rows import ELSEWHERE, ELSEWHERE_MOST, Delete
from alignment.cluster.operator.store import look_up
from alignment.cluster.operator.world import Child, Held, child_of, seconds_of
from tests.artifacts.built import publish
from tests.cluster.operator.test_reconcile import NOW, A, B, C, child, condition, plan, row
from tests.cluster.operator_world import EXIT_4, THEIRS, Store, World, calm, chain, keys_of, operator, states, submit

HELD = Hindrance(held={A.key: THEIRS})


def gave_way(stage: PlannedStage, attempt: int = 1) -> Child:
    return child(stage, attempt, "failed", gave_way=True, message=THEIRS, ended=NOW)


def decided(status: Status, children: list[Child], now: float = NOW, held: Hindrance = HELD,
            of: Plan | None = None) -> Any:
    return reconcile(of or plan(A, C), status, children, {}, now, held)


# --- one decision ---


def test_what_another_run_makes_is_not_started_and_takes_no_place() -> None:
    first = decided(Status(), [])
    assert first.actions == (Create("c", 1, "r-c-22222222-1"),), "parallel is 1, and a takes no place"
    found = row(first.status, "a")
    assert (found.state, found.message, found.tries) == ("Elsewhere", THEIRS, 0)
    assert first.status.phase == "Running"
    assert THEIRS in condition(first.status, "Progressing").message
    assert [note.reason for note in first.notes] == ["StageElsewhere", "StageStarting"]
    again = decided(first.status, [child(C)])
    assert decided(again.status, [child(C)]).status == again.status
    let_go = decided(first.status, [], held=Hindrance(), of=plan(A, B))
    assert let_go.actions == (Create("a", 1, "r-a-00000000-1"),)


def test_a_rayjob_that_gave_way_is_deleted_and_counts_as_no_failure() -> None:
    before = decided(Status(), [], held=Hindrance(), of=plan(A, B, retries=0)).status
    decision = decided(before, [gave_way(A)], held=Hindrance(), of=plan(A, B, retries=0))
    assert decision.actions == (Delete("r-a-00000000-1", "uid-a-1", "it gave way"),)
    found = row(decision.status, "a")
    assert (found.state, found.message, found.failures, found.tries) == ("Elsewhere", THEIRS, 0, 1)
    assert decision.wake == seconds_of(found.retry_at) == NOW + ELSEWHERE
    early = decided(decision.status, [], NOW + ELSEWHERE - 1, Hindrance(), plan(A, B, retries=0))
    assert early.actions == (), "the operator's clock may not see a holder that pods see"
    late = decided(decision.status, [], NOW + ELSEWHERE, Hindrance(), plan(A, B, retries=0))
    assert late.actions == (Create("a", 2, "r-a-00000000-2"),)
    held = decided(decision.status, [], NOW + ELSEWHERE, of=plan(A, B, retries=0))
    assert (held.actions, row(held.status, "a").state, held.wake) == ((), "Elsewhere", None)


def test_one_that_waited_for_a_place_meanwhile_is_not_started_either() -> None:
    before = decided(Status(), [gave_way(A)], held=Hindrance()).status
    full = decided(before, [child(C)], NOW + ELSEWHERE, Hindrance())
    assert row(full.status, "a").message == "waits for a free place (parallel: 1)"
    room = decided(full.status, [child(C)], NOW + ELSEWHERE, of=plan(A, C, parallel=2))
    assert (room.actions, row(room.status, "a").state) == ((), "Elsewhere")


def test_pauses_grow_to_a_bound() -> None:
    waits = []
    for attempt in (1, 2, 3, 4, 50):
        decision = decided(Status(), [gave_way(A, attempt)], held=Hindrance(), of=plan(A, B))
        waits.append(decision.wake - NOW)
    assert waits == [60, 120, 240, ELSEWHERE_MOST, ELSEWHERE_MOST]


def test_after_a_failure_a_lease_may_be_ones_own_and_keeps_nobody_waiting() -> None:
    failed = decided(Status(), [child(A, 1, "failed", message="OOM", ended=NOW)], of=plan(A, B))
    assert row(failed.status, "a").state == "Retrying"
    again = decided(failed.status, [], NOW + 20, of=plan(A, B))
    assert again.actions == (Create("a", 2, "r-a-00000000-2"),)


def test_a_resume_looks_at_once_and_starts_nothing_that_is_held() -> None:
    before = decided(Status(observed_generation=1), [gave_way(A)], held=Hindrance(), of=plan(A, B)).status
    resumed = decided(before, [], NOW + 1, of=plan(A, B, retry="now"))
    assert (resumed.actions, resumed.wake) == ((), None)
    assert row(resumed.status, "a").state == "Elsewhere"
    free = decided(before, [], NOW + 1, Hindrance(), plan(A, B, retry="now"))
    assert free.actions == (Create("a", 2, "r-a-00000000-2"),)


def test_of_two_stages_of_one_key_both_wait() -> None:
    both = plan(A, PlannedStage("twin", A.key, A.digest, ()), parallel=3)
    first = decided(Status(), [], of=both)
    assert first.actions == ()
    assert (row(first.status, "a").state, row(first.status, "twin").message) == (
        "Elsewhere", "waits for a, which makes the same")
    assert decided(first.status, [], of=both).status == first.status
    free = decided(first.status, [], held=Hindrance(), of=both)
    assert free.actions == (Create("a", 1, "r-a-00000000-1"),)


def test_exit_code_4_is_read_with_who_makes_it() -> None:
    job = {"metadata": {"name": "r-a-00000000-1", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
           "status": {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": EXIT_4}}
    found = child_of(job, "o")
    assert (found.state, found.gave_way, found.permanent, found.message) == ("failed", True, False, THEIRS)
    job["status"] = {**job["status"], "message": "the log says: failed with exit code 40"}
    assert not child_of(job, "o").gave_way


# --- the whole ---


@pytest.mark.parametrize("end", ["finished", "stopped"])
def test_a_run_waits_for_another_without_pods_and_goes_on(end: str, tmp_path: Path) -> None:
    world = World(Store())
    name = submit(world, chain(tmp_path))
    controller = operator(world)
    calm(world, controller, name, {"sft": "user"})
    sft = keys_of(world, world.jobs()[-1])["sft"]
    theirs = World(Store())
    theirs.store.made = {key: made for key, made in world.store.made.items() if key != sft.key}
    theirs.store.held[sft.key] = True
    submit(theirs, chain(tmp_path))
    controller = operator(theirs)
    calm(theirs, controller, name)
    assert states(theirs, name)["sft"] == "Elsewhere"
    assert theirs.jobs() == []
    del theirs.store.held[sft.key]
    if end == "finished":
        theirs.store.finish(sft.key, sft.digest)
    calm(theirs, controller, name)
    assert set(states(theirs, name).values()) == {"Finished"}
    made = [what for kind, what in theirs.log if kind == "create" and "-sft-" in what]
    assert len(made) == (0 if end == "finished" else 1)


# --- the store ---

KEY = "sft-0123456789ab"


def test_a_lease_is_seen_with_its_holder_while_it_is_held(tmp_path: Path) -> None:
    store, reads = RealStore(str(tmp_path)), readable([str(tmp_path)])
    with store.lease(KEY, by="run theirs, stage two") as lease:
        (held,) = look_up(reads, store.url, [KEY]).values()
        assert isinstance(held, Held)
        assert held.words.startswith("run theirs, stage two, since 2")
        assert held.words.endswith(", makes it")
        assert look_up(reads, store.url, [KEY])[KEY] == held, "nothing in it changes with a beat"
        publish(store, KEY, lease)
        assert not isinstance(look_up(reads, store.url, [KEY])[KEY], Held)
    assert look_up(reads, store.url, ["sft-000000000000"]) == {}


@pytest.mark.parametrize(("beat", "held"), [
    (-5.0, True), (-110.0, True), (60.0, True),
    (-200.0, False),  # killed, on another machine
    (4000.0, False),  # a clock that is far ahead: it would look alive long after its end
    (float("nan"), False),
])
def test_a_lease_is_believed_as_far_as_clocks_agree(beat: float, held: bool, tmp_path: Path) -> None:
    path = tmp_path / "work" / KEY / "lease.json"
    path.parent.mkdir(parents=True)
    lease = {"token": "t", "beat": time.time() + beat, "pid": 1, "boot": "another", "since": "then"}
    path.write_text(json.dumps(lease))
    found = look_up(readable([str(tmp_path)]), str(tmp_path), [KEY])
    assert [type(item) for item in found.values()] == [Held] * held


def test_a_lease_that_cannot_be_read_stops_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "store" / "work" / KEY
    folder.mkdir(parents=True)
    outside = tmp_path / "secret.json"
    outside.write_text(json.dumps({"by": "secret", "beat": time.time()}))
    (folder / "lease.json").symlink_to(outside)
    assert look_up(readable([str(tmp_path / "store")]), str(tmp_path / "store"), [KEY]) == {}
    (folder / "lease.json").unlink()
    (folder / "lease.json").mkdir()
    assert look_up(readable([str(tmp_path / "store")]), str(tmp_path / "store"), [KEY]) == {}
