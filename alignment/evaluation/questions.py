"""Stage body of Evaluate: checks that the split is held out, has every model answer it, measures and compares.

    test rows -> held-out check -> answers per model -> reward model -> results.json, answers.jsonl

Writes results.json (the table with intervals, see `Table.results`), answers.jsonl (one line per test row with every
model's answer) and bad.jsonl (rows left out, with the reason). Does not draw: the report does. Launched by the
pipeline for stages of kind evaluate.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alignment.artifacts import RowCounts
from alignment.config import Evaluate
from alignment.context import Outcome, StageContext
from alignment.errors import ConfigError, DataError, KubeAlignError
from alignment.evaluation.answers import Answers, answer, reward_scores, too_long
from alignment.evaluation.held_out import HeldOut, check_held_out
from alignment.evaluation.results import (
    REFERENCE,
    Measures,
    Question,
    Table,
    flat_metrics,
    kind_of,
    measure,
    question_of,
    without_nan,
)
from alignment.inference.draws import choose
from alignment.records import Record
from alignment.rewards import resolve

SHOWN = ("exact_match", "f1", "rouge_l", "reward", "style")
"""Numbers of a single answer in answers.jsonl."""


def evaluate(context: StageContext) -> Outcome:
    """Fill `context.out` with results.json, answers.jsonl and bad.jsonl.

    Returns:
        metrics: `MODEL.METRIC`, and `CHALLENGER_vs_BASELINE.win_rate` (reward_win_rate, style_win_rate);
        facts: held_out, timing, undefined_metrics.

    Raises:
        DataError: rows with one id, test rows that were seen before, or none left.
        ConfigError: a model named like the table's line for references.
    """
    stage = context.stage_as(Evaluate)
    if REFERENCE in stage.models:
        raise ConfigError("the name is taken by the results' line for the reference answers", found=REFERENCE,
                          where=f"stage {stage.name}, models", expected="another name for that stage")
    split = context.rows(stage.rows)
    _check_ids(split, f"stage {stage.name}, rows {stage.rows}")
    held_out = check_held_out(context, stage, split)
    context.event("held_out", rows=len(split), left_out=len(held_out.dropped), seen=held_out.seen)
    questions, rows = _choose(context, stage, held_out)
    answered = {name: answer(context, stage, name, questions) for name in stage.models}
    measures = _measure(context, stage, questions, answered)
    perplexity = {name: own.log_probs for name, own in answered.items() if own.log_probs}
    results = Table(stage, questions, measures, perplexity, context.run.seed).results()
    (context.out / "results.json").write_text(
        json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    lines = (_answer_line(question, stage, answered, measures) for question in questions)
    rows.written = {"answers": _write_lines(context.out / "answers.jsonl", lines)}
    rows.read = len(split)
    metrics, undefined = flat_metrics(results)
    return Outcome(rows, metrics, {
        "held_out": {"seen": held_out.seen, "left_out": len(held_out.dropped)},
        "timing": {name: own.timing() for name, own in answered.items()},
        "undefined_metrics": undefined,
    })


def _check_ids(records: Sequence[Record], where: str) -> None:
    twice = [id_ for id_, count in Counter(record.id for record in records).items() if count > 1]
    if twice:
        raise DataError(f"{len(twice)} ids stand on more than one row, so answers cannot be told apart", where=where,
                        found=twice[:3], expected="one id per row",
                        hint="give the sources of the import stage different names")


def _choose(context: StageContext, stage: Evaluate, held_out: HeldOut) -> tuple[list[Question], RowCounts]:
    """The questions to ask: unseen, within the token limit, at most `take`; what is left out goes to bad.jsonl."""
    questions = [question_of(record) for record in held_out.kept]
    long = too_long(context, stage, questions)
    fitting = [question for question in questions if question.id not in long]
    if not fitting:
        raise DataError("every prompt is over max_prompt_tokens", where=f"stage {stage.name}",
                        found=f"{len(long)} prompts of {min(long.values())} tokens or more",
                        expected=f"at most {stage.max_prompt_tokens} tokens", hint="raise max_prompt_tokens")
    chosen = choose(fitting, context.run.scaled(stage.take), context.run.seed)
    bad = [(record, f"seen before ({reason})", seen_id) for record, seen_id, reason in held_out.dropped]
    bad += [(q.record, "prompt over max_prompt_tokens", str(long[q.id])) for q in questions if q.id in long]
    _write_lines(context.out / "bad.jsonl", (
        {"source": stage.rows, "row": record.id, "reason": reason, "found": found, "raw": asdict(record)}
        for record, reason, found in bad
    ))
    dropped = dict(Counter(reason for _, reason, _ in bad))
    if len(fitting) > len(chosen):
        dropped["not taken"] = len(fitting) - len(chosen)
    return chosen, RowCounts(dropped=dropped)


def _measure(
    context: StageContext, stage: Evaluate, questions: Sequence[Question], answered: dict[str, Answers]
) -> dict[str, dict[str, Measures]]:
    """Numbers of every answer, and of the references where answers are scored: model -> row id -> numbers."""
    said = {name: {q.id: own.answers[q.id]["text"] for q in questions} for name, own in answered.items()}
    finished = {name: {q.id: own.answers[q.id]["finished"] for q in questions} for name, own in answered.items()}
    references = {q.id: q.reference for q in questions if q.reference is not None}
    if stage.score is not None and references:
        said[REFERENCE], finished[REFERENCE] = references, dict.fromkeys(references, True)
    rewards: dict[str, dict[str, float]] = {}
    if stage.score is not None and stage.score.model is not None:
        texts = {q.id: [own[q.id] for own in said.values() if q.id in own] for q in questions}
        rewards = reward_scores(context, stage, questions, texts)
    return {
        name: {
            q.id: measure(q, own[q.id], finished[name][q.id], reward=rewards.get(q.id, {}).get(own[q.id], math.nan),
                          style=_style(stage, q.record, own[q.id]), stage=stage)
            for q in questions if q.id in own
        }
        for name, own in said.items()
    }


def _style(stage: Evaluate, record: Record, text: str) -> float:
    """The scoring function's value of one answer; NaN without a function."""
    if stage.score is None or stage.score.function is None:
        return math.nan
    try:
        return float(resolve(stage.score.function)(record, text))
    except KubeAlignError:
        raise
    except Exception as error:  # the user's own code: whatever it raises, say for which row
        raise DataError(f"the scoring function failed: {type(error).__name__}: {error}", found=text,
                        where=f"stage {stage.name}, score.function {stage.score.function}, row {record.id}",
                        expected="a number (NaN for an answer that it cannot judge)") from error


def _answer_line(
    question: Question, stage: Evaluate, answered: dict[str, Answers], measures: dict[str, dict[str, Measures]]
) -> dict[str, Any]:
    meta = question.record.meta
    return {
        "id": question.id,
        "kind": kind_of(question.record),
        "question": meta.get("question"),
        "passage": meta.get("passage"),
        "prompt": question.prompt,
        "reference": question.reference,
        "answers": {
            name: {
                "text": answered[name].answers[question.id]["text"],
                "finished": answered[name].answers[question.id]["finished"],
                **{metric: measures[name][question.id][metric] for metric in SHOWN},
            }
            for name in stage.models
        },
    }


def _write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> int:
    """JSON lines, undefined numbers as null; returns how many. No lines, no file."""
    texts = [json.dumps(without_nan(line), ensure_ascii=False, allow_nan=False) + "\n" for line in lines]
    if texts:
        path.write_text("".join(texts), encoding="utf-8")
    return len(texts)
