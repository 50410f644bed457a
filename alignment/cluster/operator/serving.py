"""All that the operator decides about serving: what the run has made, its RayService as it is -> how serving stands and
what to do.

Pure, as reconcile is. Models and settings that differ from the newest revision are the next one; the RayService is
applied when the revision that is wanted, or the list of them, is another than it says of itself, and never else. What
serves goes on while the run is at work, has failed or is suspended; a pin is obeyed at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from alignment.cluster.manifests.alignment_run import ServedModel, ServedRevision, ServingState, ServingStatus
from alignment.cluster.operator.plan import Offer
from alignment.cluster.operator.served import Part, Proof, Revision, Service, Target, annotations_of
from alignment.cluster.operator.world import seconds_of, stamp_of
from alignment.config.profile import ServePods

KEPT = 10
"""Revisions that are remembered."""
ROOM = 180_000
"""Characters of the annotations, of which Kubernetes takes 256 KiB in all."""
AGAIN = 15.0
"""Seconds until what is not settled is looked at again, where no word of a watch comes first."""


@dataclass(frozen=True)
class Apply:
    """Apply the RayService of a revision. `uid`: of the one that is there, None where there is none."""

    revision: Revision
    annotations: Mapping[str, str]
    uid: str | None


@dataclass(frozen=True)
class Withdraw:
    """Delete the RayService; one with this uid only."""

    name: str
    uid: str


@dataclass(frozen=True)
class Made:
    """How far the run is. `keys`: of the artifacts, by stage; `why`: not all is made, or a gate is closed; `never`: a
    model that will not be made, and why."""

    done: bool
    keys: Mapping[str, str]
    why: str = ""
    never: str = ""


@dataclass(frozen=True)
class Known:
    """What was found out beside the RayService.

    Attributes:
        proofs: of the wanted revision's models, by name; None: the store could not be asked.
        trouble: why its pods do not run.
        hindered: (reason, message) why the RayService cannot be applied now.
        frozen: nothing may be decided: the spec is refused, or the store cannot be read.
    """

    proofs: Mapping[str, Proof] | None = field(default_factory=dict)
    trouble: str = ""
    hindered: tuple[str, str] | None = None
    frozen: bool = False


NOTHING = Known()


@dataclass(frozen=True)
class Outcome:
    """`condition`: (status, reason, message) of Serving; None, with no status, for a run that is not served."""

    status: ServingStatus | None = None
    condition: tuple[str, str, str] | None = None
    actions: tuple[Apply | Withdraw, ...] = ()
    wake: float | None = None


@dataclass(frozen=True)
class _Stand:
    """How the wanted revision stands."""

    state: ServingState
    reason: str
    message: str = ""
    settled: bool = False


def decide(offer: Offer | None, before: ServingStatus | None, made: Made, service: Service | None, known: Known,
           now: float, retry: str = "") -> Outcome:
    """Decide.

    Args:
        offer: None: the run is not to be served (or, `known.frozen`, nobody knows).
        before: as last written; None will do.
        service: the RayService of the run's name, whoever owns it.
        retry: the retry annotation.
    """
    mine = service if service is not None and service.mine and not service.deleting else None
    if offer is None and not known.frozen:
        return Outcome(actions=(Withdraw(mine.name, mine.uid),) if mine is not None else ())
    if offer is None and before is None:
        return Outcome()
    revisions = mine.revisions if mine is not None else ()
    if offer is not None and not known.frozen:
        revisions = _with_newest(offer, revisions, before, made, now, retry)
    pinned, wrong = _pin(offer, before, revisions)
    target = _target(revisions, pinned, wrong, mine, known.frozen)
    action = None
    if target is not None and not known.frozen and not wrong and (service is None or mine is not None):
        action = _apply(revisions, target, mine, now)
    blocked = known.hindered if action is not None else None
    models = _models(target, mine, known, before)
    proved = _proved(models)
    stand = _obstacle(made, service, blocked, wrong) or _stand(target, made, mine, models, known, now,
                                                                changing=action is not None)
    answering = mine.answering if mine is not None else None
    words = "; ".join(part for part in (stand.message, _of_the_old(stand, answering, target),
                                        _of_pin(pinned, revisions)) if part)
    history = before.history if before is not None else ()
    if mine is not None:
        history = tuple(ServedRevision(number=one.number, models=one.models, when=one.when, proved=(
            proved if target is not None and one.number == target.number else one.proved)) for one in mine.revisions)
    status = ServingStatus(
        state=stand.state, endpoint=offer.endpoint if offer is not None else before.endpoint if before else None,
        revision=answering, wanted=target.number if target is not None else None, pinned=pinned,
        replicas=mine.answers if mine is not None else None, models=models, message=words or None, history=history,
    )
    actions = (action,) if action is not None and blocked is None else ()
    fine = {"Ready": "True", "Proving": "Unknown"}.get(stand.state, "False")
    return Outcome(status, (fine, stand.reason, words), actions, None if stand.settled and not actions else now + AGAIN)


def taken(name: str) -> tuple[str, str]:
    """(reason, message) where somebody else has a RayService of this name."""
    return "NameTaken", (f"a RayService {name} is there already and is not this run's: delete it, or give the run "
                         "another name")


# --- which revision ---


def _with_newest(offer: Offer, revisions: tuple[Revision, ...], before: ServingStatus | None, made: Made, now: float,
                 retry: str) -> tuple[Revision, ...]:
    """The revisions, and the next one where what the run has made differs from the newest, or where that could not be
    served and a person asks for another start."""
    if not made.done or made.never:
        return revisions
    models = {name: made.keys[stage] for name, stage in offer.models.items()}
    content = {**offer.content, "serving": {**offer.content["serving"], "models": models}}
    newest = revisions[-1] if revisions else None
    was = before if newest is not None and before is not None and before.wanted == newest.number else None
    if newest is not None and newest.content == content:
        failed = was is not None and was.state == "Failed" and was.revision != newest.number and was.pinned is None
        if not failed or retry in ("", newest.retry):
            return revisions
    # Of a RayService that somebody deleted the numbers are in the status: another of the same number is not the same.
    last = max((one.number for one in (revisions or (before.history if before is not None else ()))), default=0)
    old = (*revisions[:-1], replace(newest, proved=_proved(was.models) if was is not None else newest.proved)
           ) if newest is not None else ()
    return (*old, Revision(last + 1, content, stamp_of(now), retry=retry))


def _pin(offer: Offer | None, before: ServingStatus | None, revisions: Sequence[Revision]) -> tuple[int | None, str]:
    """The pinned revision, and what is wrong with the pin."""
    if offer is None:
        return (before.pinned if before is not None else None), ""
    text = offer.pin.strip()
    if not text:
        return None, ""
    if text.isdecimal() and any(one.number == int(text) for one in revisions):
        return int(text), ""
    known = ", ".join(str(one.number) for one in revisions)
    return None, (f"the revision {text!r} that kubealign.dev/serve asks for is not known, so nothing is changed: "
                  + (f"it has {known}; " if known else "there is none yet; ") + "kubealign rollback RUN --latest")


def _target(revisions: Sequence[Revision], pinned: int | None, wrong: str, mine: Service | None,
            frozen: bool) -> Revision | None:
    if wrong or frozen:
        return mine.revision(mine.target.number) if mine is not None and mine.target is not None else None
    if pinned is not None:
        return next(one for one in revisions if one.number == pinned)
    return revisions[-1] if revisions else None


def _apply(revisions: tuple[Revision, ...], target: Revision, mine: Service | None, now: float) -> Apply | None:
    """What to apply; None where the RayService is of this revision and knows them all."""
    if mine is None or mine.target is None:
        return Apply(target, annotations_of(_kept(revisions, {target.number}), Target(target.number, stamp_of(now))),
                     mine.uid if mine is not None else None)
    same = mine.target.number == target.number
    if same and mine.revisions == revisions:
        return None
    clusters = {part.cluster: number for part in (mine.active, mine.pending)
                if (number := mine.revision_of(part)) is not None}
    of = mine.target if same else Target(target.number, stamp_of(now), clusters)
    if mine.revisions != revisions:
        revisions = _kept(revisions, {target.number, mine.answering})
    return Apply(target, annotations_of(revisions, of), mine.uid)


def _kept(revisions: tuple[Revision, ...], needed: set[int | None]) -> tuple[Revision, ...]:
    """The last of them, as many as there is room for, and those that are needed."""
    kept = [one for one in revisions[:-KEPT] if one.number in needed] + list(revisions[-KEPT:])
    while sum(map(len, annotations_of(tuple(kept), Target(0, "")).values())) > ROOM:
        spare = next((one for one in kept[:-1] if one.number not in needed), None)
        if spare is None:
            break
        kept.remove(spare)
    return tuple(kept)


# --- how it stands ---


def _obstacle(made: Made, service: Service | None, blocked: tuple[str, str] | None, wrong: str) -> _Stand | None:
    """What keeps the operator from doing what is wanted."""
    if wrong:
        return _Stand("Failed", "UnknownRevision", wrong, settled=True)
    if service is not None and not service.mine:
        return _Stand("Failed", *taken(service.name))
    if blocked is not None:
        return _Stand("Failed", *blocked)
    if service is not None and service.deleting:
        return _Stand("Starting", "Starting", f"RayService {service.name} is going away")
    return _Stand("Failed", "NotMade", made.never, settled=True) if made.never else None


def _stand(target: Revision | None, made: Made, mine: Service | None, models: Sequence[ServedModel], known: Known,
           now: float, *, changing: bool) -> _Stand:
    """How the wanted revision stands, by its Ray cluster."""
    if target is None:
        return _Stand("Waiting", "NotFinished", made.why, settled=True)
    number = target.number
    state: ServingState = "Upgrading" if mine is not None and mine.answering is not None else "Starting"
    if mine is None or changing:
        return _Stand(state, state, f"revision {number} begins")
    part = mine.part_of(number)
    refuted = next((model for model in models if model.proved is False and model.message), None)
    if refuted is not None:
        return _Stand("Failed", "ProofFailed", f"revision {number}: {refuted.name} ({refuted.artifact}) is not what "
                                               f"was recorded: {refuted.message}", settled=True)
    if mine.stopped:
        return _Stand("Failed", "Refused", f"KubeRay goes no further with revision {number}: {mine.stopped}",
                      settled=True)
    if mine.answering == number:
        return _answers(target, part, models)
    why = known.trouble or part.message
    if part.state == "failed":
        return _Stand("Failed", "StartFailed", f"revision {number} could not be started: "
                                               f"{part.message or why or 'Ray gives no reason'}", settled=True)
    because = f": {why}" if why else ""
    if part.cluster and part is mine.active:
        return _Stand("Unhealthy", "Unhealthy", f"no replica of revision {number} answers{because}")
    limit = target.said_of("profile", "cluster", "serve", "start_within") or ServePods().start_within
    if mine.target is not None and now >= seconds_of(mine.target.since) + limit:
        return _Stand("Failed", "Late", f"revision {number} is not up after {limit} s "
                                        f"(cluster.serve.start_within){because}")
    return _Stand(state, state, f"revision {number} starts{because}")


def _answers(target: Revision, part: Part, models: Sequence[ServedModel]) -> _Stand:
    """Of a revision that requests are sent to."""
    if part.state == "failed":
        return _Stand("Unhealthy", "Unhealthy", part.message or f"a replica of revision {target.number} is not well")
    if target.said_of("serving", "serve", "unproved"):
        return _Stand("Ready", "Unproved", settled=True)
    lacking = ", ".join(model.name for model in models if not model.proved)
    if not lacking:
        return _Stand("Ready", "Proved", settled=True)
    return _Stand("Proving", "ProofUnseen", f"revision {target.number} answers, and no proof of {lacking} by its "
                                            "replicas is seen in the store yet")


def _models(target: Revision | None, mine: Service | None, known: Known,
            before: ServingStatus | None) -> tuple[ServedModel, ...]:
    """The wanted revision's models with their proofs, which count where replicas of its present Ray cluster made them;
    as they were before where the store could not be asked."""
    if target is None:
        return ()
    was = {model.name: model for model in before.models} if before is not None and (
        before.wanted == target.number) else {}
    current = mine is not None and mine.target is not None and mine.target.number == target.number
    cluster = mine.part_of(target.number).cluster if mine is not None and current else ""
    rows = []
    for name, key in target.models.items():
        row, proof = ServedModel(name=name, artifact=key), (known.proofs or {}).get(name)
        if known.proofs is None and current and name in was and was[name].artifact == key:
            row = was[name]
        elif proof is not None and cluster and proof.cluster == cluster:
            row = ServedModel(name=name, artifact=key, proved=proof.proved, rows=proof.rows, most_off=proof.most_off,
                              message=proof.problem)
        rows.append(row)
    return tuple(rows)


def _proved(models: Sequence[ServedModel]) -> bool | None:
    """True: all are; False: one is refuted; None: something is not known."""
    outcomes = [model.proved for model in models]
    return False if False in outcomes else True if outcomes and None not in outcomes else None


def _of_the_old(stand: _Stand, answering: int | None, target: Revision | None) -> str:
    """That what serves goes on, where that is not what is wanted."""
    other = target is None or answering != target.number or stand.reason in ("NotMade", "UnknownRevision", "Refused")
    return f"revision {answering} goes on serving" if answering is not None and other else ""


def _of_pin(pinned: int | None, revisions: Sequence[Revision]) -> str:
    if pinned is None:
        return ""
    newest = revisions[-1].number if revisions else pinned
    return f"pinned to revision {pinned}; " + (f"the newest is {newest}" if newest != pinned else "it is the newest")
