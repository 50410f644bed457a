"""A Self-Instruct stage: seed tasks -> rounds of requests to a teacher -> new tasks with examples, as rows to train on.

Holds the loop alone: what is asked and read is `generation.bootstrap`, who answers `shared.Asking`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from alignment.config import SelfInstruct
from alignment.context import Outcome, StageContext
from alignment.distributed.generate.shared import Asking, apart, finish, prompts_of, teacher, teacher_digest
from alignment.errors import DataError
from alignment.generation.bootstrap import Bootstrap
from alignment.generation.tasks import Task, seed_task, to_record
from alignment.records import Record


def self_instruct_stage(context: StageContext) -> Outcome:
    """Body of the stages of recipe self_instruct; fills rows/train.jsonl and bad.jsonl in `context.out`.

    Raises:
        ConfigError: a prompt file cannot be used.
        DataError: too few seeds, or no prompt fits.
        StageError: nothing that the teacher said could be kept; bad.jsonl is then in the stage's work folder.
        EndpointStopped: the teacher is an endpoint that cannot be asked any further; what was paid is kept.
    """
    stage = context.stage_as(SelfInstruct)
    texts = prompts_of(stage)
    read, seeds, unfit = _seeds(context, stage)
    state = Bootstrap(stage, seeds, context.run.seed, context.run.scaled(stage.take) or stage.take, texts,
                      teacher_digest(context, stage))
    with teacher(context, stage) as asking:
        _make(asking, state)
    records = apart(context, stage, [
        to_record(task, number, stage.recipe) for task in state.tasks for number in range(len(task.instances))],
        state.bad)
    return finish(context, stage, records, state.bad, asking.took, read=read, unfit=unfit,
                  metrics=_metrics(state, records), facts=_facts(state))


def _seeds(context: StageContext, stage: SelfInstruct) -> tuple[int, list[Task], Counter[str]]:
    """(rows read, seed tasks in the order of the rows, why others cannot be used)."""
    tasks: dict[str, Task] = {}
    unfit: Counter[str] = Counter()
    records = [record for ref in stage.seeds for record in context.rows(ref)]
    for record in records:
        made = seed_task(record)
        if isinstance(made, str):
            unfit[f"seed: {made}"] += 1
        elif made.id in tasks:
            unfit["seed: id of an earlier one"] += 1
        else:
            tasks[made.id] = made
    if len(tasks) < stage.demonstrations:
        raise DataError("too few seed tasks for one request", where=f"stage {stage.name}, seeds",
                        found=f"{len(tasks)} of {len(records)} rows" + (f": {dict(unfit)}" if unfit else ""),
                        expected=f"at least {stage.demonstrations} (demonstrations)")
    return len(records), list(tasks.values()), unfit


def _make(asking: Asking, state: Bootstrap) -> None:
    """Rounds of new tasks, then what kind each is, then its examples."""
    while asks := state.ask():
        kept = len(state.tasks)
        said = asking.round(asks, f"instructions-{state.round + 1}", "or fewer demonstrations, shorter seeds")
        proposed = state.proposed
        state.read(asks, said)
        asking.context.event("round", round=state.round, requests=len(asks), proposed=state.proposed - proposed,
                      kept=len(state.tasks) - kept, pool=len(state.seeds) + len(state.tasks))
    if asks := state.kinds():
        state.read_kinds(asks, asking.answered(asks, "classification"))
    if asks := state.examples():
        state.read_examples(asks, asking.answered(asks, "instances"))


def _metrics(state: Bootstrap, records: Sequence[Record]) -> dict[str, float]:
    tasks = {record.meta["group"] for record in records}
    kinds = [task.is_classification for task in state.tasks if task.id in tasks]
    similar = [task.mean_similar for task in state.tasks if task.id in tasks]
    return {
        "requests": float(state.asked.total()), "rounds": float(state.round), "proposed": float(state.proposed),
        "tasks": float(len(tasks)),
        "kept_share": round(len(tasks) / max(1, state.proposed), 4),
        "classification_share": round(sum(map(bool, kinds)) / max(1, len(kinds)), 4),
        "mean_similar": round(sum(similar) / max(1, len(similar)), 4),
    }


def _facts(state: Bootstrap) -> dict[str, Any]:
    return {"seeds": len(state.seeds), "requests": dict(state.asked), "unclear_kinds": state.unclear}
