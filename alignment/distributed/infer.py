"""An infer stage: prompts in fixed batches -> answers, in the order of the rows.

Writes answers.jsonl (one line per answer: id, index, text, tokens, finished) and bad.jsonl (rows without one, with the
reason). Batches are made here or on workers, resumable (batches.py). Launched by the pipeline or by ray_jobs/infer.py.
Does not know how text is generated, and scores nothing.
"""

from __future__ import annotations

from typing import Any

from alignment.artifacts import RowCounts
from alignment.config import Infer
from alignment.context import Outcome, StageContext
from alignment.distributed.batches import make_parts, plan
from alignment.errors import DataError, StageError
from alignment.inference.requests import batches
from alignment.inference.usage import Tally, budgets, endpoint_facts, engine_facts, speed
from alignment.records import Record, bad_row, reasons, write_json_lines
from alignment.sampling.infer import InferBatch, Inferred
from alignment.sampling.prompts import NO_PROMPT, as_prompt


def infer_stage(context: StageContext) -> Outcome:
    """Body of the stages of kind infer; fills answers.jsonl and bad.jsonl in `context.out`.

    Returns:
        metrics: prompts, answers, finished_share, mean_tokens; facts: timing, engines or endpoints.

    Raises:
        DataError: no row has a prompt, or two have one id.
        StageError: no prompt was answered.
        WorkersLost: workers died too often.
    """
    stage = context.stage_as(Infer)
    prompts, bad, order = _prompts(context, stage)
    tally = Tally(budgets(context, [stage.model]))
    parts = list(make_parts(
        context, plan(context, batches(prompts, stage.batch_size)), InferBatch, Inferred, folder="parts",
        label=f"{stage.name}: answers", unit="prompts",
        note=lambda part: tally.add(sum(a["tokens"] for a in part.answers), part.seconds, part.used())))
    answers = sorted((one for part in parts for one in part.answers), key=lambda one: (order[one["id"]], one["index"]))
    bad = sorted([*bad, *(row for part in parts for row in part.bad)], key=lambda row: order[row["id"]])
    if not answers:
        said = "; ".join(f"row {row['id']}: {row['found']}" for row in bad[:3] if "found" in row)
        raise StageError("no prompt was answered", where=f"stage {stage.name}", found=dict(reasons(bad)),
                         hint=said or None)
    write_json_lines(context.out / "answers.jsonl", ({k: v for k, v in one.items() if k != "usage"} for one in answers))
    write_json_lines(context.out / "bad.jsonl", bad)
    tokens = sum(one["tokens"] for one in answers)
    return Outcome(
        RowCounts(read=len(order), written={"answers": len(answers)}, dropped=dict(reasons(bad))),
        {"prompts": float(len({one["id"] for one in answers})), "answers": float(len(answers)),
         "finished_share": round(sum(one["finished"] for one in answers) / len(answers), 4),
         "mean_tokens": round(tokens / len(answers), 2)},
        {"timing": speed(tokens, sum(part.seconds for part in parts)),
         **endpoint_facts(context, {stage.model: [one for part in parts for one in part.used()]}),
         **engine_facts({stage.model: [part.engine for part in parts if part.engine]})})


def _prompts(context: StageContext, stage: Infer) -> tuple[list[Record], list[dict[str, Any]], dict[str, int]]:
    """The prompts to answer, rows that have none, and row id -> its place in the row set."""
    prompts: list[Record] = []
    bad: list[dict[str, Any]] = []
    order: dict[str, int] = {}
    for record in context.each_row(stage.prompts):
        if record.id in order:
            raise DataError("two rows have one id, so their answers could not be told apart",
                            where=f"stage {stage.name}, prompts {stage.prompts}", found=record.id,
                            hint="give the sources of the import stage different names")
        order[record.id] = len(order)
        asked = as_prompt(record)
        if asked is None:
            bad.append(bad_row(record, NO_PROMPT))
        else:
            prompts.append(asked)
    if not prompts:
        raise DataError("no row has a prompt", where=f"stage {stage.name}", found=dict(reasons(bad)))
    return prompts, bad, order
