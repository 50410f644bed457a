"""The table of an evaluation: measured answers in, `results.json` and flat metrics out. Pure, no torch, no files.

Everything is joined by row id; a position never decides which score belongs to which answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from alignment.config import Evaluate
from alignment.config.stages.evaluate import REFERENCE
from alignment.evaluation.metrics import (
    answer_of,
    difference_ci,
    finite_mean,
    histogram,
    mean_ci,
    perplexity_ci,
    text_metrics,
    win_rate,
)
from alignment.records import Message, Record
from alignment.records.importers.retrieval import question_turns
from alignment.rewards import FACTS, combine
from alignment.words import words

MEANS = ("exact_match", "f1", "rouge_l", "reward", "style", "finished", "words")
SHARES = ("exact_match", "f1", "rouge_l", "finished")
"""Means of numbers from 0 to 1."""
COUNTS = ("turns", "calls")
TRACED = ("answered", "gold_recall", "fact_recall", *COUNTS)
"""Means of what the traces of models that retrieve are worth (retrieving.py)."""
REFERENCE_MEANS = ("reward", "style", "words")
COMPARED = {"score": "win_rate", "reward": "reward_win_rate", "style": "style_win_rate"}
"""What win rates are counted by, and the metric's name."""
GAINED = ("exact_match", "f1", "style")
"""Of what the difference of two models is taken, row by row."""
Measures = dict[str, float]
"""One answer's numbers by name: MEANS and `score`; NaN where there is none."""


@dataclass(frozen=True)
class Question:
    """One question of the test split.

    Attributes:
        prompt: what the models are asked, ending with a user (or tool) turn.
        reference: the answer whose perplexity is measured, or None.
        references: every accepted answer, `reference` first (SQuAD rows accept several).
        told: what stands before the reference in the row, where the models are asked less than that.
    """

    record: Record
    prompt: list[Message]
    reference: str | None
    references: tuple[str, ...]
    told: list[Message] | None = None

    @property
    def before(self) -> list[Message]:
        """What the reference is measured behind: what was learned before such an answer."""
        return self.prompt if self.told is None else self.told

    @property
    def id(self) -> str:
        return self.record.id


def question_of(record: Record, retrieve: bool = False) -> Question:
    """Take question and reference out of a record of any type; an unwanted answer, or a call, is no reference.

    Args:
        retrieve: the models are asked the question alone, without the calls and passages of the row.
    """
    prompt, reference = record.prompt, record.reference()
    if record.type == "messages":
        answered = bool(record.messages) and record.messages[-1]["role"] == "assistant"
        prompt = record.messages[:-1] if answered else record.messages
    more = record.meta.get("references") or []
    every = [text for text in [reference, *more] if isinstance(text, str)]
    return Question(record, question_turns(record) if retrieve else prompt, reference, tuple(dict.fromkeys(every)),
                    prompt if retrieve else None)


def measure(
    question: Question, text: str, finished: bool, *, reward: float, style: float, stage: Evaluate
) -> Measures:
    """All numbers of one answer; `reward` and `style` are NaN where the stage has no such scorer."""
    return {
        **text_metrics(text, question.references, stage.answer_pattern, stage.language),
        "reward": reward,
        "style": style,
        "score": math.nan if stage.score is None else combine(stage.score, style, reward),
        "finished": float(finished),
        "words": float(len(words(text))),
    }


