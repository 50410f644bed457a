"""From scored answers to training rows: best-of-N (rejection sampling) and preference pairs.

Every prompt ends either as a row or as one count in `dropped` with its reason. Ties, NaN scores, empty and
identical answers never become rows, and an answer that max_new_tokens cut is never the good side.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from alignment.records import Record
from alignment.sampling.answers import Answer


@dataclass
class Selection:
    """Rows made, and how many prompts made none, by reason."""

    records: list[Record] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def best_of_n(prompts: Mapping[str, Record], answers: Iterable[Answer], *, min_score: float | None = None) -> Selection:
    """The best answer of the newest model for each prompt, as prompt-completion rows with id ID-best.

    Args:
        prompts: by row id.
        answers: of any prompts, in any order.
        min_score: rows below it are dropped.
    """
    made = Selection()
    for row, said in _by_prompt(prompts, answers):
        newest = [answer for answer in said if answer.model == "newest"]
        best = _highest(newest)
        if best is None:
            made.dropped[f"best: {_why_none(newest)}"] += 1
        elif min_score is not None and best.score < min_score:
            made.dropped["best: score under min_score"] += 1
        else:
            meta = {**prompts[row].meta, "prompt_id": row, "score": best.score, "n": len(newest)}
            made.records.append(Record(id=f"{row}-best", type="prompt-completion", prompt=prompts[row].prompt,
                                       completion=best.text, meta=meta))
    return made


def pairs_max_min(
    prompts: Mapping[str, Record], answers: Iterable[Answer], *, min_margin: float = 0.0,
    min_score: float | None = None,
) -> Selection:
    """For each prompt the highest answer against the lowest, of all the models that answered.

    Args:
        min_margin: chosen must score more than rejected by over this much.
        min_score: chosen must score at least this: of two bad answers neither is to be preferred.
    """
    made = Selection()
    for row, said in _by_prompt(prompts, answers):
        _add_pair(made, prompts[row], said, said, min_margin, min_score)
    return made


def pairs_newest_previous(
    prompts: Mapping[str, Record], answers: Iterable[Answer], *, min_margin: float = 0.0,
    min_score: float | None = None,
) -> Selection:
    """For each prompt the newest model's highest answer against the previous model's lowest."""
    made = Selection()
    for row, said in _by_prompt(prompts, answers):
        _add_pair(made, prompts[row], [a for a in said if a.model == "newest"],
                  [a for a in said if a.model == "previous"], min_margin, min_score)
    return made


def _add_pair(
    made: Selection, prompt: Record, good: Sequence[Answer], bad: Sequence[Answer], min_margin: float,
    min_score: float | None,
) -> None:
    chosen = _highest(good)
    if chosen is None:
        made.dropped[f"pairs: {_why_none(good)}"] += 1
        return
    if min_score is not None and chosen.score < min_score:
        made.dropped["pairs: chosen under min_score"] += 1
        return
    scored = [answer for answer in bad if answer.scored and answer is not chosen]
    others = [answer for answer in scored if answer.normal != chosen.normal]
    if not others:
        reason = "only identical answers" if scored else "no second answer with a score"
        made.dropped[f"pairs: {reason}"] += 1
        return
    rejected = min(others, key=lambda answer: (answer.score, answer.model, answer.index))
    margin = chosen.score - rejected.score
    if margin == 0:
        made.dropped["pairs: tied scores"] += 1
    elif margin <= min_margin:
        made.dropped["pairs: chosen not over rejected by min_margin"] += 1
    else:
        meta = {**prompt.meta, "prompt_id": prompt.id, "chosen_score": chosen.score, "rejected_score": rejected.score,
                "gap": margin}
        made.records.append(Record(id=f"{prompt.id}-pair", type="preference", prompt=prompt.prompt,
                                   completion=chosen.text, rejected=rejected.text, meta=meta))


def _highest(answers: Iterable[Answer]) -> Answer | None:
    """The best learnable answer; of equal ones the newest model's first draw, whatever order they came in."""
    fit = [answer for answer in answers if answer.learnable]
    return min(fit, key=lambda answer: (-answer.score, answer.model, answer.index), default=None)


def _why_none(answers: Sequence[Answer]) -> str:
    if not answers:
        return "no answer"
    if not any(answer.finished for answer in answers):
        return "every answer cut by max_new_tokens"
    if all(math.isnan(answer.score) for answer in answers if answer.finished):
        return "every finished answer without a score (NaN)"
    return "no finished answer that says something and has a finite score"


def _by_prompt(prompts: Mapping[str, Record], answers: Iterable[Answer]) -> list[tuple[str, list[Answer]]]:
    """Answers of each prompt, prompts in their own order; an answer to an unknown prompt is a bug and raises."""
    groups: dict[str, list[Answer]] = {row: [] for row in prompts}
    for answer in answers:
        groups[answer.id].append(answer)
    return list(groups.items())
