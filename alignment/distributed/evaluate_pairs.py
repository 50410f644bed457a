"""An evaluate stage with `judges`: held-out pairs -> what every judge says of them -> a table with intervals.

Writes results.json (see `evaluation.pair_table.PairTable`), pairs.jsonl (one line per pair with every judge's scores)
and bad.jsonl (rows left out, with the reason). Judges judge one after the other, each in fixed batches (batches.py:
here or on workers, resumable). Launched by the pipeline or by ray_jobs/evaluate.py. Does not know how a judge is asked
or measured: `evaluation` does. Does not draw: the report does.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from functools import partial
from typing import Any

from alignment.artifacts import RowCounts
from alignment.config import EvaluatePairs
from alignment.context import Outcome, StageContext
from alignment.data.projections import to_preference
from alignment.distributed.batches import make_parts, plan
from alignment.distributed.evaluate import write_lines
from alignment.errors import DataError, StageError
from alignment.evaluation.held_out import HeldOut, check_held_out
from alignment.evaluation.judges import Judgements, PairBatch, pair_of
from alignment.evaluation.pair_table import PairTable, flat_metrics
from alignment.evaluation.questions import check_ids
from alignment.inference.draws import choose
from alignment.inference.generator import kept_open
from alignment.inference.judging import JudgeTally
from alignment.inference.requests import batches
from alignment.inference.usage import Tally, budgets, endpoint_facts, engine_facts
from alignment.records import Record
from alignment.rewards import resolve


def evaluate_pairs_stage(context: StageContext) -> Outcome:
    """Body of the stages of kind evaluate with judges; fills results.json, pairs.jsonl and bad.jsonl in `context.out`.

    Returns:
        metrics: `JUDGE.METRIC`, and `FIRST_and_SECOND.agreement` and `.kappa`;
        facts: held_out, timing, judges (what asking each language model came to), undefined_metrics.

    Raises:
        DataError: rows with one id, pairs that were seen before, or none left.
        StageError: a judge could judge no pair.
        WorkersLost: workers died too often.
    """
    stage = context.stage_as(EvaluatePairs)
    for name, judge in stage.judges.items():
        if judge.function is not None:
            resolve(judge.function, f"judges.{name}.function")  # a wrong name shows now, not after models are loaded
    split = context.rows(stage.rows)
    check_ids(split, f"stage {stage.name}, rows {stage.rows}")
    held_out = check_held_out(context, stage, split)
    context.event("held_out", rows=len(split), left_out=len(held_out.dropped), seen=held_out.seen)
    records, bad, dropped = choose_pairs(context, stage, held_out)
    write_lines(context.out / "bad.jsonl", bad)
    with kept_open():
        judged = {name: _judged(context, stage, name, records) for name in stage.judges}
    table = PairTable(stage, records, {name: own.rows for name, own in judged.items()}, context.run.seed)
    results = table.results()
    (context.out / "results.json").write_text(
        json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    written = {"pairs": write_lines(context.out / "pairs.jsonl", table.lines())}
    metrics, undefined = flat_metrics(results)
    return Outcome(RowCounts(read=len(split), written=written, dropped=dropped), metrics, {
        "held_out": {"seen": held_out.seen, "left_out": len(held_out.dropped)},
        "timing": {name: {"seconds": round(own.seconds, 3)} for name, own in judged.items()},
        "undefined_metrics": undefined, **_asked(context, stage, judged),
    })


def choose_pairs(
    context: StageContext, stage: EvaluatePairs, held_out: HeldOut
) -> tuple[list[Record], list[dict[str, Any]], dict[str, int]]:
    """Unseen pairs, at most `take`; lines of bad.jsonl; and what was left out, by reason.

    Raises DataError when no preference is left.
    """
    left = [(record, f"seen before ({reason})", seen_id) for record, seen_id, reason in held_out.dropped]
    pairs = []
    for record in held_out.kept:
        why = None if record.type == "tie" else to_preference(record)
        if isinstance(why, str):
            left.append((record, why, record.type))
        else:
            pairs.append(record)
    if not any(record.type == "preference" for record in pairs):
        raise DataError("no row is a pair of which one answer is preferred", where=f"stage {stage.name}",
                        found=dict(Counter(record.type for record in held_out.kept)), expected="preference rows")
    chosen = choose(pairs, context.run.scaled(stage.take), context.run.seed)
    bad = [{"source": stage.rows, "row": record.id, "reason": reason, "found": found, "raw": asdict(record)}
           for record, reason, found in left]
    dropped = dict(Counter(reason for _, reason, _ in left))
    if len(pairs) > len(chosen):
        dropped["not taken"] = len(pairs) - len(chosen)
    return chosen, bad, dropped


def _judged(context: StageContext, stage: EvaluatePairs, name: str, records: list[Record]) -> Judgements:
    """What the judge `name` says of all pairs. Raises StageError where that is nothing."""
    asked = stage.judges[name].judge
    tally = Tally(budgets(context, [None if asked is None else asked.model]))
    pairs = [pair_of(record) for record in records]
    parts = make_parts(context, plan(context, batches(pairs, stage.batch_size)), partial(PairBatch, name=name),
                       Judgements, folder=f"judged-{name}", label=f"{stage.name}: judged by {name}", unit="pairs",
                       note=None if asked is None else (
                           lambda part: tally.add(part.judge.tokens, part.seconds, part.judge.used)))
    whole = Judgements()
    for part in parts:
        whole.rows |= part.rows
        whole.judge.add(part.judge)
        whole.seconds += part.seconds
        whole.engines += [one for one in part.engines if one not in whole.engines]
    unread = Counter(own.unread for own in whole.rows.values() if own.unread is not None)
    context.event("judged", judge=name, rows=len(records), read=len(records) - unread.total(), reused=parts.reused,
                  seconds=round(whole.seconds, 3), unread=dict(unread))
    if unread.total() == len(records):
        raise StageError(f"judge {name} could judge no pair", where=f"stage {stage.name}, judges.{name}",
                         found=dict(unread), expected="two scores, or a verdict, for some pairs",
                         hint="; ".join(f"{one['id']} ({one['reason']}): {one['text'][:80]!r}"
                                        for one in whole.judge.examples) or None)
    return whole


def _asked(context: StageContext, stage: EvaluatePairs, judged: dict[str, Judgements]) -> dict[str, Any]:
    """Facts on language models that were asked: counts and reasons, engines, what endpoints took."""
    named = {name: judge.judge.model for name, judge in stage.judges.items() if judge.judge is not None}
    engines: dict[str, list[dict[str, Any]]] = {}
    used: dict[str, list[dict[str, Any]]] = {}
    for name, model in named.items():
        engines.setdefault(model, []).extend(judged[name].engines)
        used.setdefault(model, []).extend(judged[name].judge.used)
    told: dict[str, JudgeTally] = {name: judged[name].judge for name in named}
    return {**({"judges": {name: one.facts() for name, one in told.items()}} if told else {}),
            **endpoint_facts(context, used), **engine_facts(engines)}
