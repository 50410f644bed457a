"""Aims, and gates of rounds, that can never be judged, because no stage makes the metric that they name. Reads no
results.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

from alignment.config import (
    Aim,
    AnyStage,
    Evaluate,
    EvaluateHarness,
    EvaluatePairs,
    Export,
    ImportData,
    ImportDocuments,
    Run,
    Stage,
)
from alignment.config.harness import flat
from alignment.config.stages.evaluate import REFERENCE
from alignment.config.stages.fields import Place
from alignment.errors import ConfigError
from alignment.reference.emitted import DECIDED, Metric, metrics

_NEAR = 3
"""Names at most that may have been meant."""
NAMES: dict[type[Stage], Callable[[Any], Mapping[str, tuple[str, ...]]]] = {
    ImportData: lambda stage: {"SPLIT": stage.splits()}, ImportDocuments: lambda stage: {"SPLIT": stage.splits()},
    Evaluate: lambda stage: {
        "CHALLENGER_vs_BASELINE": tuple(f"{challenger}_vs_{baseline}" for challenger, baseline in stage.pairs()),
        "MODEL": stage.models,
    },
    EvaluatePairs: lambda stage: {
        "JUDGE": tuple(stage.judges), "SCORER": tuple(filter(stage.scalar, stage.judges)),
        "COMPARING": tuple(filter(stage.compares, stage.judges)),
        "FIRST_and_SECOND": tuple(f"{one}_and_{other}" for one, other in stage.pairs()),
    },
    EvaluateHarness: lambda stage: {
        "CHALLENGER_vs_BASELINE": tuple(f"{challenger}_vs_{baseline}" for challenger, baseline in stage.pairs()),
        "MODEL": stage.models, "TASK.METRIC": _of_tasks(stage),
    },
    Export: lambda stage: {"FORM": stage.compared_forms()},
}
"""Stage class -> what stands for the capitals in the names of its metrics."""


def unmade(run: Run) -> Iterator[tuple[Place, ConfigError]]:
    """Aims, and gates of rounds, with a metric that their stage does not make, by their place in the run."""
    for index, aim in enumerate(run.parsed_aims()):
        yield from _unmade(run, ("aims", index), aim, "an aim")
    for place, stage in enumerate(run.stages):
        for index, gate in enumerate(stage.held_to()):
            yield from _unmade(run, ("stages", place, "bounds", index), gate, "a gate")


def _unmade(run: Run, place: Place, aim: Aim, what: str) -> Iterator[tuple[Place, ConfigError]]:
    for name in aim.metrics:
        stage, _, metric = name.partition(".")
        made = made_by(run.stage(stage))
        if metric not in made:
            yield place, _finding(run.stage(stage), metric, made, what)


def made_by(stage: AnyStage) -> list[str]:
    """Every metric that a stage's manifest may hold, as far as its config decides."""
    return [name for metric in metrics(type(stage)) if _given(metric, stage) for name in _names(metric, stage)]


def _of_tasks(stage: EvaluateHarness) -> tuple[str, ...]:
    """TASK.METRIC of all tasks that there are; those that there are not are a finding of `check` of their own."""
    try:
        tasks = stage.harness.found()
    except ConfigError:
        return ()
    return tuple(f"{flat(name, 'none')}.{metric}" for name, task in tasks.items() for metric in task.metrics)


def _given(metric: Metric, stage: AnyStage) -> bool:
    return metric.when is None or DECIDED.get(metric.when, bool)(stage)


def _names(metric: Metric, stage: AnyStage) -> Iterator[str]:
    named = NAMES.get(type(stage), lambda stage: {})(stage)
    places = [place for place in named if place in metric.name]
    for chosen in product(*(named[place] + _reference(metric, place) for place in places)):
        name = metric.name
        for place, text in zip(places, chosen, strict=True):
            name = name.replace(place, text)
        yield name


def _reference(metric: Metric, place: str) -> tuple[str, ...]:
    """The line of the reference answers, for the metrics that it has."""
    return (REFERENCE,) if place == "MODEL" and f"`{REFERENCE}`" in metric.text else ()


def _finding(stage: AnyStage, metric: str, made: list[str], what: str) -> ConfigError:
    possible = [one for one in metrics(type(stage)) if not _given(one, stage) and metric in _names(one, stage)]
    if possible:
        return ConfigError(f"stage {stage.name} makes this metric only when {possible[0].when}",
                           found=f"{stage.name}.{metric}", expected="a metric that the stage makes")
    near = difflib.get_close_matches(metric, made, _NEAR, cutoff=0.5)
    return ConfigError(f"{what} names a metric that its stage does not make", found=f"{stage.name}.{metric}",
                       expected="perhaps " + " or ".join(f"{stage.name}.{name}" for name in near) if near
                       else f"one of {', '.join(made)}",
                       hint=f"kubealign explain {stage.tag} lists the metrics of such a stage")
