"""The table of an evaluation: measured answers in, `results.json` and flat metrics out. Pure, no torch, no files.

Everything is joined by row id; a position never decides which score belongs to which answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from alignment.config import Evaluate
from alignment.config.stages.evaluate import REFERENCE
from alignment.errors import ConfigError
from alignment.evaluation.length_control import length_controlled
from alignment.evaluation.measures import Pooled, Reply, Rules, answer_of, measure_of
from alignment.evaluation.measures.base import SHARE
from alignment.evaluation.measures.bleu import cut_of
from alignment.evaluation.metrics import (
    Floats,
    difference_ci,
    finite_mean,
    histogram,
    mean_ci,
    pooled_ci,
    pooled_difference_ci,
    win_rate,
)
from alignment.records import Message, Record
from alignment.records.importers.retrieval import question_turns
from alignment.rewards import FACTS, combine
from alignment.words import words

SCORED = ("reward", "style", "judge")
"""Columns that `score` adds."""
TRACED = ("answered", "gold_recall", "fact_recall", "turns", "calls")
"""Columns that `retrieve` adds: means of what traces are worth (retrieving.py)."""
_COUNTED = ("turns", "calls")
REFERENCE_MEANS = ("reward", "style", "words")
COMPARED = {"score": "win_rate", "reward": "reward_win_rate", "style": "style_win_rate", "judge": "judge_win_rate"}
"""What win rates are counted by, and the metric's name."""
CONTROLLED = {"reward": "reward_lc_win_rate", "judge": "judge_lc_win_rate"}
"""Of what the win rate is also given as it would be of answers that are as long as each other."""
Shares = Mapping[tuple[str, str], Mapping[str, float]]
"""(challenger, baseline) -> row id -> the challenger's share by a judge that compares: 1, 0.5, 0 or NaN."""
GAINED = ("exact_match", "f1", "style")
"""Of what the difference of two models is taken where no metrics are named; else of all that are, and of style."""
Measures = dict[str, float]
"""One answer's numbers by name: those of `columns`, and `score`; NaN where there is none."""
Counts = dict[str, tuple[float, ...]]
"""What one row adds to the sums of each metric that is no mean over rows, by metric."""


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


def asks(stage: Evaluate, name: str) -> bool:
    """Whether the stage's `score` has what the number is made from; true of what needs no score."""
    score = stage.score
    if name == "reward":
        return score is not None and score.model is not None
    if name == "style":
        return score is not None and score.function is not None
    if name == "judge":
        return score is not None and score.judge is not None and score.judge.mode == "score"
    return name != "score" or score is not None


def compares(stage: Evaluate) -> bool:
    """Whether a judge is shown two answers at once, so that an answer has no score of its own by it."""
    return stage.score is not None and stage.score.judge is not None and stage.score.judge.mode == "compare"


def counted_by(stage: Evaluate) -> Iterator[str]:
    """What win rates are counted by."""
    return (name for name in COMPARED if asks(stage, name) or (name == "judge" and compares(stage)))


def columns(stage: Evaluate) -> tuple[str, ...]:
    """Names of the table's columns."""
    return (*stage.measured, *(name for name in SCORED if asks(stage, name)))


def gained(stage: Evaluate) -> tuple[str, ...]:
    """Of what the difference of two models is taken."""
    names = GAINED if stage.metrics is None else (*stage.metrics, "style")
    return tuple(name for name in names if asks(stage, name))


def rules_of(stage: Evaluate, questions: Sequence[Question]) -> Rules:
    """What all rows are compared by, settled once."""
    cut = cut_of(stage.language, (text for q in questions for text in q.references)) if "bleu" in stage.measured else ""
    kinds = frozenset(kind for q in questions if (kind := kind_of(q.record)) is not None)
    return Rules(stage.answer_pattern, stage.language, stage.segmentation, kinds, cut)


def reply_of(question: Question, text: str, finished: bool, likelihood: tuple[float, int] | None = None) -> Reply:
    """An answer as measures see it."""
    return Reply(text, finished, question.references, kind_of(question.record), likelihood)


def measure(
    reply: Reply, rules: Rules, names: Iterable[str], *, reward: float, style: float, stage: Evaluate,
    judge: float = math.nan, counts: Mapping[str, tuple[float, ...]] = {},
) -> Measures:
    """Numbers of one answer: those of the named metrics, its length in words, and its scores; `reward`, `style` and
    `judge` are NaN where the stage has no such scorer. What a judge that compares says is in no answer's score.
    `counts`: what the answer adds to sums, by metric; one that is not in it is counted here."""
    marks = stage.score.judge if stage.score is not None and asks(stage, "judge") else None
    return {
        **{name: measure_of(name).of(reply, rules, counts.get(name)) for name in names},
        "length": float(len(words(reply.text))),
        "reward": reward,
        "style": style,
        "judge": judge,
        "score": math.nan if stage.score is None else combine(stage.score, style, reward, judge, marks),
    }


