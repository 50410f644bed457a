"""What an AlignmentRun's status says, and what is done, in each single situation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import RowCounts
from alignment.artifacts.manifest import Manifest
from alignment.artifacts.store import Artifact
from alignment.artifacts.store import Store as ArtifactStore
from alignment.cluster.manifests.alignment_run import APPROVE, Condition, StageRow, Status, status_json, status_of
from alignment.cluster.manifests.labels import ATTEMPT_LABEL, STAGE_LABEL
from alignment.cluster.operator.plan import Bound, Plan, PlannedStage
from alignment.cluster.operator.reconcile import Create, Hindrance, reconcile, wanted
from alignment.cluster.operator.rows import BACKOFF, GRACE, Delete
from alignment.cluster.operator.store import finished_of
from alignment.cluster.operator.verdict import gate_state
from alignment.cluster.operator.world import Child, Finished, child_of, stamp_of
from alignment.config import parse_aim
from alignment.config.stops import Stops
from tests.cluster.operator_world import EXIT_1, EXIT_2

NOW = 1_800_000_000.0
A = PlannedStage("a", "a-000000000000", "0" * 64, ())
B = PlannedStage("b", "b-111111111111", "1" * 64, ("a",))
C = PlannedStage("c", "c-222222222222", "2" * 64, ())
DONE = Finished("s3://x/artifacts/a", "0" * 64, {"loss": 0.5}, 3, 2, "2026-01-01T00:00:00Z", "2026-01-01T00:00:09Z")


def plan(*stages: PlannedStage, **more: Any) -> Plan:
    return Plan("r", 1, stages or (A, B), store="s3://x", **more)


def child(stage: PlannedStage, attempt: int = 1, state: Any = "running", **more: Any) -> Child:
    return Child(f"r-{stage.name}-{stage.digest[:8]}-{attempt}", f"uid-{stage.name}-{attempt}", stage.name, attempt,
                 state, **more)


def row(status: Status, name: str) -> StageRow:
    return next(row for row in status.stages if row.name == name)


def condition(status: Status, kind: str) -> Condition:
    return next(condition for condition in status.conditions if condition.type == kind)


# --- one decision ---


def test_stages_start_when_their_inputs_are_finished_and_there_is_room() -> None:
    first = reconcile(plan(A, B, C), Status(), [], {}, NOW)
    assert first.actions == (Create("a", 1, "r-a-00000000-1"),)
    assert row(first.status, "b").message == "waits for a"
    assert row(first.status, "c").message == "waits for a free place (parallel: 1)"
    both = reconcile(plan(A, B, C, parallel=2), Status(), [], {}, NOW)
    assert [action.stage for action in both.actions if isinstance(action, Create)] == ["a", "c"]
    after = reconcile(plan(A, B), first.status, [], {A.key: DONE}, NOW)
    assert after.actions == (Create("b", 1, "r-b-11111111-1"),)
    done = row(after.status, "a")
    assert (done.state, done.rows_in, done.rows_out, after.status.finished) == ("Finished", 3, 2, "1/2")


def test_of_two_stages_that_make_the_same_one_does() -> None:
    twin = PlannedStage("twin", A.key, A.digest, ())
    both = plan(A, twin, B, parallel=3)
    first = reconcile(both, Status(), [], {}, NOW)
    assert first.actions == (Create("a", 1, "r-a-00000000-1"),)
    assert row(first.status, "twin").message == "waits for a, which makes the same"
    again = reconcile(both, first.status, [], {}, NOW)
    assert again.actions == first.actions, "its RayJob is not there yet"
    assert reconcile(both, first.status, [child(A)], {}, NOW).actions == ()
    after = reconcile(both, first.status, [], {A.key: DONE}, NOW)
    assert after.actions == (Create("b", 1, "r-b-11111111-1"),)
    assert row(after.status, "twin").state == "Finished"


def test_a_decision_is_the_same_however_often_and_in_whatever_order_the_world_is_seen() -> None:
    children = [child(A), child(C, state="pending")]
    one = reconcile(plan(A, B, C, parallel=2), Status(), children, {}, NOW)
    again = reconcile(plan(A, B, C, parallel=2), one.status, children[::-1] * 2, {}, NOW)
    assert one.actions == again.actions == ()
    assert one.status == again.status
    assert again.notes == ()


def test_a_surplus_child_is_deleted_and_always_the_same_one() -> None:
    two = [child(A, 1), child(A, 2, "pending")]
    for seen in (two, two[::-1]):
        decision = reconcile(plan(), Status(), seen, {}, NOW)
        assert decision.actions == (Delete("r-a-00000000-1", "uid-a-1", "r-a-00000000-2 makes this stage"),)
        assert row(decision.status, "a").ray_job == "r-a-00000000-2"


def test_the_clusters_failure_is_tried_again_on_a_fresh_cluster_with_growing_pauses() -> None:
    status, now, waits = Status(), NOW, []
    for attempt in (1, 2, 3):
        failed = child(A, attempt, "failed", message="DeadlineExceeded: too slow", ended=now)
        decision = reconcile(plan(retries=2), status, [failed], {}, now)
        status = decision.status
        if attempt < 3:
            assert decision.actions == (Delete(failed.name, failed.uid, "a fresh attempt follows"),)
            assert row(status, "a").state == "Retrying"
            assert decision.wake is not None
            waits.append(decision.wake - now)
            assert reconcile(plan(retries=2), status, [], {}, now + 1).actions == ()
            now = decision.wake
            started = reconcile(plan(retries=2), status, [], {}, now)
            assert started.actions == (Create("a", attempt + 1, f"r-a-00000000-{attempt + 1}"),)
            status = started.status
    assert waits == [BACKOFF, 3 * BACKOFF]
    assert row(status, "a").state == "Failed"
    assert row(status, "a").message == "given up after 3 failures, the last: DeadlineExceeded: too slow"
    assert (status.phase, status.stage) == ("Failed", "a")
    assert condition(status, "Failed").reason == "StageFailed"
    assert reconcile(plan(retries=2), status, [failed], {}, now + 9999).actions == ()


def test_the_users_error_is_not_tried_again_and_says_the_last_of_the_log() -> None:
    job = {"metadata": {"name": "r-a-00000000-1", "uid": "u", "labels": {STAGE_LABEL: "a", ATTEMPT_LABEL: "1"},
                        "creationTimestamp": stamp_of(NOW), "ownerReferences": [{"uid": "me"}]},
           "status": {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": EXIT_2}}
    decision = reconcile(plan(), Status(), [child_of(job, "me")], {}, NOW)
    assert decision.actions == ()
    message = row(decision.status, "a").message
    assert message == ("exit code 2: reading\nstage sft: the split has no rows\n  expected: at least one row")
    assert condition(decision.status, "Failed").message == f"stage a: {message}"
    assert [(note.type, note.reason) for note in decision.notes] == [("Warning", "StageFailed")]
    job["status"] |= {"message": EXIT_1}
    assert row(reconcile(plan(), Status(), [child_of(job, "me")], {}, NOW).status, "a").state == "Retrying"
    job["status"] |= {"jobDeploymentStatus": "ValidationFailed", "message": "no head group"}
    assert child_of(job, "me").permanent


def test_a_stage_that_could_not_start_in_time_says_why_its_pods_did_not_run() -> None:
    pending = reconcile(plan(), Status(), [child(A, state="pending", trouble="no node has a GPU")], {}, NOW).status
    late = child(A, state="failed", message="PreRunningDeadlineExceeded", ended=NOW)
    failed = row(reconcile(plan(), pending, [late], {}, NOW).status, "a")
    assert (failed.state, failed.message) == ("Retrying", "PreRunningDeadlineExceeded (no node has a GPU)")


def test_success_without_a_manifest_gets_a_moment_and_then_counts_as_a_failure() -> None:
    ended = child(A, state="succeeded", ended=NOW)
    early = reconcile(plan(), Status(), [ended], {}, NOW + 1)
    assert (row(early.status, "a").state, early.wake, early.actions) == ("Running", NOW + GRACE, ())
    late = reconcile(plan(), early.status, [ended], {}, NOW + GRACE)
    assert row(late.status, "a").state == "Retrying"
    assert "the store has no manifest of a-000000000000" in (row(late.status, "a").message or "")


def test_a_child_that_vanishes_counts_once() -> None:
    running = reconcile(plan(), Status(), [child(A)], {}, NOW).status
    gone = reconcile(plan(), running, [], {}, NOW)
    assert (row(gone.status, "a").state, row(gone.status, "a").failures) == ("Retrying", 1)
    assert row(gone.status, "a").message == "RayJob r-a-00000000-1 vanished"
    assert row(reconcile(plan(), gone.status, [], {}, NOW + 1).status, "a").failures == 1
    # One that was begun and never seen is begun again under the same name.
    begun = reconcile(plan(), Status(), [], {}, NOW)
    assert reconcile(plan(), begun.status, [], {}, NOW).actions == begun.actions


def test_a_child_that_somebody_deletes_is_missed_when_it_is_gone_and_not_before() -> None:
    running = reconcile(plan(parallel=4), Status(), [child(A)], {}, NOW).status
    going = reconcile(plan(parallel=4), running, [child(A, deleting=True)], {}, NOW)
    going_row = row(going.status, "a")
    assert (going.actions, going_row.state, going_row.failures) == ((), "Running", 0)
    assert going_row.message == "RayJob r-a-00000000-1 is going away"
    assert row(reconcile(plan(parallel=4), going.status, [], {}, NOW).status, "a").failures == 1


def test_a_lost_status_is_said_again_by_the_children() -> None:
    seen = reconcile(plan(), Status(), [child(A, 3)], {}, NOW)
    assert (row(seen.status, "a").tries, row(seen.status, "a").state, seen.actions) == (3, "Running", ())
    ended = child(A, 3, "failed", message="node lost", ended=NOW)
    failed = reconcile(plan(), Status(), [ended], {}, NOW)
    assert reconcile(plan(), failed.status, [], {}, NOW + 60).actions == (Create("a", 4, "r-a-00000000-4"),)


def test_suspending_stops_what_runs_and_resuming_begins_anew_without_counting_a_failure() -> None:
    running = reconcile(plan(), Status(), [child(A)], {}, NOW).status
    stopped = reconcile(plan(suspend=True), running, [child(A)], {}, NOW)
    assert [type(action) for action in stopped.actions] == [Delete]
    assert (stopped.status.phase, condition(stopped.status, "Suspended").status) == ("Suspended", "True")
    waiting = reconcile(plan(), stopped.status, [child(A, deleting=True)], {}, NOW)
    assert waiting.actions == ()
    resumed = reconcile(plan(), waiting.status, [], {}, NOW)
    assert resumed.actions == (Create("a", 2, "r-a-00000000-2"),)
    assert row(resumed.status, "a").failures == 0


def test_an_edit_or_the_retry_annotation_gives_a_failed_stage_a_new_start() -> None:
    failed = child(A, state="failed", permanent=True, message="exit code 2")
    status = reconcile(plan(), Status(), [failed], {}, NOW).status
    assert reconcile(plan(), status, [failed], {}, NOW).actions == ()
    for changed in (Plan("r", 2, (A, B)), Plan("r", 1, (A, B), retry="now")):
        decision = reconcile(changed, status, [failed], {}, NOW)
        assert [type(action) for action in decision.actions] == [Delete, Create]
        assert decision.actions[1] == Create("a", 2, "r-a-00000000-2")
        assert (decision.status.phase, condition(decision.status, "Failed").status) == ("Running", "False")
        assert decision.status.observed_generation == changed.generation


def test_a_spec_that_is_refused_for_a_while_has_no_old_retry_obeyed_once_more() -> None:
    """Its files went and came back, say; a new start that was asked for meanwhile is given."""
    failed = child(A, state="failed", permanent=True, message="exit code 2")
    asked = Plan("r", 1, (A, B), retry="monday")
    status = reconcile(asked, Status(observed_generation=1, retried="monday"), [failed], {}, NOW).status
    assert row(status, "a").state == "Failed"
    refused = reconcile(Plan("r", 1, problem=("FilesMissing", "gone")), status, [failed], {}, NOW).status
    assert (refused.phase, refused.retried) == ("Failed", "monday")
    back = reconcile(asked, refused, [failed], {}, NOW)
    assert (back.actions, row(back.status, "a").state) == ((), "Failed")
    anew = reconcile(Plan("r", 1, (A, B), retry="tuesday"), refused, [failed], {}, NOW)
    assert anew.actions[1] == Create("a", 2, "r-a-00000000-2")
    assert anew.status.retried == "tuesday"


def test_an_edited_stage_waits_for_the_child_from_before_the_edit() -> None:
    running = reconcile(plan(A), Status(), [child(A)], {}, NOW).status
    other = PlannedStage("a", "a-999999999999", "9" * 64, ())
    edited = Plan("r", 2, (other,), parallel=4)
    first = reconcile(edited, running, [child(A)], {}, NOW)
    assert first.actions == (Delete("r-a-00000000-1", "uid-a-1", "no stage of the run asks for it"),)
    assert "from before an edit" in (row(first.status, "a").message or "")
    assert reconcile(edited, first.status, [child(A, deleting=True)], {}, NOW).actions == ()
    assert reconcile(edited, first.status, [], {}, NOW).actions == (Create("a", 1, "r-a-99999999-1"),)


def test_a_name_that_another_run_has_taken_is_stepped_over() -> None:
    taken = child(A, 1, mine=False)
    assert reconcile(plan(), Status(), [taken], {}, NOW).actions == (Create("a", 2, "r-a-00000000-2"),)


def test_finished_rayjobs_stay_for_a_while_and_the_run_for_its_time_to_live() -> None:
    kept = plan(A, keep_finished=100, ttl=1000)
    ended = child(A, state="succeeded", ended=NOW)
    at_once = reconcile(kept, Status(), [ended], {A.key: DONE}, NOW)
    assert (at_once.actions, at_once.wake, at_once.status.phase) == ((), NOW + 100, "Succeeded")
    later = reconcile(kept, at_once.status, [ended], {A.key: DONE}, NOW + 100)
    assert [type(action) for action in later.actions] == [Delete]
    assert later.wake == NOW + 1000
    over = reconcile(kept, later.status, [], {A.key: DONE}, NOW + 1000)
    assert [type(action).__name__ for action in over.actions] == ["Remove"]
    assert reconcile(plan(A), at_once.status, [], {A.key: DONE}, NOW + 9e9).actions == ()


def test_a_finished_stages_child_may_write_its_report_and_an_idle_one_goes() -> None:
    writing = reconcile(plan(A), Status(), [child(A)], {A.key: DONE}, NOW)
    assert (writing.actions, writing.status.phase, row(writing.status, "a").state) == ((), "Running", "Finished")
    idle = reconcile(plan(A), Status(), [child(A, state="pending")], {A.key: DONE}, NOW)
    assert [type(action) for action in idle.actions] == [Delete]


def test_nothing_is_decided_while_the_store_cannot_be_read() -> None:
    running = reconcile(plan(), Status(), [child(A)], {}, NOW).status
    blind = reconcile(plan(), running, [], {}, NOW + 99, Hindrance(("StoreUnreadable", "403 Forbidden")))
    assert blind.actions == ()
    assert blind.status.stages == running.stages
    progressing = condition(blind.status, "Progressing")
    assert (progressing.status, progressing.reason, progressing.message) == ("Unknown", "StoreUnreadable",
                                                                            "403 Forbidden")
    seen = reconcile(plan(), blind.status, [child(A)], {}, NOW + 100)
    assert condition(seen.status, "Progressing").status == "True"


def test_conditions_keep_the_time_of_their_last_change() -> None:
    first = reconcile(plan(), Status(), [child(A, state="pending", trouble="no node has a GPU")], {}, NOW).status
    assert row(first, "a").message == "no node has a GPU"
    assert "no node has a GPU" in condition(first, "Progressing").message
    second = reconcile(Plan("r", 5, (A, B)), first, [child(A)], {}, NOW + 60).status
    assert condition(second, "Progressing").last_transition_time == stamp_of(NOW)
    assert {part.observed_generation for part in second.conditions} == {5}
    done = reconcile(Plan("r", 5, (A, B)), second, [], {A.key: DONE, B.key: DONE}, NOW + 90).status
    assert condition(done, "Progressing").last_transition_time == stamp_of(NOW + 90)
    assert condition(done, "Ready").status == "True"


# --- gates ---


@pytest.mark.parametrize(("aim", "metrics", "state", "said"), [
    ("a.loss <= 0.5", {"loss": 0.5}, "open", "gate met, a.loss <= 0.5 after a: 0.5"),
    ("a.loss < 0.5", {"loss": 0.5}, "failed", "gate not met, a.loss < 0.5 after a: 0.5"),
    ("a.best > a.mean", {"best": 2.0, "mean": 1.0}, "open", "a.best > a.mean after a: 2 against 1"),
    ("a.los < 0.5", {"loss": 0.5}, "failed", "there is no finite a.los among the metrics"),
])
def test_a_metric_gate_says_what_it_found(aim: str, metrics: dict[str, float], state: str, said: str) -> None:
    found = Finished("u", "0", metrics, 0, 0, "", "")
    gate = gate_state(Bound("a", parse_aim(aim)), plan(), {A.key: found})
    assert gate.state == state
    assert said in gate.message


def test_a_failed_gate_stops_what_comes_after_and_keeps_everything() -> None:
    gated = plan(gates=(Bound("a", parse_aim("a.loss < 0.1")),))
    decision = reconcile(gated, Status(), [], {A.key: DONE}, NOW)
    assert decision.actions == ()
    assert (decision.status.phase, row(decision.status, "b").state) == ("Failed", "Held")
    failed = condition(decision.status, "Failed")
    assert (failed.reason, failed.message) == ("GateFailed", "gate not met, a.loss < 0.1 after a: 0.5")
    assert row(decision.status, "a").artifact == DONE.url
    eased = Plan("r", 2, (A, B), gates=(Bound("a", parse_aim("a.loss < 0.6")),))
    assert reconcile(eased, decision.status, [], {A.key: DONE}, NOW).actions == (Create("b", 1, "r-b-11111111-1"),)


def test_a_failed_gate_after_the_last_stage_fails_the_run() -> None:
    gated = plan(A, gates=(Bound("a", parse_aim("a.loss < 0.1")),))
    assert reconcile(gated, Status(), [], {A.key: DONE}, NOW).status.phase == "Failed"


def test_an_approval_gate_asks_and_opens() -> None:
    gate = (Bound("a", None),)
    asking = reconcile(plan(gates=gate), Status(), [], {A.key: DONE}, NOW)
    assert (asking.status.phase, asking.actions) == ("Waiting", ())
    waiting = condition(asking.status, "GateWaiting")
    assert (waiting.status, waiting.reason) == ("True", "ApprovalNeeded")
    assert f"kubectl annotate alignmentrun r --overwrite {APPROVE}=a" in waiting.message
    assert ("Normal", "ApprovalNeeded") in [(note.type, note.reason) for note in asking.notes]
    opened = reconcile(plan(gates=gate, approved=frozenset({"a"})), asking.status, [], {A.key: DONE}, NOW)
    assert opened.actions == (Create("b", 1, "r-b-11111111-1"),)
    assert condition(opened.status, "GateWaiting").status == "False"


def test_what_the_status_shows_of_an_artifact(tmp_path: Path) -> None:
    made = Manifest(key="sft-0", digest="d", stage="sft", kind="train", config={}, inputs={}, files={},
                    rows=RowCounts(read=9, written={"train": 4, "dev": 2}), metrics={"loss": 1.5, "odd": float("nan")},
                    started="2026-01-01T00:00:00Z", finished="2026-01-01T00:00:09Z", seconds=9.0)
    found = finished_of(Artifact(ArtifactStore(str(tmp_path)), made))
    assert (found.metrics, found.rows_in, found.rows_out) == ({"loss": 1.5}, 9, 6)
    assert found.url == f"{tmp_path}/artifacts/sft-0"


# --- rounds that end where a gate is not met ---

ROUNDS = tuple(PlannedStage(f"{kind}-{number}", f"{kind}-{number}{'0' * 11}", f"{number}" * 64, inputs)
               for number in (1, 2, 3) for kind, inputs in (("dpo", (f"dpo-{number - 1}",) if number > 1 else ()),
                                                            ("dev", (f"dpo-{number}",))))
CHOICE = PlannedStage("dpo", "choose-000000000000", "a" * 64,
                      ("dpo-1", "dev-1", "dpo-2", "dev-2", "dpo-3", "dev-3"))
TEST = PlannedStage("test", "evaluate-00000000000", "b" * 64, ("dpo",))
STOPS = (Stops("improve", tuple((f"dpo-{number}", f"dev-{number}") for number in (1, 2, 3)),
               tuple(parse_aim(f"dev-{number}.gain > 0") for number in (1, 2, 3)), "dpo"),)


def of_rounds(**more: Any) -> Plan:
    return plan(*ROUNDS, CHOICE, TEST, stops=STOPS, **more)


def gained(*gains: float) -> dict[str, Finished]:
    """Rounds that are finished, with what each gained."""
    return {stage.key: dataclasses.replace(DONE, metrics={"gain": gains[int(stage.name[-1]) - 1]})
            for stage in ROUNDS if int(stage.name[-1]) <= len(gains)}


def test_a_further_round_waits_for_the_gate_however_much_room_there_is() -> None:
    decision = reconcile(of_rounds(parallel=8), Status(), [], {ROUNDS[0].key: DONE}, NOW)
    assert [action.stage for action in decision.actions if isinstance(action, Create)] == ["dev-1"]
    assert row(decision.status, "dpo-2").message == "waits for dev-1: the gate of round 1 of improve"


def test_rounds_after_a_gate_that_is_not_met_are_not_made_and_the_run_goes_on_without_them() -> None:
    seen = gained(0.1, -0.1)
    decision = reconcile(of_rounds(), Status(), [], seen, NOW)
    assert [action.stage for action in decision.actions if isinstance(action, Create)] == ["dpo"]
    for name in ("dpo-3", "dev-3"):
        assert row(decision.status, name).state == "NotNeeded"
        assert "round 2 of improve did not meet its gate" in str(row(decision.status, name).message)
    assert decision.status.finished == "6/8"
    assert {stage.name for stage in wanted(of_rounds(), seen)} >= {"dpo"}
    notes = [note for note in decision.notes if note.reason == "StageNotNeeded"]
    assert [note.type for note in notes] == ["Normal", "Normal"]
    made = seen | {CHOICE.key: dataclasses.replace(DONE, metrics={"round": 1.0})}
    after = reconcile(of_rounds(), decision.status, [], made, NOW + 60)
    assert [action.stage for action in after.actions if isinstance(action, Create)] == ["test"]
    done = reconcile(of_rounds(), after.status, [], made | {TEST.key: DONE}, NOW + 90).status
    assert (done.phase, done.finished) == ("Succeeded", "8/8")
    assert status_of({"status": status_json(done)}) == done


def test_a_round_that_was_begun_before_an_edit_set_the_gate_is_stopped() -> None:
    at_work = child(ROUNDS[4])
    decision = reconcile(of_rounds(), Status(), [at_work], gained(0.1, -0.1), NOW)
    assert Delete(at_work.name, at_work.uid, "the stage is not needed") in decision.actions
    eased = dataclasses.replace(of_rounds(), stops=())
    again = reconcile(eased, decision.status, [], gained(0.1, -0.1), NOW + 60)
    assert [action.stage for action in again.actions if isinstance(action, Create)] == ["dpo-3"]


def test_a_gate_that_no_number_decides_stops_the_run_with_a_word() -> None:
    decision = reconcile(of_rounds(), Status(), [], {ROUNDS[0].key: DONE, ROUNDS[1].key: DONE}, NOW)
    assert decision.actions == ()
    assert decision.status.phase == "Failed"
    assert "no finite dev-1.gain among the metrics" in condition(decision.status, "Failed").message


def test_a_persons_gate_after_a_round_that_is_not_needed_keeps_nobody_waiting() -> None:
    made = gained(0.1, -0.1) | {CHOICE.key: dataclasses.replace(DONE, metrics={"round": 1.0})}
    decision = reconcile(of_rounds(gates=(Bound("dev-3", None),)), Status(), [], made, NOW)
    assert [action.stage for action in decision.actions if isinstance(action, Create)] == ["test"]
