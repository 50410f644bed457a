"""The page's part on judges: how often each is right, how far they agree, and pairs on which they are surely wrong.

Reads the shape of results.json of an evaluation with judges; computes no statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignment.artifacts import Artifact
from alignment.config import EvaluatePairs
from alignment.report.calibration import calibration_chart
from alignment.report.charts import Counts, histogram, whisker
from alignment.report.format import NONE, clip, interval, is_number, number
from alignment.report.reading import read_pairs
from alignment.report.results import Cell
from alignment.report.summary import not_taken

COLOURS = ("s1", "s2", "s3", "s4", "s5", "s6")
WRONG = 3
"""Pairs of each judge that are shown: those on which it is the surest of the answer that was not chosen."""


def judges_entry(stage: EvaluatePairs, artifact: Artifact | None, results: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the template shows of one stage."""
    if artifact is None or results is None:
        return {"stage": stage, "done": artifact is not None, "results": None}
    names = [name for name in stage.judges if name in results.get("judges", {})]
    colours = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(names)}
    lines = {name: results["judges"][name] for name in names}
    return {
        "stage": stage, "done": True, "results": results, "colours": colours,
        "rows": [(name, colours[name], _line(name, lines[name], colours[name])) for name in names],
        "labels": [(name, colours[name], _label_line(lines[name])) for name in names] if results.get("ties") or any(
            one.get("annotators") for one in lines.values()) else [],
        "annotators": list(next(iter(lines.values()))["annotators"]) if lines else [],
        "agreement": [_agreement(one) for part in ("agreement", "annotators") for one in results.get(part) or []],
        "kinds": _kinds(lines, "by_kind", "value"), "sections": _kinds(lines, "sections", "accuracy"),
        "places": [(name, colours[name], lines[name]["place"]) for name in names if lines[name].get("place")],
        "charts": _charts(stage.name, lines, colours), "wrong": _wrong(artifact, names),
        "asked": list((artifact.manifest.facts.get("judges") or {}).items()),
        "not_taken": not_taken(artifact.manifest.rows.dropped),
    }


def _line(name: str, line: Mapping[str, Any], colour: str) -> list[Cell]:
    accuracy, length, labels = line["accuracy"], line["length"], line["labels"]
    text, between = number(accuracy["value"], 3), interval("accuracy", accuracy["low"], accuracy["high"])
    drawing = whisker(f"{name}, accuracy: {text} {between}", accuracy["value"], accuracy["low"], accuracy["high"],
                      (0.0, 1.0), colour, reference=0.5) if is_number(accuracy["value"]) else ""
    known = line.get("calibration") or {}
    unread = ", ".join(f"{reason} {many}" for reason, many in line["unread"].items())
    return [
        Cell(text, between, drawing=drawing), Cell(number(line["tied"])), Cell(number(line["read"], 3), unread),
        Cell(number(length["shorter"], 3), f"of {number(length['rows_shorter'])}"),
        Cell(number(length["longer"], 3), f"of {number(length['rows_longer'])}"),
        Cell(number(length["prefers_longer"], 3), f"{number(length['is_longer'], 3)} of the chosen are"),
        Cell(number(labels["kappa"], 3)), Cell(number(known.get("ece"), 3)), Cell(number(known.get("loss"), 3)),
    ]


def _label_line(line: Mapping[str, Any]) -> list[Cell]:
    labels = line["labels"]
    shares = [labels, *line["annotators"].values()]
    return [Cell(number(labels["called_ties"], 3)),
            *(Cell(number(one["agreement"], 3), f"{interval('agreement', one['low'], one['high'])}, κ "
                                                f"{number(one['kappa'], 3)}") for one in shares)]


def _agreement(one: Mapping[str, Any]) -> tuple[str, str, str, str, str, str]:
    return (one["first"], one["second"], number(one["agreement"], 3), interval("agreement", one["low"], one["high"]),
            number(one["kappa"], 3), number(one["rows"]))


def _kinds(lines: Mapping[str, Mapping[str, Any]], part: str, value: str) -> list[tuple[str, str, list[Cell]]]:
    """(kind, rows, one cell for each judge) of every kind, or section, that any judge's line has."""
    names = list(dict.fromkeys(kind for line in lines.values() for kind in line[part]))
    made = []
    for kind in names:
        own = [line[part].get(kind) or {} for line in lines.values()]
        rows = max((one.get("rows") or 0 for one in own), default=0)
        made.append((kind, number(rows), [Cell(number(one.get(value), 3),
                                               interval(value, one.get("low"), one.get("high"))) for one in own]))
    return made


def _charts(
    stage: str, lines: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str]
) -> list[tuple[str, Any]]:
    charts = []
    for name, line in lines.items():
        if (known := line.get("calibration")) and known["bins"]:
            title = f"{stage}: how sure {name} is, and how often right"
            charts.append((title, calibration_chart(title, known["bins"], colours[name])))
        data = line.get("margins") or {}
        counts = Counts(name, data.get("edges", []), data.get("counts", []), colours[name], of="pairs")
        if counts.usable:
            title = f"{stage}: margins of {name}"
            charts.append((title, histogram(title, [counts], cut=0.0,
                                            x_label="chosen less rejected; the height is the share of pairs")))
    return charts


def _wrong(artifact: Artifact, names: Sequence[str]) -> list[tuple[str, list[dict[str, str]]]]:
    """Judge -> the pairs on which it is wrong by most."""
    rows = [row for row in read_pairs(artifact) if row.get("label") == "completion"]
    made = []
    for name in names:
        own = [(row["judges"][name]["margin"], row) for row in rows if name in row.get("judges", {})]
        worst = sorted((one for one in own if is_number(one[0]) and one[0] < 0), key=lambda one: (one[0], one[1]["id"]))
        if worst:
            made.append((name, [_shown(margin, row) for margin, row in worst[:WRONG]]))
    return made


def _shown(margin: float, row: Mapping[str, Any]) -> dict[str, str]:
    prompt = row.get("prompt") or []
    asked = str(prompt[-1].get("content", "")) if prompt and isinstance(prompt[-1], Mapping) else NONE
    return {"id": str(row.get("id", "")), "kind": str(row.get("kind") or ""), "margin": number(margin),
            "question": clip(asked, 600), "chosen": clip(str(row.get("completion") or ""), 600),
            "rejected": clip(str(row.get("rejected") or ""), 600)}
