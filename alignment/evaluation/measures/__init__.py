"""The metrics that an evaluation can name: one file each, called as the metric is, which holds its `MEASURE`.

Facts and plain functions: no torch, no models, no files. What a file needs beyond the standard library (numpy,
rouge_score, sacrebleu, rjieba) is imported when a number is asked for, so that the report, `check` and `explain` read
the facts without it, at once. What a measure is: base.py. Which metrics there are: `MetricName` in
config/stages/evaluate.py, which a test holds to the files here. Means, intervals and tables are results.py's.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import get_args

from alignment.config.stages.evaluate import MetricName
from alignment.evaluation.measures.base import Measure, Pooled, Reply, Rules, answer_of

NAMES: tuple[str, ...] = get_args(MetricName)
"""Every metric, in the order in which lists show them."""

__all__ = ["NAMES", "Measure", "Pooled", "Reply", "Rules", "answer_of", "measure_of"]


@cache
def measure_of(name: str) -> Measure:
    """The measure that a run file calls so."""
    found: Measure = import_module(f"{__name__}.{name}").MEASURE
    return found