class Table:
    """Measures of all models over the same rows, with the summaries made from them.

    Args:
        questions: the test rows, in the split's order.
        measures: model (and maybe REFERENCE) -> row id -> numbers. The reference line may lack rows.
        perplexity: model -> row id -> (summed log-probability in nats, tokens) of the reference.
        seed: of the bootstrap.
    """

    def __init__(
        self,
        stage: Evaluate,
        questions: Sequence[Question],
        measures: dict[str, dict[str, Measures]],
        perplexity: dict[str, dict[str, tuple[float, int]]],
        seed: int,
    ) -> None:
        self.stage, self.questions, self.measures, self.perplexity = stage, questions, measures, perplexity
        self.draws = {"resamples": stage.bootstrap, "seed": seed}

    def column(self, model: str, metric: str) -> list[float]:
        """One number per row, in the order of the rows."""
        measured = self.measures[model]
        return [measured[q.id][metric] if q.id in measured else math.nan for q in self.questions]

    def results(self) -> dict[str, Any]:
        """What results.json holds; undefined numbers are None."""
        scores = {model: self.column(model, "reward") for model in self.measures}
        table = {
            "rows": len(self.questions),
            "reference_words": self._reference_words(),
            "models": {model: dict(self._line(model)) for model in self.measures},
            "compare": list(self._comparisons()),
            "differences": list(self._differences()),
            "by_kind": self._by_kind(),
            "reward_histogram": histogram(scores),
            "answer_pattern": self.stage.answer_pattern,
        }
        cleaned: dict[str, Any] = without_nan(table)
        return cleaned

    def _reference_words(self) -> float | None:
        """Median length of the references, of the part that is compared; long ones are free text."""
        lengths = [len(words(answer_of(q.reference, self.stage.answer_pattern)))
                   for q in self.questions if q.reference is not None]
        return float(median(lengths)) if lengths else None

    def _line(self, model: str) -> Iterator[tuple[str, dict[str, float]]]:
        for metric in REFERENCE_MEANS if model == REFERENCE else MEANS:
            if self._asked(metric):
                yield metric, mean_ci(self.column(model, metric), share=self._share(metric), **self.draws)._asdict()
        for metric in TRACED if self.stage.retrieve is not None and model != REFERENCE else ():
            share = metric not in COUNTS
            yield metric, mean_ci(self.column(model, metric), share=share, **self.draws)._asdict()
        if model in self.perplexity:
            pairs = list(self.perplexity[model].values())
            interval = perplexity_ci([p[0] for p in pairs], [p[1] for p in pairs], **self.draws)
            yield "perplexity", interval._asdict()

    def _asked(self, metric: str) -> bool:
        score = self.stage.score
        if metric == "reward":
            return score is not None and score.model is not None
        if metric == "style":
            return score is not None and score.function is not None
        return metric != "score" or score is not None

    def _share(self, metric: str) -> bool:
        """Whether the metric's numbers lie between 0 and 1, as those of built-in functions do."""
        facts = FACTS.get(self.stage.score.function or "") if self.stage.score is not None else None
        return metric in SHARES or (metric == "style" and facts is not None and (facts.low, facts.high) == (0, 1))

    def _comparisons(self) -> Iterator[dict[str, Any]]:
        for challenger, baseline in self.stage.pairs():
            for by in filter(self._asked, COMPARED):
                result = win_rate(self.column(challenger, by), self.column(baseline, by), **self.draws)
                yield {"challenger": challenger, "baseline": baseline, "by": by, **result._asdict()}

    def _differences(self) -> Iterator[dict[str, Any]]:
        for challenger, baseline in self.stage.pairs():
            for metric in filter(self._asked, GAINED):
                first, second = self.column(challenger, metric), self.column(baseline, metric)
                interval = difference_ci(first, second, share=self._share(metric), **self.draws)
                yield {"challenger": challenger, "baseline": baseline, "metric": metric, **interval._asdict()}

    def _by_kind(self) -> dict[str, dict[str, dict[str, float]]]:
        kinds = dict.fromkeys(kind for q in self.questions if (kind := kind_of(q.record)) is not None)
        return {kind: {model: self._kind_line(model, kind) for model in self.stage.models} for kind in kinds}

    def _kind_line(self, model: str, kind: str) -> dict[str, float]:
        ids = [q.id for q in self.questions if kind_of(q.record) == kind]
        line = {
            metric: finite_mean([self.measures[model][id_][metric] for id_ in ids])
            for metric in filter(self._asked, GAINED)
        }
        return {**line, "n": len(ids)}


def kind_of(record: Record) -> str | None:
    """The row's kind as text, or None."""
    kind = record.meta.get("kind")
    return None if kind is None else str(kind)


def flat_metrics(results: dict[str, Any]) -> tuple[dict[str, float], list[str]]:
    """Metrics of the manifest by flat name, and the names of those left out because they are undefined."""
    named = {f"{model}.{metric}": cell["value"] for model, line in results["models"].items()
             for metric, cell in line.items()}
    for pair in results["compare"]:
        named |= _bounded(pair, COMPARED[pair["by"]], "rate")
    for pair in results["differences"]:
        named |= _bounded(pair, f"{pair['metric']}_gain", "value")
    return ({name: value for name, value in named.items() if value is not None},
            [name for name, value in named.items() if value is None])


def _bounded(pair: dict[str, Any], name: str, value: str) -> dict[str, float | None]:
    """A comparison's value and the lower end of its interval: an aim on that asks for more than chance gives."""
    name = f"{pair['challenger']}_vs_{pair['baseline']}.{name}"
    return {name: pair[value], f"{name}_low": pair["low"]}


def without_nan(value: Any) -> Any:
    """A copy in which every number that JSON cannot hold (NaN, infinities) is None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return [without_nan(item) for item in value] if isinstance(value, list | tuple) else value
