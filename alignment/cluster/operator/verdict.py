"""The whole from its stages: gates, phase, conditions, and what is worth an event. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from alignment.cluster.manifests.alignment_run import APPROVE, Condition, Phase, ServingStatus, StageRow, Status
from alignment.cluster.operator.plan import Bound, Plan
from alignment.cluster.operator.serving import Outcome
from alignment.cluster.operator.world import Finished, stamp_of
from alignment.cluster.status.losses import in_words
from alignment.config import judge
from alignment.config.stops import Standing, stages_of, standing_of

AT_WORK = ("Starting", "Queued", "Pending", "Running", "Retrying", "Elsewhere")


@dataclass(frozen=True)
class GateState:
    """How a gate stands: `ahead` while its stage is not finished, `asking` while a person's approval is missing."""

    after: str
    state: Literal["ahead", "asking", "failed", "open"]
    message: str


@dataclass(frozen=True)
class Note:
    """What becomes a Kubernetes Event."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def rounds_now(plan: Plan, artifacts: Mapping[str, Finished]) -> Standing:
    """Which rounds of groups their gates ask for."""
    return standing_of(plan.stops, {stage.name: artifacts.get(stage.key) for stage in plan.stages})


def unjudged_rounds(plan: Plan, rounds: Standing) -> tuple[GateState, ...]:
    """Gates of rounds that can never be judged: they stop the run as any other gate does."""
    return tuple(GateState(group.result, "failed", rounds.broken[group.group]) for group in plan.stops
                 if group.group in rounds.broken)


def gate_state(gate: Bound, plan: Plan, artifacts: Mapping[str, Finished], unneeded: Mapping[str, str] = {},
               ) -> GateState:
    """Hold a gate against the finished artifacts and the approvals; one that asks for a stage which is not needed
    asks for nothing."""
    if spared := [name for name in (gate.after, *(stages_of(gate.aim) if gate.aim else ())) if name in unneeded]:
        return GateState(gate.after, "open", f"{spared[0]} is {unneeded[spared[0]]}")
    finished = {stage.name: artifacts[stage.key] for stage in plan.stages if stage.key in artifacts}
    needed = {gate.after, *(stages_of(gate.aim) if gate.aim else ())}
    missing = [stage.name for stage in plan.stages if stage.name in needed and stage.name not in finished]
    if missing:
        needs = ", ".join(missing)
        return GateState(gate.after, "ahead", f"waits for the gate after {gate.after}, which needs {needs}")
    if gate.aim is None:
        if gate.after in plan.approved:
            return GateState(gate.after, "open", f"{gate.after} is approved")
        together = ",".join(stage.name for stage in plan.stages if stage.name in plan.approved | {gate.after})
        return GateState(gate.after, "asking", f"{gate.after} is finished and waits for approval: kubectl annotate "
                                               f"alignmentrun {plan.name} --overwrite {APPROVE}={together}")
    metrics = {f"{name}.{metric}": value for name, found in finished.items() for metric, value in found.metrics.items()}
    verdict = judge(gate.aim, metrics)
    if verdict.met is None:
        absent = ", ".join(metric for metric in gate.aim.metrics if metric not in metrics)
        return GateState(gate.after, "failed", f"the gate after {gate.after} asks for {gate.aim}, and there is no "
                                               f"finite {absent} among the metrics")
    right = "" if isinstance(gate.aim.right, float) else f" against {verdict.right:g}"
    said = f"{gate.aim} after {gate.after}: {verdict.left:g}{right}"
    return GateState(gate.after, "open" if verdict.met else "failed",
                     f"gate met, {said}" if verdict.met else f"gate not met, {said}")


def conclude(plan: Plan, before: Status, rows: Sequence[StageRow], gates: Sequence[GateState], now: float, *,
             busy: bool) -> Status:
    """The status of the whole.

    Args:
        before: the status that is replaced; times of conditions that stay the same are kept.
        busy: a RayJob is alive, perhaps of a stage that is finished.
    """
    failed = next((gate for gate in gates if gate.state == "failed"), None)
    asking = next((gate for gate in gates if gate.state == "asking"), None)
    broken = next((row for row in rows if row.state == "Failed"), None)
    done = [row for row in rows if row.state in ("Finished", "NotNeeded")]
    at_work = [row for row in rows if row.state in AT_WORK]
    failure = plan.problem or (("GateFailed", failed.message) if failed else None) or (
        ("StageFailed", f"stage {broken.name}: {broken.message}") if broken else None)
    going = not plan.problem and (busy or bool(at_work))
    phase = _phase(plan, len(done) == len(rows), going, failure is not None, asking is not None, bool(done))
    shown = at_work or ([broken] if broken and not failed else [])
    ended = (before.ended or stamp_of(now)) if phase in ("Failed", "Succeeded") else None
    conditions = _conditions(plan, phase, failure, asking, at_work, f"{len(done)} of {len(rows)} stages")
    return Status(
        observed_generation=plan.generation, phase=phase,
        stage=",".join(row.name for row in shown) or (failed or asking or GateState("", "open", "")).after or None,
        finished=f"{len(done)}/{len(rows)}" if rows else None, store=plan.store or before.store,
        started=before.started or (stamp_of(now) if at_work else None), ended=ended,
        retried=before.retried if plan.problem else plan.retry,  # a spec that is refused is given no new start
        conditions=tuple(_kept(condition, plan.generation, before, now) for condition in conditions),
        stages=tuple(rows),
    )


def with_serving(after: Status, served: Outcome, before: Status, now: float) -> Status:
    """`after`, with how the run's models are served; it is not Ready before they are."""
    if served.condition is None:
        return after.model_copy(update={"serving": None, "conditions": tuple(
            condition for condition in after.conditions if condition.type != "Serving")})
    status, reason, message = served.condition
    generation = after.observed_generation
    conditions = []
    for condition in after.conditions:
        if condition.type == "Ready" and after.phase == "Succeeded" and status != "True":
            why = f"{condition.message.partition(';')[0]}; not served as it should be: {message or reason}"
            condition = _kept(("Ready", "False", "NotServed", why), generation, before, now)
        if condition.type != "Serving":
            conditions.append(condition)
    conditions.append(_kept(("Serving", status, reason, message), generation, before, now))
    return after.model_copy(update={"serving": served.status, "conditions": tuple(conditions)})


