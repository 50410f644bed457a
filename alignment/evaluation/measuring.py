"""From answers and reward scores to the numbers of every answer, and to the lines of answers.jsonl.

Runs no model; calls the stage's scoring function. Everything is joined by row id. Means, intervals and comparisons are
results.py's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignment.config import Evaluate
from alignment.config.stages.evaluate import REFERENCE
from alignment.errors import DataError, KubeAlignError
from alignment.evaluation.answers import Answers, Scorable
from alignment.evaluation.opinions import Contest, Opinions
from alignment.evaluation.results import (
    REFERENCE_MEANS,
    Counts,
    Measures,
    Question,
    Shares,
    asks,
    columns,
    compares,
    count,
    kind_of,
    measure,
    reply_of,
    rules_of,
)
from alignment.rewards import resolve

KEPT = ("usage", "ended", "detail", "turns", "steps")
"""What of an answer's making stands in answers.jsonl: what it took at an endpoint, and its trace (retrieving.py)."""
SHOWN = ("exact_match", "f1", "rouge_l", "reward", "style")
"""Numbers of a single answer in answers.jsonl where no metrics are named; else all of them."""
NONE = Opinions()
"""What nobody says."""
Said = dict[str, dict[str, tuple[str, bool]]]
"""Model (and maybe REFERENCE) -> row id -> (text, finished)."""


def said_by_all(stage: Evaluate, questions: Sequence[Question], answered: Mapping[str, Answers]) -> Said:
    """What is measured: every model's answers, and the references where answers are scored."""
    said: Said = {name: {q.id: (own.answers[q.id]["text"], own.answers[q.id]["finished"]) for q in questions}
                  for name, own in answered.items()}
    references = {q.id: (q.reference, True) for q in questions if q.reference is not None}
    if stage.score is not None and references:
        said[REFERENCE] = references
    return said


def scorables(questions: Sequence[Question], said: Said) -> list[Scorable]:
    """For each question the different texts to score, in the order of the models."""
    return [Scorable(q.id, q.prompt, tuple(dict.fromkeys(own[q.id][0] for own in said.values() if q.id in own)))
            for q in questions]


def measure_all(
    stage: Evaluate, questions: Sequence[Question], said: Said, rewards: Mapping[str, Mapping[str, float]],
    answered: Mapping[str, Answers] = {}, opinions: Opinions = NONE,
) -> tuple[dict[str, dict[str, Measures]], dict[str, dict[str, Counts]]]:
    """(numbers, what they add to sums) of all that was said: model -> row id -> by name.

    Args:
        answered: for the likelihoods of references.
        rewards: row id -> text -> score; empty without a reward model.
        opinions: what the judge says; empty without one.

    Raises:
        DataError: the scoring function failed; names the row.
    """
    rules = rules_of(stage, questions)
    numbers: dict[str, dict[str, Measures]] = {}
    counts: dict[str, dict[str, Counts]] = {}
    for name, own in said.items():
        numbers[name], counts[name] = {}, {}
        for question in (q for q in questions if q.id in own):
            text, finished = own[question.id]
            known = answered[name].log_probs.get(question.id) if name in answered else None
            reply = reply_of(question, text, finished, known)
            names = [each for each in stage.measured if name != REFERENCE or each in REFERENCE_MEANS]
            counts[name][question.id] = added = count(reply, rules, stage) if name != REFERENCE else {}
            numbers[name][question.id] = measure(
                reply, rules, names, reward=rewards.get(question.id, {}).get(text, math.nan),
                style=_style(stage, question, text), stage=stage, judge=opinions.mark(question.id, text), counts=added)
    return numbers, counts


def answer_line(
    question: Question, stage: Evaluate, said: Said, measures: Mapping[str, Mapping[str, Measures]],
    counts: Mapping[str, Mapping[str, Counts]], answered: Mapping[str, Answers], opinions: Opinions = NONE,
) -> dict[str, Any]:
    """One line of answers.jsonl: the question and every model's answer to it, with its numbers, what it adds to sums
    and what it took at an endpoint; what a judge says of two answers stands beside them; numbers may be NaN."""
    meta = question.record.meta
    shown = ((*SHOWN, *(["judge"] if asks(stage, "judge") else [])) if stage.metrics is None
             else (*(name for name in columns(stage) if name != "finished"),))
    judged = {f"{one}_vs_{other}": opinions.verdict(question.id, said[one][question.id][0], said[other][question.id][0])
              for one, other in (stage.pairs() if compares(stage) else ())}
    return {
        "id": question.id,
        "kind": kind_of(question.record),
        "question": meta.get("question"),
        "passage": meta.get("passage"),
        "prompt": question.prompt,
        "reference": question.reference,
        **({"judged": judged} if judged else {}),
        "answers": {
            name: {
                "text": said[name][question.id][0],
                "finished": said[name][question.id][1],
                **{metric: measures[name][question.id][metric] for metric in shown},
                "tokens": answered[name].answers[question.id]["tokens"],
                **({"counts": added} if (added := counts[name][question.id]) else {}),
                **{key: value for key, value in answered[name].answers[question.id].items() if key in KEPT},
            }
            for name in stage.models
        },
    }


def contests(stage: Evaluate, questions: Sequence[Question], said: Said) -> list[Contest]:
    """What a judge is asked about: each model's answer to a question, or every two that are compared."""
    made = []
    for question in questions:
        record = replace(question.record, prompt=question.prompt, completion=question.reference)
        texts = tuple(dict.fromkeys(said[name][question.id][0] for name in stage.models))
        pairs = [(said[one][question.id][0], said[other][question.id][0]) for one, other in stage.pairs()]
        # Two answers are shown in both orders whoever gave them.
        distinct = {frozenset(pair): pair for pair in pairs if pair[0].strip() != pair[1].strip()}
        made.append(Contest(record, pairs=tuple(distinct.values())) if compares(stage) else Contest(record, texts))
    return [contest for contest in made if contest.texts or contest.pairs]


def shares_of(stage: Evaluate, questions: Sequence[Question], said: Said, opinions: Opinions) -> Shares:
    """What a judge that compares says of the models that are compared."""
    return {(one, other): {q.id: opinions.share(q.id, said[one][q.id][0], said[other][q.id][0]) for q in questions}
            for one, other in (stage.pairs() if compares(stage) else ())}


def _style(stage: Evaluate, question: Question, text: str) -> float:
    """The scoring function's value of one answer; NaN without a function. It sees the record as sampling shows it:
    a conversation's last answer is its completion, and an unwanted answer is none."""
    if stage.score is None or stage.score.function is None:
        return math.nan
    record = replace(question.record, prompt=question.prompt, completion=question.reference)
    try:
        return float(resolve(stage.score.function)(record, text))
    except KubeAlignError:
        raise
    except Exception as error:  # the user's own code: whatever it raises, say for which row
        raise DataError(f"the scoring function failed: {type(error).__name__}: {error}", found=text,
                        where=f"stage {stage.name}, score.function {stage.score.function}, row {record.id}",
                        expected="a number (NaN for an answer that it cannot judge)") from error
