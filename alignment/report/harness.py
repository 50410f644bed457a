"""The page's part on tasks of lm-evaluation-harness: a table for each task's metrics and models, and what differs.

Reads the shape of results.json of an evaluation with `harness`; computes no statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignment.artifacts import Artifact
from alignment.config import EvaluateHarness
from alignment.report.charts import whisker
from alignment.report.format import interval, is_number, number
from alignment.report.results import Cell, colours_of

WAYS = {"higher": " ↑", "lower": " ↓"}


def harness_entry(
    stage: EvaluateHarness, artifact: Artifact | None, results: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What the template shows of one stage."""
    if artifact is None or results is None:
        return {"stage": stage, "done": artifact is not None, "results": None}
    models = [name for name in stage.models if name in results["measured"]]
    colours = colours_of(models)
    cut = artifact.manifest.facts.get("cut") or {}
    return {
        "stage": stage, "done": True, "results": results, "models": [(name, colours[name]) for name in models],
        "rows": [line for task in results["tasks"] for line in _lines(task, results, models, colours)],
        "gains": [line for gain in results["gains"] for line in _gains(gain, results)],
        "cut": [(name, ", ".join(f"{task} {number(many)}" for task, many in own.items())) for name, own in cut.items()],
    }


def _lines(task: str, results: Mapping[str, Any], models: list[str],
           colours: Mapping[str, str]) -> list[tuple[str, str, str, list[Cell]]]:
    """(task, what is known of it, metric, a cell for each model) of every metric of a task; the first says the task."""
    facts = results["tasks"][task]
    made = list[tuple[str, str, str, list[Cell]]]()
    known = (f"{number(facts['documents'])} of {number(facts['of'])} documents, {facts['num_fewshot']} examples, "
             f"version {facts['version']}")
    for metric, way in facts["better"].items():
        values = {name: results["measured"][name][task].get(metric) or {} for name in models}
        numbers = [own["value"] for own in values.values() if is_number(own.get("value"))]
        best = (max if way == "higher" else min)(numbers) if numbers and way in WAYS else None
        domain = (0.0, 1.0) if all(0 <= one <= 1 for one in numbers) else None
        cells = [_cell(f"{name}, {task}, {metric}", values[name], best if len(models) > 1 else None, domain,
                       colours[name]) for name in models]
        made.append((task if not made else "", known if not made else "", metric + WAYS.get(way, ""), cells))
    return made


def _cell(title: str, own: Mapping[str, Any], best: float | None, domain: tuple[float, float] | None,
          colour: str) -> Cell:
    text, between = number(own.get("value"), 3), interval("", own.get("low"), own.get("high"))
    drawing = ""
    if domain is not None and is_number(own.get("value")) and is_number(own.get("low")):
        low, high = (min(max(own[end], 0.0), 1.0) for end in ("low", "high"))
        drawing = whisker(f"{title}: {text} {between}", own["value"], low, high, domain, colour)
    return Cell(text, between, best=best is not None and own.get("value") == best, drawing=drawing)


def _gains(gain: Mapping[str, Any], results: Mapping[str, Any]) -> list[tuple[str, str, str, str, str, str, str]]:
    made = []
    for task, metrics in gain["tasks"].items():
        for metric, own in metrics.items():
            way = results["tasks"][task]["better"].get(metric, "neither")
            note, tone = _verdict(own, way)
            made.append((f"{gain['challenger']} − {gain['baseline']}", task, metric, number(own["value"], 3),
                         interval("", own["low"], own["high"]), note, tone))
    return made


def _verdict(own: Mapping[str, Any], way: str) -> tuple[str, str]:
    if way not in WAYS or not is_number(own["low"]) or not is_number(own["high"]):
        return "", ""
    side = 1 if own["low"] > 0 else -1 if own["high"] < 0 else 0
    if side == 0:
        return "within chance", ""
    return ("better", "good") if (side > 0) == (way == "higher") else ("worse", "bad")
