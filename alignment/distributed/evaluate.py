"""An evaluate stage: a held-out split -> answers of every model -> rewards -> a table with intervals and comparisons.

Writes results.json (see `evaluation.results.Table`), answers.jsonl (one line per test row with every model's answer),
bad.jsonl (rows left out, with the reason) and proof.jsonl (what a server of these models is held to). Models answer one
after the other, each in fixed batches (batches.py: here or on workers, resumable); the batches are the same each time,
since padding changes the last bits of a number.
Launched by the pipeline or by ray_jobs/evaluate.py. Does not know how text is generated, judged or compared:
`evaluation` does. Does not draw: the report does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

from alignment.artifacts import RowCounts
from alignment.config import Evaluate
from alignment.context import Outcome, StageContext
from alignment.distributed.batches import make_parts, plan
from alignment.distributed.passages import Pools, pools_of
from alignment.evaluation.answers import AnswerBatch, Answers, RewardBatch, Rewards, Scorable
from alignment.evaluation.held_out import check_held_out
from alignment.evaluation.measuring import answer_line, contests, measure_all, said_by_all, scorables, shares_of
from alignment.evaluation.opinions import Contest, OpinionBatch, Opinions
from alignment.evaluation.questions import answered_by_all, check_ids, choose_questions
from alignment.evaluation.results import Question, Table, flat_metrics, prove, without_nan
from alignment.evaluation.retrieving import RetrieveBatch, Searched, ends, trace_measures
from alignment.inference import proof_rows
from alignment.inference.generator import kept_open
from alignment.inference.requests import batches
from alignment.inference.usage import Tally, budgets, endpoint_facts, engine_facts
from alignment.records.importers.retrieval import paragraphs_of


def evaluate_stage(context: StageContext) -> Outcome:
    """Body of the stages of kind evaluate; fills results.json, answers.jsonl and bad.jsonl in `context.out`.

    Returns:
        metrics: `MODEL.METRIC`, and `CHALLENGER_vs_BASELINE.win_rate` (reward_win_rate, style_win_rate);
        facts: held_out, timing, undefined_metrics; retrieval (how rows ended, passages) where models retrieve.

    Raises:
        ConfigError: a metric needs a package that is not here.
        DataError: rows with one id, test rows that were seen before, or none left.
        WorkersLost: workers died too often.
    """
    stage = context.stage_as(Evaluate)
    prove(stage)
    split = context.rows(stage.rows)
    check_ids(split, f"stage {stage.name}, rows {stage.rows}")
    held_out = check_held_out(context, stage, split)
    context.event("held_out", rows=len(split), left_out=len(held_out.dropped), seen=held_out.seen)
    chosen = choose_questions(context, stage, held_out)
    searched = None if stage.retrieve is None else pools_of(context, stage, chosen.questions)
    with kept_open():
        answered = {name: _answers(context, stage, name, chosen.questions, searched) for name in stage.models}
    chosen = answered_by_all(stage, chosen, {name: own.failed for name, own in answered.items()})
    write_lines(context.out / "bad.jsonl", chosen.bad)
    questions = chosen.questions
    said = said_by_all(stage, questions, answered)
    asked = scorables(questions, said)
    rewards = _rewards(context, stage, asked)
    opinions = _opinions(context, stage, contests(stage, questions, said))
    measures, counts = measure_all(stage, questions, said, rewards, answered, opinions)
    for name, own in answered.items() if searched is not None else ():
        for question in questions:
            measures[name][question.id] |= trace_measures(own.answers[question.id], paragraphs_of(question.record))
    write_lines(context.out / proof_rows.FILE, [*(row for own in answered.values() for row in own.proof),
                                                *_scored(context, stage, asked, rewards)])
    results = Table(stage, questions, measures, counts, context.run.seed,
                    shares_of(stage, questions, said, opinions)).results()
    results["tokens"] = {name: own.per_item()["tokens"] for name, own in answered.items()}  # seconds: in the manifest
    (context.out / "results.json").write_text(
        json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    lines = (answer_line(question, stage, said, measures, counts, answered, opinions) for question in questions)
    written = {"answers": write_lines(context.out / "answers.jsonl", lines)}
    metrics, undefined = flat_metrics(results)
    metrics |= _of_judge(stage, opinions)
    judge = {} if stage.score is None or stage.score.judge is None else {stage.score.judge.model: opinions}
    return Outcome(RowCounts(read=len(split), written=written, dropped=chosen.dropped), metrics, {
        "held_out": {"seen": held_out.seen, "left_out": len(held_out.dropped)},
        "timing": {name: {**own.timing(), "per_item": own.per_item()} for name, own in answered.items()},
        "undefined_metrics": undefined,
        **({"judge": opinions.judge.facts()} if judge else {}),
        **endpoint_facts(context, _each(answered, judge, lambda own: own.used(), lambda own: own.judge.used)),
        **engine_facts(_each(answered, judge, lambda own: own.engines, lambda own: own.engines)),
        **({} if searched is None else {"retrieval": {"ended": ends(answered, questions), **searched.facts}}),
    })


def _answers(context: StageContext, stage: Evaluate, name: str, questions: Sequence[Question],
             searched: Pools | None) -> Answers:
    """Answers of model `name` to all questions, and its log-probabilities of their references."""
    tally = Tally(budgets(context, [name]))
    asked: Sequence[Question] = questions if searched is None else [
        Searched(**vars(one), pool=searched.own.get(one.id)) for one in questions]
    planned = batches(asked, stage.batch_size)
    proof = proof_rows.chosen(planned, context.run.seed)
    maker = (partial(AnswerBatch, name=name, proof=proof) if searched is None
             else partial(RetrieveBatch, name=name, proof=proof, corpus=searched.corpus))
    parts = make_parts(context, plan(context, planned), maker, Answers, folder=f"answers-{name}",
                       label=f"{stage.name}: answers of {name}", unit="answers",
                       note=lambda part: tally.add(int(part.timing()["tokens"]), part.seconds.get("generate", 0.0),
                                                   part.used()))
    answers = Answers.of(parts)
    context.event("answers", model=name, rows=len(answers.answers), reused=parts.reused, **answers.timing())
    return answers


def _rewards(context: StageContext, stage: Evaluate, asked: Sequence[Scorable]) -> dict[str, dict[str, float]]:
    """Row id -> text -> score; empty without a reward model."""
    name = None if stage.score is None else stage.score.model
    if name is None:
        return {}
    began = time.monotonic()
    planned = plan(context, batches(asked, stage.batch_size), lambda item: [item.id, item.texts])
    parts = make_parts(context, planned, partial(RewardBatch, name=name), Rewards, folder="rewards",
                       label=f"{stage.name}: rewards by {name}", unit="rows")
    scores = {id_: own for part in parts for id_, own in part.scores.items()}
    context.event("rewards", model=name, scores=sum(map(len, scores.values())), reused=parts.reused,
                  seconds=round(time.monotonic() - began, 3))
    return scores


def _opinions(context: StageContext, stage: Evaluate, asked: Sequence[Contest]) -> Opinions:
    """What the judge says; nothing without one. Raises StageError where nothing that it said could be read."""
    judge = None if stage.score is None else stage.score.judge
    if judge is None:
        return Opinions()
    tally = Tally(budgets(context, [judge.model]))
    planned = plan(context, batches(asked, stage.batch_size), lambda item: [item.id, item.texts, item.pairs])
    parts = make_parts(context, planned, OpinionBatch, Opinions, folder="opinions",
                       label=f"{stage.name}: judged by {judge.model}", unit="rows",
                       note=lambda part: tally.add(part.judge.tokens, part.seconds, part.judge.used))
    made = Opinions.of(parts)
    if asked:
        made.judge.demand(f"stage {stage.name}")
    context.event("judged", **made.judge.facts())
    return made


def _of_judge(stage: Evaluate, opinions: Opinions) -> dict[str, float]:
    told = opinions.judge
    if stage.score is None or stage.score.judge is None or not (told.read or told.refused):
        return {}
    read = {"judge_read_share": told.read_share}
    if stage.score.judge.mode == "compare":
        read["judge_agreement"] = round(1 - told.disagreed / max(1, told.compared), 4)
    return read


def _each(
    answered: Mapping[str, Answers], judge: Mapping[str, Opinions], of_answers: Callable[[Answers], Iterable[Any]],
    of_judge: Callable[[Opinions], Iterable[Any]],
) -> dict[str, list[Any]]:
    """Something of every model that was asked; the judge may be one of those that answered."""
    made = {name: list(of_answers(own)) for name, own in answered.items()}
    for name, own in judge.items():
        made[name] = [*made.get(name, []), *of_judge(own)]
    return made


def _scored(context: StageContext, stage: Evaluate, asked: Sequence[Scorable],
            rewards: dict[str, dict[str, float]]) -> Iterable[dict[str, Any]]:
    """Scores that a server of the stage's reward model is held to."""
    if stage.score is None or stage.score.model is None:
        return ()
    key, dtype = context.inputs[stage.score.model].key, context.run.compute.dtype
    kept = [(item, item.texts[0]) for item in asked if item.texts and isfinite(rewards[item.id][item.texts[0]])]
    return proof_rows.written(proof_rows.ScoreRow(item.id, key, item.prompt, text, rewards[item.id][text], dtype)
                              for item, text in kept[:proof_rows.ROWS])


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> int:
    """JSON lines, undefined numbers as null; returns how many. No lines, no file."""
    texts = [json.dumps(without_nan(line), ensure_ascii=False, allow_nan=False) + "\n" for line in lines]
    if texts:
        path.write_text("".join(texts), encoding="utf-8")
    return len(texts)
