"""A sample stage: prompts in fixed batches -> answers -> scores -> best-of-N rows and preference pairs.

Chooses the prompts, has the batches made (batches.py: here or on workers, resumable), and writes what is selected.
Parts are joined by row id. Launched by the pipeline or by ray_jobs/sample.py. Does not know how text is generated or
scored: `sampling` does.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from alignment.artifacts import RowCounts
from alignment.config import Sample
from alignment.context import Outcome, StageContext
from alignment.distributed.batches import make_parts, plan
from alignment.errors import DataError, StageError
from alignment.inference.draws import choose
from alignment.inference.judging import JudgeTally
from alignment.inference.requests import batches
from alignment.inference.usage import Tally, budgets, endpoint_facts, engine_facts, speed
from alignment.records import Record, bad_row, reasons, write_json_lines, write_records
from alignment.rewards import resolve
from alignment.sampling.batch import Part, SampleBatch, used_by
from alignment.sampling.measures import histogram, measures
from alignment.sampling.prompts import NO_PROMPT, as_prompt
from alignment.sampling.select import Selection, best_of_n, pairs_max_min, pairs_newest_previous


def sample_stage(context: StageContext) -> Outcome:
    """Body of the stages of kind sample; fills `rows/` and bad.jsonl in `context.out`.

    Raises:
        DataError: no prompt is left.
        StageError: nothing could be answered or scored.
        WorkersLost: workers died too often.
    """
    stage = context.stage_as(Sample)
    if stage.score.function is not None:
        resolve(stage.score.function)  # a wrong name shows now, not after the models are loaded
    prompts, bad, read, not_taken = _prompts(context, stage)
    planned = plan(context, batches(prompts, stage.batch_size))
    judged_by = None if stage.score.judge is None else stage.score.judge.model
    tally = Tally(budgets(context, dict.fromkeys((stage.model, stage.previous, judged_by))))
    parts = list(make_parts(context, planned, SampleBatch, Part, folder="parts", label="sample", unit="prompts",
                            note=lambda part: tally.add(sum(a.tokens for a in part.answers), part.seconds,
                                                         (one for _, one in used_by(part)))))
    answers = [answer for part in parts for answer in part.answers]
    bad += [row for part in parts for row in part.bad]
    if not answers:
        raise StageError("no prompt was answered", where=f"stage {stage.name}", found=dict(reasons(bad)),
                         hint="; ".join(f"row {row['id']}: {row['found']}" for row in bad[:3] if "found" in row)
                         or None)
    answered = {answer.id for answer in answers}
    judge = _judge(stage, parts)
    asked = {record.id: record for record in prompts if record.id in answered}
    best = best_of_n(asked, answers, min_score=stage.min_score)
    rows, pairs = context.out / "rows", Selection()
    written = {"best": write_records(rows / "best.jsonl", best.records)}
    if stage.pairs != "none":
        select = pairs_max_min if stage.pairs == "max-min" else pairs_newest_previous
        pairs = select(asked, answers, min_margin=stage.min_margin, min_score=stage.min_score)
        written["pairs"] = write_records(rows / "pairs.jsonl", pairs.records)
    written |= {
        "samples": write_records(rows / "samples.jsonl", (answer.to_record(asked[answer.id]) for answer in answers)),
    }
    write_json_lines(context.out / "bad.jsonl", bad)
    if stage.score.judge is not None:
        context.event("judged", **judge.facts())
    dropped = reasons(bad) + best.dropped + pairs.dropped + Counter({"not taken": not_taken})
    return Outcome(
        RowCounts(read=read, written=written, dropped=dict(dropped)),
        {**measures(answers), **{f"rows_{split}": float(written[split]) for split in ("best", "pairs")
                                 if split in written}, **_of_judge(stage, judge)},
        {"histogram": histogram(answers),
         "timing": speed(sum(a.tokens for a in answers), sum(part.seconds for part in parts)),
         **({} if stage.score.judge is None else {"judge": judge.facts()}), **_endpoints(context, stage, parts),
         **engine_facts({name: [part.engines[source] for part in parts if source in part.engines]
                         for source, name in (("newest", stage.model), ("previous", stage.previous)) if name})},
    )


def _judge(stage: Sample, parts: list[Part]) -> JudgeTally:
    """What asking the judge came to.

    Raises:
        StageError: nothing that it said could be read.
    """
    told = JudgeTally()
    for part in parts:
        told.add(part.judge)
    if stage.score.judge is not None:
        told.demand(f"stage {stage.name}")
    return told


def _of_judge(stage: Sample, told: JudgeTally) -> dict[str, float]:
    if stage.score.judge is None:
        return {}
    read = {"judge_read_share": told.read_share}
    if stage.score.judge.mode == "compare":
        read["judge_agreement"] = round(1 - told.disagreed / max(1, told.compared), 4)
    return read


def _endpoints(context: StageContext, stage: Sample, parts: list[Part]) -> dict[str, Any]:
    """What each endpoint took, refusals and failures included; nothing of a stage without any."""
    named: dict[str, str] = {"newest": stage.model, "previous": stage.previous or "",
                             "judge": "" if stage.score.judge is None else stage.score.judge.model}
    taken: dict[str, list[dict[str, Any]]] = {}
    for part in parts:
        for source, one in used_by(part):
            taken.setdefault(named[source], []).append(one)
    return endpoint_facts(context, taken)


def _prompts(context: StageContext, stage: Sample) -> tuple[list[Record], list[dict[str, Any]], int, int]:
    """The prompts to answer with unique ids, rows that have none, how many rows were read, and not taken."""
    records = [record for ref in stage.prompts for record in context.rows(ref)]
    usable: dict[str, Record] = {}
    bad = []
    for record in records:
        asked = as_prompt(record)
        if asked is None:
            bad.append(bad_row(record, NO_PROMPT))
        elif record.id in usable:
            bad.append(bad_row(record, "id of an earlier prompt of this stage"))
        else:
            usable[record.id] = asked
    chosen = choose(list(usable.values()), context.run.scaled(stage.take), context.run.seed)
    if not chosen:
        raise DataError("no row has a prompt", where=f"stage {stage.name}", found=dict(reasons(bad)))
    return chosen, bad, len(records), len(usable) - len(chosen)