def prove(stage: Evaluate) -> None:
    """Measure one answer, before hours are spent on answers that a missing package leaves unmeasured.

    Raises:
        ConfigError: names the metric and the package.
    """
    reply, rules = Reply("yes, 1", True, ("yes, 1",), "a", (-1.0, 1)), rules_of(stage, ())
    for name in stage.measured:
        try:
            measure_of(name).of(reply, rules)
        except ImportError as error:
            raise ConfigError(f"metric {name} needs a package that is not installed", found=error.name,
                              where=f"stage {stage.name}, metrics", expected="the extra `train`") from error


def count(reply: Reply, rules: Rules, stage: Evaluate) -> Counts:
    """What one answer adds to sums; nothing of a metric whose row lacks what it takes."""
    made: Counts = {}
    for name in stage.measured:
        one = measure_of(name)
        if one.pooled is not None and one.lacks(reply, rules) is None:
            made[name] = one.pooled.counts(reply, rules)
    return made


class Table:
    """Measures of all models over the same rows, with the summaries made from them.

    Args:
        questions: the test rows, in the split's order.
        measures: model (and maybe REFERENCE) -> row id -> numbers. The reference line may lack rows.
        counts: model -> row id -> what it adds to sums.
        seed: of the bootstrap.
        shares: what a judge that compares says.
    """

    def __init__(
        self,
        stage: Evaluate,
        questions: Sequence[Question],
        measures: Mapping[str, Mapping[str, Measures]],
        counts: Mapping[str, Mapping[str, Counts]],
        seed: int,
        shares: Shares | None = None,
    ) -> None:
        self.stage, self.questions, self.measures, self.counts = stage, questions, measures, counts
        self.shares = shares or {}
        self.draws = {"resamples": stage.bootstrap, "seed": seed}

    def column(self, model: str, metric: str) -> list[float]:
        """One number per row, in the order of the rows."""
        measured = self.measures[model]
        return [measured[q.id][metric] if q.id in measured else math.nan for q in self.questions]

    def sums(self, model: str, metric: str) -> Floats | None:
        """(rows, K) what each row adds, NaN where it adds nothing; None where no row does."""
        found = [self.counts.get(model, {}).get(q.id, {}).get(metric) for q in self.questions]
        width = next((len(one) for one in found if one is not None), None)
        if width is None:
            return None
        return np.array([[math.nan] * width if one is None else one for one in found], dtype=np.float64)

    def results(self) -> dict[str, Any]:
        """What results.json holds; undefined numbers are None."""
        scores = {model: self.column(model, "reward") for model in self.measures}
        named: dict[str, Any] = {} if self.stage.metrics is None else {"columns": list(columns(self.stage))}
        table = {
            "rows": len(self.questions),
            "reference_words": self._reference_words(),
            **named,
            "models": {model: dict(self._line(model)) for model in self.measures},
            "compare": list(self._comparisons()),
            "differences": list(self._differences()),
            "by_kind": self._by_kind(),
            "reward_histogram": histogram(scores),
            "answer_pattern": self.stage.answer_pattern,
            "signatures": self._signatures(),
        }
        cleaned: dict[str, Any] = without_nan(table)
        return cleaned

    def _signatures(self) -> dict[str, str]:
        """How metrics that have such a thing were computed, as their community writes it."""
        rules, made = rules_of(self.stage, self.questions), {}
        lengths = {len(q.references) for q in self.questions if q.references}
        for name in self.stage.measured:
            signature = measure_of(name).signature
            if signature is not None and lengths:
                made[name] = signature(rules, lengths)
        return made

    def _reference_words(self) -> float | None:
        """Median length of the references, of the part that is compared; long ones are free text."""
        lengths = [len(words(answer_of(q.reference, self.stage.answer_pattern)))
                   for q in self.questions if q.reference is not None]
        return float(median(lengths)) if lengths else None

    def _line(self, model: str) -> Iterator[tuple[str, dict[str, float]]]:
        for metric in columns(self.stage):
            if model == REFERENCE and metric not in REFERENCE_MEANS:
                continue
            pooled = _pooled(metric)
            if pooled is None:
                yield metric, mean_ci(self.column(model, metric), share=self._share(metric), **self.draws)._asdict()
            elif (sums := self.sums(model, metric)) is not None:
                yield metric, pooled_ci(sums, pooled.total, **self.draws)._asdict()
            elif self.stage.metrics is not None:  # asked for by name, and no row has it: undefined, and said
                yield metric, mean_ci([math.nan] * len(self.questions))._asdict()
        for metric in TRACED if self.stage.retrieve is not None and model != REFERENCE else ():
            share = metric not in _COUNTED
            yield metric, mean_ci(self.column(model, metric), share=share, **self.draws)._asdict()

    def _share(self, metric: str) -> bool:
        """Whether the metric's numbers lie between 0 and 1, as those of built-in functions do."""
        if metric in SCORED:
            facts = FACTS.get(self.stage.score.function or "") if self.stage.score is not None else None
            return metric == "style" and facts is not None and (facts.low, facts.high) == (0, 1)
        return measure_of(metric).span == SHARE

    def _comparisons(self) -> Iterator[dict[str, Any]]:
        for challenger, baseline in self.stage.pairs():
            for by in counted_by(self.stage):
                first, second = self._scores(challenger, baseline, by)
                result = win_rate(first, second, **self.draws)
                yield {"challenger": challenger, "baseline": baseline, "by": by, **result._asdict(),
                       **({"length_controlled": self._controlled(challenger, baseline, first, second)}
                          if by in CONTROLLED else {})}

    def _scores(self, challenger: str, baseline: str, by: str) -> tuple[list[float], list[float]]:
        """What two models' answers are compared by, row by row."""
        if by not in ("judge", "score") or not compares(self.stage):
            return self.column(challenger, by), self.column(baseline, by)
        shares = [self.shares[challenger, baseline].get(q.id, math.nan) for q in self.questions]
        if by == "judge":
            return shares, [1 - share for share in shares]
        assert self.stage.score is not None
        assert self.stage.score.judge is not None
        weight = self.stage.score.judge.weight
        return ([own + weight * share for own, share in zip(self.column(challenger, by), shares, strict=True)],
                [own + weight * (1 - share) for own, share in zip(self.column(baseline, by), shares, strict=True)])

    def _controlled(self, challenger: str, baseline: str, first: Sequence[float], second: Sequence[float]
                    ) -> dict[str, float]:
        outcomes = [math.nan if math.isnan(a) or math.isnan(b) else 1.0 if a > b else 0.5 if a == b else 0.0
                    for a, b in zip(first, second, strict=True)]
        lengths = list(zip(self.column(challenger, "length"), self.column(baseline, "length"), strict=True))
        return length_controlled(outcomes, lengths, **self.draws)._asdict()

    def _differences(self) -> Iterator[dict[str, Any]]:
        for challenger, baseline in self.stage.pairs():
            for metric in gained(self.stage):
                pooled = _pooled(metric)
                if pooled is None:
                    interval = difference_ci(self.column(challenger, metric), self.column(baseline, metric),
                                             share=self._share(metric), **self.draws)
                else:
                    first, second = self.sums(challenger, metric), self.sums(baseline, metric)
                    if first is None or second is None:
                        continue
                    interval = pooled_difference_ci(first, second, pooled.total, **self.draws)
                yield {"challenger": challenger, "baseline": baseline, "metric": metric, **interval._asdict()}

    def _by_kind(self) -> dict[str, dict[str, dict[str, float]]]:
        kinds = dict.fromkeys(kind for q in self.questions if (kind := kind_of(q.record)) is not None)
        return {kind: {model: self._kind_line(model, kind) for model in self.stage.models} for kind in kinds}

    def _kind_line(self, model: str, kind: str) -> dict[str, float]:
        places = [place for place, q in enumerate(self.questions) if kind_of(q.record) == kind]
        line = {metric: self._of(model, metric, places) for metric in gained(self.stage)}
        return {**line, "n": len(places)}

    def _of(self, model: str, metric: str, places: Sequence[int]) -> float:
        """A metric over some of the rows; NaN where none has it."""
        pooled = _pooled(metric)
        if pooled is None:
            values = self.column(model, metric)
            return finite_mean([values[place] for place in places])
        sums = self.sums(model, metric)
        kept = np.empty((0, 0)) if sums is None else sums[places][np.isfinite(sums[places]).all(axis=1)]
        return float(pooled.total(kept.sum(axis=0, keepdims=True))[0]) if len(kept) else math.nan


def _pooled(metric: str) -> Pooled | None:
    return None if metric in SCORED else measure_of(metric).pooled


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
        if pair["by"] in CONTROLLED:
            named |= _bounded({**pair, **pair["length_controlled"]}, CONTROLLED[pair["by"]], "value")
    for pair in results["differences"]:
        less = pair["metric"] not in SCORED and measure_of(pair["metric"]).better == "lower"
        named |= _bounded(pair, f"{pair['metric']}_gain", "value", "high" if less else "low")
    return ({name: value for name, value in named.items() if value is not None},
            [name for name, value in named.items() if value is None])


def _bounded(pair: dict[str, Any], name: str, value: str, end: str = "low") -> dict[str, float | None]:
    """A comparison's value and the end of its interval that is nearer to no gain: an aim on that asks for more than
    chance gives."""
    name = f"{pair['challenger']}_vs_{pair['baseline']}.{name}"
    return {name: pair[value], f"{name}_{end}": pair[end]}


def without_nan(value: Any) -> Any:
    """A copy in which every number that JSON cannot hold (NaN, infinities) is None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return [without_nan(item) for item in value] if isinstance(value, list | tuple) else value
