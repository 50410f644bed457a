"""The result of a group of rounds: the model of the last round that met its gate, as an artifact of its own.

Later stages read it and need not know which round it was. Measures nothing: the numbers are those in the manifests of
the rounds' stages. Computes with no model.
"""

from __future__ import annotations

from alignment.artifacts.bring import taken_over
from alignment.config import Choose
from alignment.config.stops import CHOSEN, passed, unjudged
from alignment.context import Outcome, StageContext
from alignment.errors import StageError


def choose_stage(context: StageContext) -> Outcome:
    """Publish the chosen model, with its facts and why it is this one.

    Raises:
        StageError: a gate cannot be judged, since a stage has no finite number for it.
    """
    stage = context.stage_as(Choose)
    metrics = {name: artifact.manifest.metrics for name, artifact in context.inputs.items()}
    number, verdicts = passed(stage.held_to(), metrics)
    gates = []
    for index, verdict in enumerate(verdicts, start=1):
        if verdict.met is None:
            raise StageError(unjudged(verdict, f"round {index}"), where=f"stage {stage.name}",
                             expected="a finite number", hint="the round's own stages say why there is none")
        seen = {"round": index, "gate": str(verdict.aim), "found": verdict.left, "met": verdict.met}
        gates.append(seen)
        context.event("gate", **seen)
    name = stage.models[number]
    chosen = context.inputs[name]
    taken_over(chosen.path() / "model", context.out / "model")
    context.event("chosen", round=number, model=name, artifact=chosen.key)
    return Outcome(metrics={CHOSEN: float(number), "rounds": float(len(verdicts))},
                   facts={**chosen.manifest.facts, "chosen": {"stage": name, "artifact": chosen.key}, "gates": gates})