def stopped(after: Status, before: Status, reason: str, message: str) -> Status:
    """`after`, when the world could not be seen: as it was, and why it does not go on."""
    moment = next(condition for condition in after.conditions if condition.type == "Progressing")
    since = next((condition.last_transition_time for condition in before.conditions
                  if (condition.type, condition.status) == ("Progressing", "Unknown")), moment.last_transition_time)
    stop = moment.model_copy(update={"status": "Unknown", "reason": reason, "message": message,
                                     "last_transition_time": since})
    if before.conditions:
        after = after.model_copy(update={"phase": before.phase, "stage": before.stage, "ended": before.ended,
                                         "conditions": before.conditions})
    return after.model_copy(update={"conditions": tuple(
        stop if condition.type == "Progressing" else condition for condition in after.conditions)})


def reworded(before: Status, after: Status) -> bool:
    """Whether nothing but the words of messages that were there before differs."""
    return _wordless(before, after) == _wordless(after, before)


def notes(before: Status, after: Status) -> tuple[Note, ...]:
    """What changed and is worth an event."""
    found: list[Note] = []
    old = {row.name: row for row in before.stages}
    for row in after.stages:
        was = old.get(row.name)
        known = {loss.key for loss in (was.losses if was is not None else None) or ()}
        found += [Note("Warning", "PodLost", f"stage {row.name} lost {in_words(loss.pod, loss.node, loss.reason)}")
                  for loss in row.losses or () if loss.key not in known]
        if was is not None and (was.state, was.message, was.key) == (row.state, row.message, row.key):
            continue
        text = f"stage {row.name}" + (f" (RayJob {row.ray_job})" if row.ray_job else "")
        text += f": {row.message}" if row.message else ""
        changed = was is None or (was.state, was.key) != (row.state, row.key)
        if row.state in ("Retrying", "Failed") and changed:
            found.append(Note("Warning", f"Stage{row.state}", text))
        elif row.state in ("Pending", "Starting") and row.message:
            found.append(Note("Warning", "StagePending", text))
        elif row.state in ("Starting", "Running", "Elsewhere", "Finished", "NotNeeded", "Suspended") and changed:
            found.append(Note("Normal", f"Stage{row.state}", text))
    told = {(condition.type, condition.status, condition.message) for condition in before.conditions}
    for condition in after.conditions:
        news = (condition.type, condition.status, condition.message) not in told and condition.status == "True"
        if news and condition.type == "GateWaiting":
            found.append(Note("Normal", condition.reason, condition.message))
        elif news and condition.type == "Failed" and condition.reason != "StageFailed":
            found.append(Note("Warning", condition.reason, condition.message))
    if after.phase == "Succeeded" and before.phase != "Succeeded":
        found.append(Note("Normal", "Succeeded", f"all stages are finished in {after.store}"))
    return (*found, *_of_serving(before.serving, after.serving))


