"""A run in the terminal: stages, aims and results as rich tables that fit 100 columns.

Text from runs is never read as markup. Reads manifests and results.json only; no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from alignment.artifacts import Work
from alignment.config import Run
from alignment.report.format import DECIMALS, NONE, duration, is_number, metric, number, told_apart
from alignment.report.reading import Artifacts, measured_by, measures_models, results_of, unneeded_of, verdicts_of
from alignment.report.results import METRICS, columns_of, drawn_of, each_answer, models_of
from alignment.report.summary import rows_text

WIDTH = 100
SHORT = {"exact_match": "exact", "perplexity": "ppl", "finished": "done", "rouge_l": "rouge-l", "word_recall": "recall",
         "containment": "contains", "final_number": "number", "question_type": "type"}
"""Metrics whose column title would be wider than their numbers."""
PER_ANSWER = {"s/row": "seconds", "tokens": "tokens"}
"""Columns of what an answer takes, and their names in a manifest's facts.timing."""
WITH_INTERVAL = 2
"""Leading metrics whose interval stands beside the number."""


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1),
                 header_style="bold")


def stages_table(run: Run, artifacts: Artifacts, works: Mapping[str, Work] = {}) -> Table:
    """Every stage with what it does, whether it is finished, its rows, its time and its digest.

    Args:
        works: of stages that were begun.
    """
    table = _table(f"Stages of {run.name}")
    longest = min(18, max(len(stage.name) for stage in run.stages))
    table.add_column("stage", min_width=longest, max_width=18, overflow="ellipsis", no_wrap=True)
    table.add_column("what", max_width=22, overflow="ellipsis", no_wrap=True)
    table.add_column("rows", max_width=30, overflow="fold")
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("artifact", min_width=12, no_wrap=True)
    unneeded = unneeded_of(run, artifacts)
    for stage in run.stages:
        artifact = artifacts.get(stage.name)
        if artifact is None:
            state = "not needed" if stage.name in unneeded else (
                works[stage.name].state if stage.name in works else "not finished")
            table.add_row(Text(stage.name), Text(run.title_of(stage)), Text(""), Text(""),
                          Text(state, {"running": "bold cyan", "not needed": "dim"}.get(state, "yellow")))
        else:
            manifest = artifact.manifest
            table.add_row(Text(stage.name), Text(run.title_of(stage)), Text(rows_text(artifact)),
                          Text(duration(manifest.seconds)), Text(manifest.digest[:12], "green"))
    return table


