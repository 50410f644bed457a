"""All that the operator decides: what is wanted and what is seen -> the status to write and what to do.

Pure: no clock, no network, no memory. What it says may be done late, twice or not at all; the next look at the
world then says what is left. The status is written before anything is done, so that no failure is counted twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from alignment.cluster.manifests.alignment_run import StageRow, State, Status
from alignment.cluster.manifests.labels import job_name
from alignment.cluster.operator.plan import Plan, PlannedStage
from alignment.cluster.operator.rows import Delete, Settled, carried, settle, unneeded
from alignment.cluster.operator.served import Service
from alignment.cluster.operator.serving import NOTHING, Apply, Known, Made, Withdraw, decide
from alignment.cluster.operator.verdict import (
    GateState,
    Note,
    conclude,
    gate_state,
    notes,
    rounds_now,
    stopped,
    unjudged_rounds,
    with_serving,
)
from alignment.cluster.operator.world import Child, Finished, seconds_of
from alignment.config.stops import Standing


@dataclass(frozen=True)
class Create:
    """Create a stage's RayJob of this name."""

    stage: str
    attempt: int
    name: str


@dataclass(frozen=True)
class Remove:
    """Delete the AlignmentRun itself: its time to live is over."""


Action = Create | Delete | Remove | Apply | Withdraw


@dataclass(frozen=True)
class Decision:
    """The status to write, then what to do in this order; `wake`: when to look again, at latest (None: no hurry)."""

    status: Status
    actions: tuple[Action, ...] = ()
    notes: tuple[Note, ...] = ()
    wake: float | None = None


@dataclass(frozen=True)
class Hindrance:
    """What kept the shell from seeing or doing something.

    Attributes:
        stop: (reason, message) when the store or the RayJobs cannot be read, so that nothing may be decided.
        refused: RayJob name -> until when not to try it again, and why the API server would not make it.
        held: key -> who is at it, of artifacts that are not finished; that may be one of the run's own RayJobs.
    """

    stop: tuple[str, str] | None = None
    refused: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    held: Mapping[str, str] = field(default_factory=dict)


def wanted(plan: Plan, artifacts: Mapping[str, Finished]) -> tuple[PlannedStage, ...]:
    """Stages to look up in the store next: those not known to be finished whose inputs all are, or are not needed."""
    finished = {stage.name for stage in plan.stages if stage.key in artifacts}
    had = finished | rounds_now(plan, artifacts).unneeded.keys()
    return tuple(stage for stage in plan.stages if stage.name not in finished and had.issuperset(stage.inputs))


def reconcile(plan: Plan, status: Status, children: Sequence[Child], artifacts: Mapping[str, Finished], now: float,
              hindrance: Hindrance = Hindrance(), service: Service | None = None, known: Known = NOTHING) -> Decision:
    """Decide.

    Args:
        plan: the AlignmentRun's spec, prepared, or its problem.
        status: as last written; an empty one will do.
        children: RayJobs with the run's label, and any that has a name which the run needs.
        artifacts: finished artifacts by key.
        now: seconds since the epoch.
        service: the RayService of the name that the run's has.
        known: what was found out beside it.
    """
    anew = plan.retry != status.retried or status.observed_generation not in (0, plan.generation)
    before = {row.name: row for row in status.stages}
    if plan.problem is not None or hindrance.stop is not None:
        # Nothing is started and nothing is stopped: what runs was wanted once, and may be again.
        rows = tuple(carried(before.get(stage.name), stage, anew) for stage in plan.stages) or status.stages
        after = conclude(plan, status, rows, (), now, busy=False)
        if plan.problem is None and hindrance.stop is not None:
            after = stopped(after, status, *hindrance.stop)
        served = decide(plan.offer, status.serving, Made(False, {}), service, replace(known, frozen=True), now)
        after = with_serving(after, served, status, now)
        return Decision(after, notes=notes(status, after))
    rounds = rounds_now(plan, artifacts)
    gates = (*(gate_state(gate, plan, artifacts, rounds.unneeded) for gate in plan.gates),
             *unjudged_rounds(plan, rounds))
    mine = list({child.uid: child for child in children if child.mine}.values())
    settled = {}
    deletes: list[Delete] = []
    strays = mine
    for stage in plan.stages:
        own = [child for child in mine
               if child.stage == stage.name and child.name == name_of(plan, stage, child.attempt)]
        strays = [child for child in strays if child not in own]
        row = carried(before.get(stage.name), stage, anew)
        settled[stage.name] = (
            unneeded(row, own, rounds.unneeded[stage.name])
            if stage.name in rounds.unneeded and stage.key not in artifacts
            else settle(plan, stage, row, own, artifacts.get(stage.key), now))
        deletes += settled[stage.name].deletes
    deletes += [Delete(child.name, child.uid, "no stage of the run asks for it") for child in strays
                if not child.deleting]
    busy = sum(child.live for child in mine)
    rows, creates = _start(plan, settled, _obstacles(plan, artifacts, gates, strays, rounds),
                           frozenset(child.name for child in children), busy, hindrance)
    after = conclude(plan, status, rows, gates, now, busy=busy > 0)
    wake = [look.wake for look in settled.values() if look.wake is not None]
    held = {create.name: hindrance.refused[create.name][0] for create in creates
            if now < hindrance.refused.get(create.name, (0.0, ""))[0]}
    wake += held.values()
    served = decide(plan.offer, status.serving, _made(plan, after, artifacts), service, known, now, plan.retry)
    after = with_serving(after, served, status, now)
    wake += [served.wake] if served.wake is not None else []
    actions: tuple[Action, ...] = (*deletes, *(create for create in creates if create.name not in held),
                                   *served.actions)
    if after.ended is not None and plan.ttl is not None:
        if seconds_of(after.ended) + plan.ttl <= now:
            actions = (Remove(),)
        wake.append(seconds_of(after.ended) + plan.ttl)
    return Decision(after, actions, notes(status, after), min(wake, default=None))