def _of_serving(before: ServingStatus | None, after: ServingStatus | None) -> Iterator[Note]:
    """What changed in how the run's models are served."""
    if after is None:
        if before is not None and before.wanted is not None:
            yield Note("Normal", "ServingWithdrawn", f"revision {before.wanted} is not served any more: the run has no "
                                                     "`serve`")
        return
    was = before or ServingStatus()
    models = ", ".join(f"{model.name}={model.artifact}" for model in after.models)
    if after.wanted != was.wanted and after.wanted is not None:
        back = was.wanted is not None and after.wanted < was.wanted
        yield Note("Normal", "ServingRolledBack" if back else "ServingRevision",
                   f"revision {after.wanted} is to be served"
                   + (f" in place of {was.wanted}" if was.wanted is not None else "") + f": {models}")
    if after.state != was.state or after.wanted != was.wanted:
        if after.state == "Ready":
            yield Note("Normal", "ServingReady", f"revision {after.wanted} is served at {after.endpoint}: {models}")
        elif after.state in ("Failed", "Unhealthy"):
            yield Note("Warning", f"Serving{after.state}", after.message or "")


def _wordless(status: Status, other: Status) -> Status:
    """A status without those messages that the other has in the same place, in whatever words."""
    said = {row.name for row in other.stages if row.message}
    spoken = {condition.type for condition in other.conditions if condition.message}
    serving = status.serving
    if serving is not None and serving.message and other.serving is not None and other.serving.message:
        # A reason where there was none is news: `revision 2 starts`, then `revision 2 starts: no node has enough ...`.
        serving = serving.model_copy(update={"message": ":" if ": " in serving.message else ""})
    return status.model_copy(update={
        "serving": serving,
        "stages": tuple(row.model_copy(update={"message": ""}) if row.message and row.name in said else row
                        for row in status.stages),
        "conditions": tuple(part.model_copy(update={"message": ""}) if part.message and part.type in spoken else part
                            for part in status.conditions)})


def _phase(plan: Plan, done: bool, going: bool, failed: bool, asking: bool, begun: bool) -> Phase:
    if plan.problem:
        return "Failed"
    if plan.suspend and not done:
        return "Suspended"
    if going:
        return "Running"
    if failed:
        return "Failed"
    if asking:
        return "Waiting"
    return "Succeeded" if done else "Running" if begun else "Pending"


def _conditions(plan: Plan, phase: Phase, failure: tuple[str, str] | None, asking: GateState | None,
                at_work: Sequence[StageRow], count: str) -> list[tuple[str, str, str, str]]:
    """(type, status, reason, message) of each."""
    doing = "; ".join(f"{row.name} {row.state}" + (f": {row.message}" if row.message else "") for row in at_work)
    idle = {"Waiting": "GateWaiting", "Pending": "NotStarted", "Running": "Working"}.get(phase, phase)
    working = ("True", "Working", doing or "the last RayJob ends") if phase == "Running" else ("False", idle, count)
    return [
        ("Ready", "True" if phase == "Succeeded" else "False", "Finished" if phase == "Succeeded" else idle,
         f"{count} finished"),
        ("Progressing", *working),
        ("Failed", "True", *failure) if failure else ("Failed", "False", "NoFailure", ""),
        ("Suspended", "True" if plan.suspend else "False", "Asked" if plan.suspend else "NotAsked", ""),
        ("GateWaiting", "True" if asking else "False", "ApprovalNeeded" if asking else "NoGate",
         asking.message if asking else ""),
    ]


def _kept(found: tuple[str, str, str, str], generation: int, before: Status, now: float) -> Condition:
    """A condition with the time of its last change of status, and the generation it speaks of."""
    kind, status, reason, message = found
    old = next((condition for condition in before.conditions if condition.type == kind), None)
    since = old.last_transition_time if old is not None and old.status == status else stamp_of(now)
    return Condition.model_validate({"type": kind, "status": status, "reason": reason, "message": message,
                                     "observed_generation": generation, "last_transition_time": since})