def aims_table(run: Run, artifacts: Artifacts) -> Table:
    """Every aim with what was reached, what was asked for, and the verdict."""
    table = _table("Aims")
    table.add_column("aim", max_width=56, overflow="fold")
    table.add_column("reached", justify="right", no_wrap=True)
    table.add_column("asked for", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    states = {True: Text("met", "green"), False: Text("MISSED", "bold red"), None: Text("not known", "yellow")}
    for verdict in verdicts_of(run, artifacts):
        left, right = told_apart(verdict.left, verdict.right)
        table.add_row(Text(str(verdict.aim)), left, f"{verdict.aim.op} {right}",
                      states[verdict.met])
    return table


def results_table(run: Run, artifacts: Artifacts) -> Table:
    """Models by metrics of every finished evaluate stage; one line for every one that is not finished.

    Where it would be wider than WIDTH, intervals are left out first, then columns from the end, which are named.
    """
    results = {name: found for name, found in results_of(run, artifacts).items() if measures_models(run.stage(name))}
    facts = {name: artifact.manifest.facts for name in results if (artifact := artifacts.get(name)) is not None}
    named = [name for result in results.values() if result.get("columns") for name in columns_of(result)]
    columns = [name for name in dict.fromkeys([*named, *METRICS]) if any(
        is_number((values.get(name) or {}).get("value")) for result in results.values()
        for values in result["models"].values())]
    if any(each_answer(facts[name], model) for name, result in results.items() for model in result["models"]):
        columns += PER_ANSWER
    tries = [(columns, bounds) for bounds in range(WITH_INTERVAL, -1, -1)]
    tries += [(columns[:kept], 0) for kept in range(len(columns) - 1, 0, -1)]
    for kept, bounds in tries:
        table = _results(run, artifacts, results, kept, bounds)
        if _width(table) <= WIDTH:
            break
    if len(kept) < len(columns):
        table.caption = f"no room for {', '.join(columns[len(kept):])}: the report has them"
        table.caption_justify = "left"
    return table


def _width(table: Table) -> int:
    """Columns of a terminal that a table takes where there is room for all of it."""
    console = Console(width=10 * WIDTH)
    return Measurement.get(console, console.options, table).maximum


def _results(
    run: Run, artifacts: Artifacts, results: Mapping[str, Mapping[str, Any]], columns: Sequence[str], bounds: int
) -> Table:
    """The table with these columns, the first `bounds` metrics that are drawn with their intervals."""
    unneeded = unneeded_of(run, artifacts)
    stages = [stage for stage in run.stages if measures_models(stage)]
    table = _table("Results")
    table.add_column("model", max_width=18, overflow="ellipsis", no_wrap=True)
    if not columns:
        table.add_column("state", no_wrap=True)
    for name in columns:
        table.add_column(SHORT.get(name, name), justify="right", no_wrap=True)
    for stage in stages:
        if len(stages) > 1:
            table.add_row(Text(f"{stage.name}, {', '.join(place.ref for place in stage.row_refs())}", "dim"))
        artifact = artifacts.get(stage.name)
        if stage.name not in results or artifact is None:
            table.add_row(Text(stage.name), Text("not needed", "dim") if stage.name in unneeded
                          else Text("not finished", "yellow"))
            continue
        leading = drawn_of(results[stage.name])[:bounds]
        for model in models_of(results[stage.name], measured_by(stage)):
            values, each = results[stage.name]["models"][model], each_answer(artifact.manifest.facts, model)
            table.add_row(Text(model), *(
                Text(number((each.get(PER_ANSWER[name]) or {}).get("mean"))) if name in PER_ANSWER
                else _cell(name, values.get(name) or {}, bounds=name in leading) for name in columns))
        table.add_section()
    if not stages:
        table.add_row(NONE, "this run has no evaluate stage")
    return table


def judges_table(run: Run, artifacts: Artifacts) -> Table | None:
    """Judges of every finished stage that measures such; None for a run without one."""
    stages = [stage for stage in run.stages if stage.makes == "table" and stage.known_by == "judges"]
    if not stages:
        return None
    results, unneeded = results_of(run, artifacts), unneeded_of(run, artifacts)
    table = _table("Judges")
    table.add_column("judge", max_width=18, overflow="ellipsis", no_wrap=True)
    for name in ("accuracy", "equal", "chosen shorter", "chosen longer", "kappa", "ece"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in stages:
        if len(stages) > 1 or stage.name not in results:
            table.add_row(Text(f"{stage.name}, {', '.join(place.ref for place in stage.row_refs())}", "dim"))
        if stage.name not in results:
            table.add_row(Text("not needed", "dim") if stage.name in unneeded else Text("not finished", "yellow"))
            continue
        for judge, line in results[stage.name]["judges"].items():
            table.add_row(Text(judge), _cell("accuracy", line["accuracy"], bounds=True), number(line["tied"]),
                          number(line["length"]["shorter"], 3), number(line["length"]["longer"], 3),
                          number(line["labels"]["kappa"], 3), number((line["calibration"] or {}).get("ece"), 3))
        table.add_section()
    return table


def harness_table(run: Run, artifacts: Artifacts) -> Table | None:
    """Tasks of the harness by models, of every finished stage that asks such; None for a run without one."""
    stages = [stage for stage in run.stages if stage.makes == "table" and stage.known_by == "harness"]
    if not stages:
        return None
    results, unneeded = results_of(run, artifacts), unneeded_of(run, artifacts)
    table = _table("Tasks")
    for name in ("model", "task", "metric"):
        table.add_column(name, max_width=24, overflow="ellipsis", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("documents", justify="right", no_wrap=True)
    for stage in stages:
        if len(stages) > 1 or stage.name not in results:
            table.add_row(Text(stage.name, "dim"))
        if stage.name not in results:
            table.add_row(Text("not needed", "dim") if stage.name in unneeded else Text("not finished", "yellow"))
            continue
        for model, tasks in results[stage.name]["measured"].items():
            for task, metrics in tasks.items():
                for metric_name, entry in metrics.items():
                    table.add_row(Text(model), Text(task), Text(metric_name), _cell("", entry, bounds=True),
                                  number(results[stage.name]["tasks"][task]["documents"]))
        table.add_section()
    return table


def _cell(name: str, entry: Mapping[str, Any], *, bounds: bool) -> Text:
    """`0.524`, where there is room for bounds `0.524 .47-.58`."""
    if not is_number(entry.get("value")):
        return Text(NONE)
    text = Text(metric(name, entry["value"]))
    if bounds and is_number(entry.get("low")) and is_number(entry.get("high")):
        places = min(2, DECIMALS.get(name, 3))
        low, high = (f"{entry[part]:.{places}f}" for part in ("low", "high"))
        low, high = (text[1:] if text.startswith("0.") else text for text in (low, high))
        text.append(f" {low}-{high}", "dim")
    return text
