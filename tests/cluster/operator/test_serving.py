"""What is said and done about serving in each single situation: revisions, pins, and KubeRay's words."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.cluster.manifests.alignment_run import ServedModel, ServedRevision, ServingStatus, Status, status_of
from alignment.cluster.operator.plan import Offer
from alignment.cluster.operator.served import (
    REVISIONS,
    TARGET,
    Part,
    Proof,
    Revision,
    Service,
    Target,
    annotations_of,
    said,
    service_of,
)
from alignment.cluster.operator.serving import Apply, Known, Made, Withdraw, decide
from alignment.cluster.operator.world import stamp_of
from tests.cluster.operator_world import RAISED

NOW = 1_800_000_000.0
CONTENT = {"serving": {"store": "s3://x"}, "profile": {"name": "p"}}
OFFER = Offer("r", "http://r-serve-svc.align.svc:8000/v1", {"best": "dpo"}, CONTENT)
MADE = Made(True, {"dpo": "dpo-2"})
GOOD, BAD = Proof(True, "c2", 8, 0.1), Proof(False, "c2", 8, 3.0, "row r1: token 0 differs")


def revision(number: int, key: str | None = None, **more: Any) -> Revision:
    models = {"best": key or f"dpo-{number}"}
    return Revision(number, {**CONTENT, "serving": {**CONTENT["serving"], "models": models}}, stamp_of(NOW), **more)


def service(target: int = 2, clusters: dict[str, int] | None = None, **more: Any) -> Service:
    """Revisions 1 and 2; by default revision 2 answers from the Ray cluster c2."""
    told = {"answers": 1, "active": Part("c2", "running"), "revisions": (revision(1), revision(2)), **more}
    return Service("r", "uid", target=Target(target, stamp_of(NOW), clusters or {}), **told)


def upgrading(pending: Part | None = None, **more: Any) -> Service:
    """Revision 1 answers from c1, and 2 is to take over."""
    return service(clusters={"c1": 1}, active=Part("c1", "starting"),
                   pending=pending or Part("c2", "starting"), **more)


CASES: dict[str, tuple[Service | None, Known, str, str, int | None]] = {
    # what -> RayService, what is known, state, reason, which revision answers
    "proved": (service(), Known({"best": GOOD}), "Ready", "Proved", 2),
    "proved by another Ray cluster": (service(), Known({"best": replace(GOOD, cluster="c1")}), "Proving",
                                      "ProofUnseen", 2),
    "no proof": (service(), Known({}), "Proving", "ProofUnseen", 2),
    "refuted": (service(), Known({"best": BAD}), "Failed", "ProofFailed", 2),
    "a replica is not well": (service(active=Part("c2", "failed", "it died")), Known({"best": GOOD}), "Unhealthy",
                              "Unhealthy", 2),
    "nobody answers": (service(answers=0), Known({"best": GOOD}), "Unhealthy", "Unhealthy", None),
    "first start": (service(answers=0, active=Part(), pending=Part("c2", "starting")), Known({}), "Starting",
                    "Starting", None),
    "nothing yet": (service(answers=0, active=Part()), Known({}), "Starting", "Starting", None),
    "upgrade": (upgrading(), Known({}), "Upgrading", "Upgrading", 1),
    "upgrade fails": (upgrading(Part("c2", "failed", "boom")), Known({}), "Failed", "StartFailed", 1),
    "upgrade is refuted": (upgrading(Part("c2", "failed", "boom")), Known({"best": BAD}), "Failed", "ProofFailed", 1),
    "KubeRay refuses": (service(answers=0, active=Part(), stopped="spec is wrong"), Known({}), "Failed", "Refused",
                        None),
    "somebody else's": (service(mine=False), Known({}), "Failed", "NameTaken", None),
    "going away": (service(deleting=True), Known({}), "Starting", "Starting", None),
}


@pytest.mark.parametrize("what", list(CASES))
def test_each_state_has_its_word_and_nothing_is_done(what: str) -> None:
    seen, known, state, reason, answers = CASES[what]
    found = decide(OFFER, None, MADE, seen, known, NOW)
    assert found.status is not None
    assert found.condition is not None
    assert (found.status.state, found.condition[1], found.status.revision) == (state, reason, answers)
    assert found.actions == ()
    assert found.condition[0] == {"Ready": "True", "Proving": "Unknown"}.get(state, "False")
    assert (found.wake is None) == (state in ("Ready", "Failed") and what != "somebody else's")
    again = decide(OFFER, found.status, MADE, seen, known, NOW)
    assert again == found


@pytest.mark.parametrize(("seen", "uid"), [(None, None), (service(target=1, revisions=(revision(1),)), "uid")])
def test_other_models_are_the_next_revision_whatever_status_was_lost(seen: Service | None, uid: str | None) -> None:
    found = decide(OFFER, None, MADE, seen, Known({}), NOW)
    (action,) = found.actions
    assert isinstance(action, Apply)
    assert (action.revision.models, action.uid) == ({"best": "dpo-2"}, uid)
    assert action.revision.number == (1 if seen is None else 2)
    back = service_of({"metadata": {"name": "r", "uid": "u", "annotations": dict(action.annotations)}}, "u")
    assert back.revisions[-1] == action.revision
    assert back.target == Target(action.revision.number, stamp_of(NOW), {} if seen is None else {"c2": 1})


def test_what_is_applied_twice_is_the_same_and_needs_no_third_time() -> None:
    first = decide(OFFER, None, MADE, None, Known({}), NOW).actions
    assert first == decide(OFFER, ServingStatus(state="Starting", wanted=1), MADE, None, Known({}), NOW).actions
    (action,) = first
    assert isinstance(action, Apply)
    there = service_of({"metadata": {"name": "r", "uid": "u", "annotations": dict(action.annotations),
                                     "ownerReferences": [{"uid": "o"}]}}, "o")
    assert decide(OFFER, None, MADE, there, Known({}), NOW + 5).actions == ()


@pytest.mark.parametrize("made", [Made(False, {}), Made(True, {}, never="best cannot be served: stage dpo is spared")])
def test_a_run_that_has_not_made_its_models_touches_nothing(made: Made) -> None:
    found = decide(OFFER, None, made, service(), Known({"best": GOOD}), NOW)
    assert found.actions == ()
    assert found.status is not None
    assert found.status.revision == 2
    assert (found.status.state == "Failed") == bool(made.never)


def test_a_frozen_world_is_shown_as_it_is_and_not_touched() -> None:
    before = ServingStatus(state="Ready", wanted=2, endpoint="http://x", models=(
        ServedModel(name="best", artifact="dpo-2", proved=True, rows=8),))
    frozen = Known(None, frozen=True)
    calm = decide(None, before, Made(False, {}), service(), frozen, NOW)
    assert calm.status is not None
    assert (calm.status.state, calm.status.models, calm.actions) == ("Ready", before.models, ())
    lost = decide(None, before, Made(False, {}), service(answers=0), frozen, NOW)
    assert lost.status is not None
    assert lost.status.state == "Unhealthy"
    unknown = decide(None, before.model_copy(update={"models": ()}), Made(False, {}), service(), frozen, NOW)
    assert unknown.status is not None
    assert unknown.status.state == "Proving", "what nobody could look up is not called proved"


def test_without_serve_our_service_is_deleted_once_and_nobody_elses() -> None:
    assert decide(None, None, MADE, service(), Known({}), NOW).actions == (Withdraw("r", "uid"),)
    for other in (service(deleting=True), service(mine=False), None):
        assert decide(None, None, MADE, other, Known({}), NOW).actions == ()


def test_a_pin_is_applied_and_says_what_is_newer() -> None:
    pinned = replace(OFFER, pin="1")
    found = decide(pinned, None, MADE, service(), Known({}), NOW)
    (action,) = found.actions
    assert isinstance(action, Apply)
    assert action.revision.number == 1
    assert found.status is not None
    assert "pinned to revision 1; the newest is 2" in (found.status.message or "")
    there = service(target=1, clusters={"c2": 2}, pending=Part("c3", "starting"))
    after = decide(pinned, found.status, MADE, there, Known({}), NOW)
    assert after.actions == ()
    assert after.status is not None
    assert (after.status.revision, after.status.wanted, after.status.state) == (2, 1, "Upgrading")


def test_a_revision_that_answers_already_is_ready_when_one_goes_back_to_it() -> None:
    """Its cluster is still there, as the newest never took over."""
    back = service(target=1, clusters={"c1": 1, "c2": 2}, active=Part("c1"), pending=Part("c2", "failed", "boom"))
    found = decide(replace(OFFER, pin="1"), None, MADE, back, Known({"best": replace(GOOD, cluster="c1")}), NOW)
    assert found.status is not None
    assert (found.status.state, found.status.revision) == ("Ready", 1)


def test_annotations_that_somebody_spoilt_lose_no_service() -> None:
    thing = {"metadata": {"name": "r", "uid": "u", "ownerReferences": [{"uid": "o"}],
                          "annotations": {REVISIONS: '[{"number": "x"}, 3]', TARGET: "[]"}}}
    history = (ServedRevision(number=4, models={}, when=stamp_of(NOW)),)
    found = decide(OFFER, ServingStatus(history=history), MADE, service_of(thing, "o"), Known({}), NOW)
    (action,) = found.actions
    assert isinstance(action, Apply)
    assert (action.revision.number, action.uid) == (5, "u")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(
    inner, max_size=3) | st.dictionaries(st.sampled_from(["number", "serving", "profile", "models", "revision",
                                                          "since", "clusters", "when"]), inner, max_size=5)))
def test_whatever_an_annotation_holds_it_is_read(thing: Any) -> None:
    text = json.dumps(thing)
    found = service_of({"metadata": {"name": "r", "uid": "u", "annotations": {REVISIONS: text, TARGET: text}}}, "o")
    assert all(one.models == dict(one.models) for one in found.revisions)


def test_annotations_come_back_as_they_were_written() -> None:
    known = (revision(1, proved=True), revision(2, retry="x"))
    target = Target(2, stamp_of(NOW), {"c1": 1})
    thing = {"metadata": {"name": "r", "uid": "u", "annotations": annotations_of(known, target)}}
    found = service_of(thing, "o")
    assert (found.revisions, found.target) == (known, target)


@pytest.mark.parametrize(("message", "gist"), [
    (RAISED, "sft (sft-000000000000) is not served: row rows-r1: the prompt has other ids\n  expected: the same ids"),
    ("Failed to update the deployments ['models'].", "Failed to update the deployments ['models']."),
    ("RuntimeError: boom", "boom"),
    ("the store does not answer: s3://x", "the store does not answer: s3://x"),
])
def test_of_rays_words_what_the_error_says_is_left(message: str, gist: str) -> None:
    assert said(message) == gist


def test_kuberays_status_is_understood() -> None:
    application = {"status": "DEPLOY_FAILED", "message": "Failed to update the deployments ['models'].",
                   "serveDeploymentStatuses": {"models": {"status": "DEPLOY_FAILED", "message": "RuntimeError: boom"}}}
    found = service_of({"metadata": {"name": "r", "uid": "u"}, "status": {
        "numServeEndpoints": 2, "observedGeneration": 1,
        "activeServiceStatus": {"rayClusterName": "c1", "applicationStatuses": {"kubealign": {"status": "RUNNING"}}},
        "pendingServiceStatus": {"rayClusterName": "c2", "applicationStatuses": {"kubealign": application}},
        "conditions": [{"type": "Ready", "status": "True", "reason": "NonZeroServeEndpoints"}]}}, "o")
    assert (found.active, found.pending, found.answers, found.mine) == (
        Part("c1", "running"), Part("c2", "failed", "boom"), 2, False)
    refused = service_of({"metadata": {"name": "r", "uid": "u"}, "status": {"conditions": [
        {"type": "Ready", "status": "False", "reason": "ValidationFailed", "message": "name too long"}]}}, "o")
    assert refused.stopped == "name too long"


def test_a_status_from_before_serving_is_read() -> None:
    old = status_of({"status": {"phase": "Succeeded", "conditions": [{
        "type": "Ready", "status": "True", "reason": "Finished", "observedGeneration": 1,
        "lastTransitionTime": stamp_of(NOW)}]}})
    assert old.phase == "Succeeded"
    assert old.serving is None
    assert Status().serving is None