def _made(plan: Plan, after: Status, artifacts: Mapping[str, Finished]) -> Made:
    """What of the run can be served."""
    if plan.offer is None:
        return Made(False, {})
    keys = {stage.name: stage.key for stage in plan.stages if stage.key in artifacts}
    if after.phase != "Succeeded":
        return Made(False, keys, f"the run has to succeed first; it is {after.phase}, {after.finished} stages finished")
    said = {row.name: row.message for row in after.stages}
    return Made(True, keys, never=next((f"{name} cannot be served: stage {stage} is {said[stage]}"
                                        for name, stage in plan.offer.models.items() if stage not in keys), ""))


_MAKING: tuple[State, ...] = ("Starting", "Queued", "Pending", "Running", "Elsewhere")


def name_of(plan: Plan, stage: PlannedStage, attempt: int) -> str:
    """The one name that an attempt at a stage may have."""
    return job_name(plan.name, stage.name, stage.digest, attempt)


def _start(
    plan: Plan, settled: Mapping[str, Settled], obstacles: Mapping[str, tuple[State, str]], taken: frozenset[str],
    busy: int, hindrance: Hindrance,
) -> tuple[tuple[StageRow, ...], tuple[Create, ...]]:
    """Begin what is ready, in the run's order, as long as there is room. Of stages with one key, one makes it."""
    rows, creates = [], []
    making = {stage.key: stage.name for stage in plan.stages if settled[stage.name].row.state in _MAKING}
    for stage in plan.stages:
        row = settled[stage.name].row
        twin = making.get(stage.key, stage.name)
        if settled[stage.name].ready and stage.name in obstacles:
            row = _waiting(row, *obstacles[stage.name])
        elif settled[stage.name].ready and twin != stage.name:
            row = _waiting(row, "Waiting", f"waits for {twin}, which makes the same")
        elif settled[stage.name].ready and stage.key in hindrance.held and (
                not row.failures or row.state == "Elsewhere"):
            # After a failure it is most likely its own last attempt that still seems to be at it; pods then find out.
            making[stage.key] = stage.name
            row = _waiting(row, "Elsewhere", hindrance.held[stage.key])
        elif settled[stage.name].ready and busy >= plan.parallel:
            row = _waiting(row, "Waiting", f"waits for a free place (parallel: {plan.parallel})")
        elif settled[stage.name].ready:
            busy += 1
            making[stage.key] = stage.name
            # A name may be taken by a run whose name starts alike and that makes the same; its lease in the store
            # keeps the two from doing the work twice.
            attempts = count(row.tries if row.state == "Starting" else row.tries + 1)
            attempt = next(number for number in attempts if name_of(plan, stage, number) not in taken)
            name = name_of(plan, stage, attempt)
            creates.append(Create(stage.name, attempt, name))
            row = row.model_copy(update={"state": "Starting", "tries": attempt, "ray_job": name, "retry_at": None,
                                         "message": hindrance.refused.get(name, (0.0, None))[1]})
        rows.append(row)
    return tuple(rows), tuple(creates)


def _obstacles(plan: Plan, artifacts: Mapping[str, Finished], gates: Sequence[GateState],
               strays: Sequence[Child], rounds: Standing) -> dict[str, tuple[State, str]]:
    """What keeps each stage from starting: a RayJob from before an edit, inputs that are missing, a gate."""
    missing = {stage.name for stage in plan.stages if stage.key not in artifacts} - rounds.unneeded.keys()
    order = [stage.name for stage in plan.stages]
    found: dict[str, tuple[State, str]] = {}
    for place, stage in enumerate(plan.stages):
        left = [child.name for child in strays if child.stage == stage.name and child.live]
        needs = [name for name in stage.inputs if name in missing]
        closed = [gate.message for gate in gates if gate.state != "open" and order.index(gate.after) < place]
        if left:
            found[stage.name] = ("Waiting", f"waits until RayJob {left[0]}, from before an edit, is gone")
        elif needs:
            found[stage.name] = ("Waiting", f"waits for {', '.join(needs)}")
        elif stage.name in rounds.waiting:
            found[stage.name] = ("Waiting", rounds.waiting[stage.name])
        elif closed:
            found[stage.name] = ("Held", closed[0])
    return found


def _waiting(row: StageRow, state: State, message: str) -> StageRow:
    return row.model_copy(update={"state": state, "message": message, "retry_at": None})
