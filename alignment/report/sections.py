"""The parts of the page that differ by what a stage is: one function each, in `SECTIONS` under the stage's class.

Gives what the template shows; draws through the other modules of this room. A kind without a section has its row and
its box on the page all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from alignment.artifacts import Artifact
from alignment.config import (
    AnyStage,
    Choose,
    Evaluate,
    EvaluateHarness,
    EvaluatePairs,
    Export,
    FromArtifact,
    Generate,
    ImportData,
    ImportDocuments,
    ImportEndpoint,
    ImportModel,
    ImportReader,
    Infer,
    Sample,
    Select,
    Stage,
    TrainBase,
    row_of,
)
from alignment.report import format as texts
from alignment.report.answers import chosen
from alignment.report.charts import SHARE, Counts, histogram
from alignment.report.curves import charts_of
from alignment.report.harness import harness_entry
from alignment.report.judges import judges_entry
from alignment.report.reading import read_answers, read_events, read_map
from alignment.report.results import (
    colours_of,
    comparisons,
    differences,
    is_free_text,
    kinds,
    metric_table,
    models_of,
    per_answer,
    reward_chart,
)
from alignment.report.scatter import map_note, scatter
from alignment.report.summary import not_taken
from alignment.report.walks import walks

SCORES = ("mean_score", "best_score", "worst_score", "best_gain", "previous_mean_score", "finished_share")
"""Metrics of a sample stage that stand below its distribution."""


class Section(NamedTuple):
    """A part of the page, by the template's name for it, and what makes a stage's entry in it."""

    part: str
    entry: Callable[[Any, Artifact | None, Mapping[str, Any] | None], dict[str, Any]]


def sections(
    stages: Sequence[AnyStage], artifacts: Mapping[str, Artifact | None], results: Mapping[str, Mapping[str, Any]],
    title: Callable[[AnyStage], str],
) -> dict[str, list[dict[str, Any]]]:
    """Part of the page -> entries of those of these stages that have one there, in order.

    Args:
        results: content of results.json by stage, of the finished ones that have it.
        title: what a stage is, in a few words.
    """
    made: dict[str, list[dict[str, Any]]] = {section.part: [] for section in SECTIONS.values() if section is not None}
    for stage in stages:
        section = row_of(SECTIONS, type(stage))
        if section is not None:
            entry = section.entry(stage, artifacts[stage.name], results.get(stage.name))
            made[section.part].append({"kind": title(stage), **entry})
    return made


def _evaluation(stage: Evaluate, artifact: Artifact | None, results: Mapping[str, Any] | None) -> dict[str, Any]:
    if artifact is None or results is None:
        return {"stage": stage, "done": artifact is not None, "results": None}
    models = models_of(results, stage.models)
    columns, rows = metric_table(results, stage.models)
    free = is_free_text(results)
    first, more = chosen(read_answers(artifact), models, free_text=free) if models else ([], [])
    dropped = artifact.manifest.rows.dropped
    return {
        "stage": stage, "done": True, "results": results, "models": models, "colours": colours_of(models),
        "timing": per_answer(artifact.manifest.facts, models), "columns": columns, "rows": rows,
        "comparisons": comparisons(results, stage.models),
        "differences": differences(results, stage.models), "kinds": kinds(results, stage.models),
        "rewards": reward_chart(stage.name, results, stage.models), "answers": first, "more": more, "free_text": free,
        "not_taken": not_taken(dropped), "walks": walks(results, artifact.manifest.facts, models),
        "judge": artifact.manifest.facts.get("judge"),
    }


def _training(stage: TrainBase, artifact: Artifact | None, results: object) -> dict[str, Any]:
    charts, minor = charts_of(stage, read_events(artifact)) if artifact is not None else ([], [])
    metrics = artifact.manifest.metrics if artifact is not None else {}
    return {"stage": stage, "done": artifact is not None, "charts": charts, "minor": minor,
            "metrics": [(name, texts.number(value)) for name, value in metrics.items()]}


def _sampling(stage: Sample, artifact: Artifact | None, results: object) -> dict[str, Any]:
    facts = artifact.manifest.facts if artifact is not None else {}
    metrics = artifact.manifest.metrics if artifact is not None else {}
    data = facts.get("histogram") or {}
    counts = Counts("answers", data.get("edges", []), data.get("counts", []), "s1")
    title = f"{stage.name}: score of every sampled answer"
    drawn = histogram(title, [counts], x_label=f"score; {SHARE}") if counts.usable else None
    values = [(name, texts.number(metrics[name])) for name in SCORES if name in metrics]
    return {"stage": stage, "done": artifact is not None, "chart": drawn, "values": values,
            "judge": facts.get("judge")}


def _generation(stage: Generate, artifact: Artifact | None, results: object) -> dict[str, Any]:
    facts = artifact.manifest.facts if artifact is not None else {}
    metrics = artifact.manifest.metrics if artifact is not None else {}
    refused = [(step, reason, count) for step, reasons in facts.get("refused", {}).items()
               for reason, count in reasons.items()]
    return {"stage": stage, "done": artifact is not None, "refused": refused,
            "examples": facts.get("examples", []), "tries": list(facts.get("tries", {}).items()),
            "judge": facts.get("judge"),
            "metrics": [(name, texts.number(value)) for name, value in metrics.items()]}


def _selection(stage: Select, artifact: Artifact | None, results: object) -> dict[str, Any]:
    facts = artifact.manifest.facts if artifact is not None else {}
    metrics = artifact.manifest.metrics if artifact is not None else {}
    data = facts.get("histogram") or {}
    counts = Counts("rows", data.get("edges", []), data.get("counts", []), "s1", of="rows")
    charts = []
    if counts.usable:
        charts.append((f"{stage.name}: scores, and the cut", histogram(
            f"{stage.name}: score of every row", [counts], x_label="score; the height is the share of rows",
            cut=metrics.get("cut"))))
    drawn = read_map(artifact) if artifact is not None else None
    if drawn is not None:
        charts.append((f"{stage.name}: chosen instructions among the others", scatter(
            f"{stage.name}: instructions in two dimensions",
            [("left", drawn["others"], "s0"), ("chosen", drawn["chosen"], "s1")])))
    return {"stage": stage, "done": artifact is not None, "charts": charts,
            "note": "" if drawn is None else f"The map shows {map_note(drawn)}.",
            "metrics": [(name, texts.number(value)) for name, value in metrics.items()]}


def _exported(stage: Export, artifact: Artifact | None, results: object) -> dict[str, Any]:
    facts = artifact.manifest.facts if artifact is not None else {}
    metrics = artifact.manifest.metrics if artifact is not None else {}
    forms = [(form, *(texts.number(metrics.get(f"{form}.{name}")) for name in ("kl", "top1", "greedy")))
             for form in stage.compared_forms() if f"{form}.kl" in metrics]
    return {"stage": stage, "done": artifact is not None, "forms": forms, "push": facts.get("push"),
            "compared_on": facts.get("compared_on"), "files": facts.get("files") or {}}


SECTIONS: dict[type[Stage], Section | None] = {
    ImportModel: None, ImportEndpoint: None, FromArtifact: None, ImportData: None, ImportDocuments: None,
    Generate: Section("generation", _generation), ImportReader: None, Select: Section("selection", _selection),
    TrainBase: Section("training", _training),
    Sample: Section("sampling", _sampling), Infer: None, Evaluate: Section("evaluations", _evaluation),
    EvaluatePairs: Section("judges", judges_entry), EvaluateHarness: Section("harness", harness_entry), Choose: None,
    Export: Section("exports", _exported),
}
"""Stage class -> its part of the page; None: nothing beyond what every stage has."""
