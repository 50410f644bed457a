"""What lm-evaluation-harness measured, as one table: results.json, flat metrics, and a line for every answer.

Values and standard errors are the harness's own; 95 % intervals of a value are 1.96 of these on each side, Wilson's
where all documents are worth the same share. Differences
of two models are ours: documents in pairs, resampled, where a metric is a mean over documents. Pure, no files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any

from alignment.config import EvaluateHarness
from alignment.config.harness import flat
from alignment.evaluation.metrics import LEVEL, difference_ci, wilson
from alignment.evaluation.results import without_nan

_HALF = NormalDist().inv_cdf((1 + LEVEL) / 2)
Results = Mapping[str, Mapping[str, Any]]
"""Model -> the harness's `EvalResults`, samples among them."""


def table(stage: EvaluateHarness, results: Results, told: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What results.json holds; undefined numbers are None.

    Args:
        told: task -> what is known of it beside.
        seed: of the bootstrap.
    """
    first = next(iter(results.values()))
    tasks = {name: {"documents": first["n-samples"][name]["effective"], "of": first["n-samples"][name]["original"],
                    "version": first["versions"][name], "num_fewshot": first["n-shot"][name],
                    "better": _better(first, name), **told[name]} for name in first["results"]}
    measured = {model: {name: _measured(own["results"][name], own["samples"][name]) for name in tasks}
                for model, own in results.items()}
    made: dict[str, Any] = without_nan({
        "tasks": tasks, "measured": measured,
        "gains": [{"challenger": one, "baseline": other, "tasks": {
            name: _gains(results[one], results[other], name, measured[one][name], stage.bootstrap, seed)
            for name in tasks}} for one, other in stage.pairs()]})
    return made


def _better(own: Mapping[str, Any], task: str) -> dict[str, str]:
    ways = own["higher_is_better"].get(task) or {}
    names = {"True": "higher", "False": "lower"}
    return {flat(metric, kind): names.get(str(ways.get(metric)), "neither")
            for metric, kind in _keys(own["results"][task])}


def _keys(measured: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(metric, filter) of the harness's keys `METRIC,FILTER`, without those of standard errors."""
    for key in measured:
        metric, comma, kind = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            yield metric, kind


def _measured(measured: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    made, values = {}, _values(samples)
    for metric, kind in _keys(measured):
        value = _number(measured[f"{metric},{kind}"])
        error = _number(measured.get(f"{metric}_stderr,{kind}"))
        low, high = value - _HALF * error, value + _HALF * error
        own = list(values.get((metric, kind), {}).values())
        if own and all(0 <= one <= 1 for one in own) and not math.isnan(error):
            # Equal shares have no error, however few they are; and no share lies outside.
            low, high = wilson(own[0], len(own)) if len(set(own)) == 1 else (max(low, 0.0), min(high, 1.0))
        made[flat(metric, kind)] = {"value": value, "stderr": error, "low": low, "high": high}
    return made


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan  # the harness's "N/A"


def _gains(one: Mapping[str, Any], other: Mapping[str, Any], task: str, measured: Mapping[str, Mapping[str, float]],
           resamples: int, seed: int) -> dict[str, dict[str, float]]:
    """Differences of metrics that are means over documents, over the documents that both have them of."""
    made = {}
    values = [_values(own["samples"][task]) for own in (one, other)]
    for metric, kind in _keys(one["results"][task]):
        first, second = (own.get((metric, kind), {}) for own in values)
        ids = [id_ for id_ in first if id_ in second]
        if is_mean([first[id_] for id_ in ids], measured[flat(metric, kind)]["value"]):
            gain = difference_ci([first[id_] for id_ in ids], [second[id_] for id_ in ids],
                                 share=all(0 <= own[id_] <= 1 for own in (first, second) for id_ in ids),
                                 resamples=resamples, seed=seed)
            made[flat(metric, kind)] = {"value": gain.value, "low": gain.low, "high": gain.high}
    return made


def is_mean(numbers: Collection[float], value: float | None) -> bool:
    """Whether a metric's value is the mean of what its documents got."""
    return value is not None and bool(numbers) and math.isclose(
        math.fsum(numbers) / len(numbers), value, rel_tol=1e-9, abs_tol=1e-12)


def _values(samples: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[int, float]]:
    """(metric, filter) -> document -> its number, of metrics that give each document one."""
    made: dict[tuple[str, str], dict[int, float]] = {}
    for one in samples:
        for metric in one["metrics"]:
            if isinstance(one[metric], (int, float)) or hasattr(one[metric], "item"):
                made.setdefault((metric, one["filter"]), {})[one["doc_id"]] = float(one[metric])
    return made


def flat_metrics(results: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """Metrics of the manifest by flat name, and the names of those left out because they are undefined."""
    named: dict[str, float | None] = {}
    for model, tasks in results["measured"].items():
        for task, metrics in tasks.items():
            for metric, own in metrics.items():
                name = f"{model}.{name_of(task)}.{metric}"
                named |= {name: own["value"], f"{name}_low": own["low"], f"{name}_high": own["high"]}
    for gain in results["gains"]:
        for task, metrics in gain["tasks"].items():
            for metric, own in metrics.items():
                name = f"{gain['challenger']}_vs_{gain['baseline']}.{name_of(task)}.{metric}_gain"
                named |= {name: own["value"], f"{name}_low": own["low"], f"{name}_high": own["high"]}
    return ({name: value for name, value in named.items() if value is not None},
            [name for name, value in named.items() if value is None])


def name_of(task: str) -> str:
    """A task's name as aims may write it."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", task)


def lines(model: str, own: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Lines of samples.jsonl: what a model was asked of each document, what it said, what that is worth."""
    for task, samples in own["samples"].items():
        for one in samples:
            yield {"id": f"{task}/{one['doc_id']}", "model": model, "task": task, "filter": one["filter"],
                   "requests": [[str(part) if isinstance(part, str) else part for part in given]
                                for given in one["arguments"]],
                   "answers": _plain(one["resps"]), "filtered": _plain(one["filtered_resps"]),
                   "target": _plain(one["target"]), "metrics": {name: _plain(one[name]) for name in one["metrics"]},
                   "document": _plain(one["doc"])}


def _plain(value: Any) -> Any:
    """A value of the harness's as JSON has it; what JSON cannot hold is written as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value if value is None or isinstance(value, (str, bool, int, float)) else str(value)
