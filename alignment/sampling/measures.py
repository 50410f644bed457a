"""What a sample stage reports: scores before and after selection, and their distribution. All are functions of the
answers alone, so a killed and resumed stage reports the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, pstdev

import numpy

from alignment.errors import StageError
from alignment.sampling.answers import Answer

BINS = 20


def measures(answers: Sequence[Answer]) -> dict[str, float]:
    """Metrics of the newest model's answers; NaN scores count in no mean.

    Returns:
        prompts, answers, finished_share; mean_score and score_std over answers; best_score and worst_score, means
        over prompts of the highest and lowest score; best_gain, the mean over prompts of the highest score less the
        prompt's mean (what choosing gives; prompts of whose answers some have no score weigh no less);
        mean_function, mean_model and mean_judge where several are asked for; previous_mean_score where there is a
        previous model.

    Raises:
        StageError: no answer of the newest model has a score.
    """
    newest = [answer for answer in answers if answer.model == "newest"]
    by_prompt: dict[str, list[float]] = {}
    for answer in newest:
        if math.isfinite(answer.score):
            by_prompt.setdefault(answer.id, []).append(answer.score)
    if not by_prompt:
        raise StageError("no answer has a score that is a number", found=f"{len(newest)} answers",
                         hint="what scores gave NaN each time; look at how the reward model trained, or at what the "
                              "judge said")
    scores = [score for own in by_prompt.values() for score in own]
    known = {
        "mean_function": _mean(a.function_score for a in newest), "mean_model": _mean(a.model_score for a in newest),
        "mean_judge": _mean(a.judge_score for a in newest),
    }
    parts = {name: value for name, value in known.items() if value is not None}
    previous = _mean(answer.score for answer in answers if answer.model == "previous")
    return {
        "prompts": float(len({answer.id for answer in newest})),
        "answers": float(len(newest)),
        "finished_share": fmean(answer.finished for answer in newest),
        "mean_score": fmean(scores),
        "score_std": pstdev(scores),
        "best_score": fmean(max(own) for own in by_prompt.values()),
        "worst_score": fmean(min(own) for own in by_prompt.values()),
        "best_gain": fmean(max(own) - fmean(own) for own in by_prompt.values()),
        **(parts if len(parts) > 1 else {}),
        **({} if previous is None else {"previous_mean_score": previous}),
    }


def histogram(answers: Iterable[Answer]) -> dict[str, list[float] | list[int]]:
    """Distribution of the newest model's finite scores: 21 edges, 20 counts."""
    scores = [answer.score for answer in answers if answer.model == "newest" and math.isfinite(answer.score)]
    counts, edges = numpy.histogram(scores, bins=BINS)
    return {"edges": [round(float(edge), 6) for edge in edges], "counts": [int(count) for count in counts]}


def _mean(values: Iterable[float | None]) -> float | None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(finite) if finite else None
