"""A select stage: rows -> scores, vectors or nothing at all -> the chosen rows, and what became of the others.

Has the batches made (batches.py: here or on workers, resumable), joins what they give by row id, and writes
rows/train.jsonl (the chosen, as they came, with what their choice went by in `meta`), left.jsonl (the others: id,
reason, score), bad.jsonl (rows that could not be judged) and, of a coverage, map.json for the report. Who is chosen is
`selection`'s to say. Launched by the pipeline or by ray_jobs/select_stage.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy

from alignment.artifacts import RowCounts
from alignment.config import (
    Select,
    SelectCoverage,
    SelectMerge,
    SelectNecessity,
    SelectQuality,
    SelectRandom,
    Stage,
    row_of,
)
from alignment.context import Outcome, StageContext
from alignment.distributed.batches import make_parts, plan
from alignment.errors import DataError, StageError
from alignment.inference.requests import batches
from alignment.inference.vectors import Vectors
from alignment.progress import console
from alignment.records import Record, bad_row, write_json_lines, write_records
from alignment.rewards import resolve
from alignment.selection import scores as cuts
from alignment.selection.batches import EmbedBatch, ScoreBatch, Scores
from alignment.selection.kcenter import k_center
from alignment.selection.projection import map_of
from alignment.selection.rows import (
    NOT_ASKED,
    Judged,
    Selected,
    Text,
    answer_scores,
    chosen_at_random,
    instruction_of,
    judged_of,
    merged_rows,
    scored_rows,
    size_of,
    together,
    with_meta,
)

Made = tuple[Selected, dict[str, float], dict[str, Any]]
"""What became of the rows, metrics and facts."""


def select_stage(context: StageContext) -> Outcome:
    """Body of the stages of kind select; fills rows/train.jsonl, left.jsonl and bad.jsonl in `context.out`.

    Raises:
        DataError: no row can be judged, or more are asked for than there are.
        StageError: no row is left, or a quantile cannot tell rows apart.
        WorkersLost: workers died too often.
    """
    stage = context.stage_as(Select)
    sets = [context.rows(ref) for ref in stage.rows]
    read = sum(map(len, sets))
    made, metrics, facts = row_of(WAYS, type(stage))(context, stage, sets)
    reasons = dict(made.dropped)
    if not made.records:
        raise StageError("no row is left", where=f"stage {stage.name}", found=reasons or f"{read} rows read",
                         expected="at least one row", hint=_hint(metrics))
    written = {"train": write_records(context.out / "rows" / "train.jsonl", made.records)}
    write_json_lines(context.out / "bad.jsonl", made.bad)
    write_json_lines(context.out / "left.jsonl", made.left)
    context.event("chosen", read=read, rows=written["train"], reasons=reasons)
    return Outcome(RowCounts(read=read, written=written, dropped=reasons),
                   {"rows_train": float(written["train"]), "share": written["train"] / read, **metrics}, facts)


def _quality(context: StageContext, stage: SelectQuality, sets: list[list[Record]]) -> Made:
    if stage.score.function is not None:
        resolve(stage.score.function)  # a wrong name shows now, not after the model is loaded
    records, bad = together(sets)
    judged: dict[str, Judged] = {}
    for record in records:
        one = judged_of(record)
        if isinstance(one, str):
            bad.append(bad_row(record, one))
        else:
            judged[record.id] = one
    if not judged:
        raise _none(context, "no row has an answer that can be scored", bad)
    parts = make_parts(context, plan(context, batches(list(judged.values()), stage.batch_size)), ScoreBatch, Scores,
                       folder="scores", label=f"{stage.name}: scores", unit="rows")
    found: dict[str, float] = {}
    refused: dict[str, str] = {}
    for part in parts:
        found |= part.scores
        refused |= part.refused
    bad += [bad_row(judged[row].record, reason) for row, reason in refused.items()]
    scored, unscored = scored_rows([one.record for row, one in judged.items() if row not in refused], found,
                                   "no score of this row was kept")
    cut, metrics, facts = _cut(context, stage, scored, [*bad, *unscored])
    made = cuts.above(scored, cut, "quality")
    made.bad = [*bad, *unscored]
    return made, metrics, facts


def _necessity(context: StageContext, stage: SelectNecessity, sets: list[list[Record]]) -> Made:
    records, bad = together(sets)
    answers = context.rows(stage.answers)
    scored, unscored = scored_rows(records, answer_scores(answers), NOT_ASKED)
    if unscored and not scored and all(row["reason"] == NOT_ASKED for row in unscored):
        raise DataError("no row of the stage was asked", where=f"stage {stage.name}, answers {stage.answers}",
                        found=f"answers to {', '.join(str(one.meta.get('prompt_id')) for one in answers[:3])}, ...",
                        expected=f"answers to the rows of {', '.join(stage.rows)}")
    cut, metrics, facts = _cut(context, stage, scored, [*bad, *unscored])
    made = cuts.below(scored, cut, "necessity", inclusive=stage.quantile is not None)
    made.bad = [*bad, *unscored]
    unfinished = sum(record.meta.get("finished") is False for record in answers)
    return made, metrics, {**facts, "answers": len(answers), "answers_cut": unfinished}


def _cut(
    context: StageContext, stage: SelectQuality | SelectNecessity, scored: list[tuple[Record, float]],
    bad: list[dict[str, Any]],
) -> tuple[float, dict[str, float], dict[str, Any]]:
    """The cut, metrics and facts; prints the histogram."""
    if not scored:
        raise _none(context, "no row has a score that is a number", bad)
    values = [score for _, score in scored]
    try:
        cut = cuts.quantile_cut(values, stage.quantile) if stage.quantile is not None else float(stage.threshold or 0.0)
    except StageError as error:
        raise StageError(error.problem, where=f"stage {stage.name}", found=error.found, hint=error.hint) from error
    found = cuts.histogram(values)
    console.print(f"  {stage.name}: scores of {len(values):,} rows, cut at {cut:.4g}", markup=False, highlight=False)
    for line in cuts.printed(found, cut):
        console.print(f"  {line}", markup=False, highlight=False)
    return cut, cuts.measures(values, cut), {"histogram": found}


def _coverage(context: StageContext, stage: SelectCoverage, sets: list[list[Record]]) -> Made:
    records, bad = together(sets)
    usable: dict[str, Record] = {}
    texts = []
    for record in records:
        text = instruction_of(record, whole=stage.text == "prompt")
        if text is None:
            bad.append(bad_row(record, "no user's turn to embed"))
        else:
            usable[record.id] = record
            texts.append(Text(record.id, text))
    take = _size(context, stage, len(usable), bad)
    parts = make_parts(context, plan(context, batches(texts, stage.batch_size)), EmbedBatch, Vectors,
                       folder="vectors", label=f"{stage.name}: embeddings", unit="texts")
    place = {row: at for at, row in enumerate(usable)}
    points: Any = None
    cut: set[str] = set()
    for part in parts:
        if points is None:
            points = numpy.empty((len(usable), part.vectors.shape[1]), dtype=numpy.float32)
        points[[place[row] for row in part.ids]] = part.vectors
        cut |= set(part.cut)
    if cut:
        console.print(f"! {stage.name}: {len(cut):,} of {len(usable):,} texts had over {stage.max_tokens} tokens "
                      "and were cut", markup=False)
    ids = list(usable)
    first = ids.index(min(ids, key=lambda row: hashlib.sha256(f"{context.run.seed}/first/{row}".encode()).digest()))
    with context.track(f"{stage.name}: k-center", take, "picks") as tracker:
        picks = k_center(points, take, first, on_picks=lambda done: tracker.advance(64))
    order = {int(index): number for number, index in enumerate(picks.indices)}
    made = Selected(bad=bad)
    for at, record in enumerate(usable.values()):
        if at in order:
            distance = float(picks.distances[order[at]])
            made.records.append(with_meta(record, coverage={
                "order": order[at], "distance": distance if numpy.isfinite(distance) else None}))
        else:
            made.left.append({"id": record.id, "reason": "nearer to the chosen than those"})
    (context.out / "map.json").write_text(json.dumps(map_of(ids, points, order)), encoding="utf-8")
    return made, {"radius": picks.radius, "texts_cut": float(len(cut))}, {
        "width": int(points.shape[1]), "first": ids[first],
        "twins": int((picks.distances == 0.0).sum()), "pooling": stage.pooling}


def _random(context: StageContext, stage: SelectRandom, sets: list[list[Record]]) -> Made:
    records, bad = together(sets)
    take = _size(context, stage, len(records), bad)
    made = Selected(chosen_at_random(records, take, context.run.seed), bad=bad)
    kept = {record.id for record in made.records}
    made.left = [{"id": record.id, "reason": "not taken"} for record in records if record.id not in kept]
    return made, {}, {}


def _merge(context: StageContext, stage: SelectMerge, sets: list[list[Record]]) -> Made:
    return merged_rows(sets), {}, {}


WAYS: Mapping[type[Stage], Callable[[StageContext, Any, list[list[Record]]], Made]] = {
    SelectQuality: _quality, SelectCoverage: _coverage, SelectNecessity: _necessity, SelectMerge: _merge,
    SelectRandom: _random,
}
"""Way of selecting -> how it is made."""


def _size(context: StageContext, stage: SelectCoverage | SelectRandom, rows: int, bad: list[dict[str, Any]]) -> int:
    take = size_of(rows, context.run.scaled(stage.take), stage.share)
    if not rows:
        raise _none(context, "no row can be chosen", bad)
    if take > rows:
        raise DataError("more rows are asked for than there are", where=f"stage {stage.name}, take", found=f"{take:,}",
                        expected=f"at most {rows:,}", hint="or share: 0.5, a share of what there is")
    return take


def _none(context: StageContext, problem: str, bad: list[dict[str, Any]]) -> DataError:
    return DataError(problem, where=f"stage {context.stage.name}", found=dict(Selected(bad=bad).dropped),
                     hint="; ".join(f"row {row['id']}: {row['reason']}" for row in bad[:3]) or None)


def _hint(metrics: Mapping[str, float]) -> str | None:
    if "cut" not in metrics:
        return None
    return (f"the scores have mean {metrics['mean_score']:.4g} and standard deviation {metrics['score_std']:.4g}; "
            f"the cut is {metrics['cut']:.4g}. A quantile does not depend on their scale")
