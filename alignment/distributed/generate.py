"""A generate stage: seed tasks -> rounds of requests to a teacher -> new tasks with examples, as rows to train on.

Holds the loop alone: what is asked and read is `generation.bootstrap`, who answers `generation.asking`, and batches are
made by batches.py, so that answers of an earlier attempt are not asked for again. Writes rows/train.jsonl and
bad.jsonl, every row with what made it. Launched by the pipeline or by ray_jobs/generate.py.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignment.artifacts import RowCounts
from alignment.config import SelfInstruct
from alignment.config.prompts import read_prompt
from alignment.context import Outcome, StageContext
from alignment.data.overlap import find_overlap
from alignment.distributed.batches import Maker, make_parts, plan
from alignment.errors import DataError, StageError
from alignment.generation.asking import TOO_LONG, Ask, AskBatch, Part, Said
from alignment.generation.bootstrap import Bad, Bootstrap
from alignment.generation.tasks import Task, seed_task, to_record
from alignment.inference.generator import Generator, open_engine
from alignment.inference.requests import batches
from alignment.inference.usage import Tally, budgets, endpoint_facts, engine_facts
from alignment.records import Record, write_records

EXAMPLES = 3
"""Refused texts that an error, the manifest and the report show."""


@dataclass
class Took:
    """What the teacher's answers took, over all steps and attempts.

    Attributes:
        used: of each answer and failure of an endpoint.
        engines: who answered, of each batch.
    """

    tally: Tally
    tokens: int = 0
    seconds: float = 0.0
    answers: int = 0
    finished: int = 0
    used: list[dict[str, Any]] = field(default_factory=list)
    engines: list[dict[str, Any]] = field(default_factory=list)

    def add(self, part: Part) -> str:
        """Count one batch; returns what progress says beside."""
        tokens, used = sum(one.tokens for one in part.said), [one.usage for one in part.said if one.usage is not None]
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + part.seconds
        self.answers += sum(one.refused is None for one in part.said)
        self.finished += sum(one.refused is None and one.finished for one in part.said)
        self.used += used
        self.engines += [part.engine] if part.engine else []
        return self.tally.add(tokens, part.seconds, used)


def generate_stage(context: StageContext) -> Outcome:
    """Body of the stages of kind generate; fills rows/train.jsonl and bad.jsonl in `context.out`.

    Raises:
        ConfigError: a prompt file cannot be used.
        DataError: too few seeds, or no prompt fits.
        StageError: nothing that the teacher said could be kept; bad.jsonl is then in the stage's work folder.
        EndpointStopped: the teacher is an endpoint that cannot be asked any further; what was paid is kept.
    """
    stage = context.stage_as(SelfInstruct)
    texts = {prompt.step: read_prompt(prompt, f"stage {stage.name}, prompts.{prompt.step}")
             for prompt in stage.prompt_files()}
    read, seeds, unfit = _seeds(context, stage)
    state = Bootstrap(stage, seeds, context.run.seed, context.run.scaled(stage.take) or stage.take, texts,
                      context.inputs[stage.teacher].manifest.digest)
    took = Took(Tally(budgets(context, [stage.teacher])))
    with open_engine(context, stage.teacher) as engine:
        _make(context, stage, state, engine, took)
    records = _apart(context, stage, state, [
        to_record(task, number, stage.recipe) for task in state.tasks for number in range(len(task.instances))])
    bad = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in (one.line() for one in state.bad))
    bad_file = context.work / "bad.jsonl"
    bad_file.write_text(bad, encoding="utf-8", newline="\n")
    if not records:
        raise StageError("nothing that the teacher said could be kept", where=f"stage {stage.name}",
                         found=_shares(state.bad), expected="at least one row",
                         hint=f"for example {_shown(state.bad)}; all of it is in {bad_file}")
    written = {"train": write_records(context.out / "rows" / "train.jsonl", records)}
    shutil.move(bad_file, context.out / "bad.jsonl")
    context.event("refused", reasons=_by_step(state.bad), examples=_examples(state.bad))
    dropped = Counter(one.reason for one in state.bad) + unfit
    return Outcome(RowCounts(read=read, written=written, dropped=dict(dropped)), _metrics(state, records, took),
                   {**_facts(state, took), **endpoint_facts(context, {stage.teacher: took.used}),
                    **engine_facts({stage.teacher: took.engines})})


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


def _make(context: StageContext, stage: SelfInstruct, state: Bootstrap, engine: Generator,
          took: Took) -> None:
    """Rounds of new tasks, then what kind each is, then its examples."""
    def answered(asks: Sequence[Ask], folder: str) -> dict[str, Said]:
        return _answered(context, stage, engine, asks, folder, took)

    while asks := state.ask():
        kept = len(state.tasks)
        said = answered(asks, f"instructions-{state.round + 1}")
        if all(one.refused == TOO_LONG for one in said.values()):
            raise DataError("no prompt of a round fits", where=f"stage {stage.name}",
                            found=f"{len(asks)} prompts of over {stage.longest_prompt} tokens",
                            expected="room for them (max_prompt_tokens)", hint="or fewer demonstrations, shorter seeds")
        proposed = state.proposed
        state.read(asks, said)
        context.event("round", round=state.round, requests=len(asks), proposed=state.proposed - proposed,
                      kept=len(state.tasks) - kept, pool=len(state.seeds) + len(state.tasks))
    if asks := state.kinds():
        state.read_kinds(asks, answered(asks, "classification"))
    if asks := state.examples():
        state.read_examples(asks, answered(asks, "instances"))


def _answered(context: StageContext, stage: SelfInstruct, engine: Generator, asks: Sequence[Ask], folder: str,
              took: Took) -> dict[str, Said]:
    """Request id -> what was said; the engine is shared by all steps where the stage is made in one process. An
    endpoint always is: a worker for each step would have limits and a count of what was spent of its own."""
    maker: Callable[[StageContext], Maker[Ask, Part]]
    here = not context.run.compute.workers or context.run.stage(stage.teacher).endpoint is not None
    maker = (lambda own: AskBatch(own, engine)) if here else AskBatch
    planned = plan(context, batches(asks, stage.batch_size), lambda ask: [ask.id, ask.digest])
    parts = make_parts(context, planned, maker, Part, folder=folder, label=f"{stage.name}: {folder}", unit="requests",
                       note=took.add, here=here)
    return {one.id: one for part in parts for one in part.said}


def _apart(context: StageContext, stage: SelfInstruct, state: Bootstrap, records: list[Record]) -> list[Record]:
    """Rows without those that share text with a row kept for evaluation, asked in both directions, as the evaluation
    will ask."""
    held = [record for ref in stage.decontaminate for record in context.rows(ref)]
    left = records
    while held and left:
        found = {id_: (other, reason) for id_, (other, reason) in find_overlap(left, held).items()}
        found |= {own: (test, reason) for test, (own, reason) in find_overlap(held, left).items()}
        if not found:
            break
        for record in left:
            if record.id in found:
                other, reason = found[record.id]
                state.bad.append(Bad(record.id, "rows", "overlaps-held-out", record.prompt[-1]["content"],
                                     {**record.meta["origin"], "held_out": other, "overlap": reason}))
        left = [record for record in left if record.id not in found]
    return left


def _metrics(state: Bootstrap, records: Sequence[Record], took: Took) -> dict[str, float]:
    tasks = {record.meta["group"] for record in records}
    kinds = [task.is_classification for task in state.tasks if task.id in tasks]
    similar = [task.mean_similar for task in state.tasks if task.id in tasks]
    return {
        "requests": float(state.asked.total()), "rounds": float(state.round), "proposed": float(state.proposed),
        "tasks": float(len(tasks)), "rows_train": float(len(records)),
        "kept_share": round(len(tasks) / max(1, state.proposed), 4),
        "classification_share": round(sum(map(bool, kinds)) / max(1, len(kinds)), 4),
        "mean_similar": round(sum(similar) / max(1, len(similar)), 4),
        "finished_share": round(took.finished / max(1, took.answers), 4),
    }


def _facts(state: Bootstrap, took: Took) -> dict[str, Any]:
    return {
        "seeds": len(state.seeds), "requests": dict(state.asked), "refused": _by_step(state.bad),
        "examples": _examples(state.bad), "unclear_kinds": state.unclear,
        "timing": {"tokens": took.tokens, "seconds": round(took.seconds, 3),
                   "tokens_per_second": round(took.tokens / max(took.seconds, 1e-9), 1)},
    }


def _by_step(bad: Sequence[Bad]) -> dict[str, dict[str, int]]:
    """Step -> reason -> how many, the most frequent first."""
    steps = dict.fromkeys(one.step for one in bad)
    return {step: dict(Counter(one.reason for one in bad if one.step == step).most_common()) for step in steps}


def _shares(bad: Sequence[Bad]) -> str:
    counts = Counter(one.reason for one in bad)
    return ", ".join(f"{reason} {count / max(1, len(bad)):.0%} ({count})" for reason, count in counts.most_common())


def _examples(bad: Sequence[Bad]) -> list[dict[str, str]]:
    """Of the most frequent reasons one each, then more of the first."""
    ranked = [reason for reason, _ in Counter(one.reason for one in bad).most_common()]
    firsts = [next(one for one in bad if one.reason == reason) for reason in ranked[:EXAMPLES]]
    more = [one for one in bad if one not in firsts][: EXAMPLES - len(firsts)]
    return [{"id": one.id, "reason": one.reason, "text": (one.found or one.text)[:200]} for one in [*firsts, *more]]


def _shown(bad: Sequence[Bad]) -> str:
    return "; ".join(f"{one['id']} ({one['reason']}): {one['text'][:80]!r}" for one in _examples(bad))
