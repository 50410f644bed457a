"""Groups of rounds: what each round read and made, against which reference, what it gained on an evaluation in it, and
how it stands to its gate.

Reads manifests and results; computes no statistics. A gain is a paired difference of the round's own evaluation, with
that one's interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from alignment.artifacts import Artifact
from alignment.config import Run, judge
from alignment.config.stops import CHOSEN, Stops, told
from alignment.report.format import number
from alignment.report.reading import measured_by, metrics_of, unneeded_of
from alignment.report.results import Cell, differences


class Round(NamedTuple):
    """One line of the table.

    Attributes:
        made: (stage, its rows in words) of stages that write rows, then of those that train.
        starts: (stage, the stage it starts from, its reference in words or nothing).
        gains: (challenger, baseline, metric, cell).
        state: what there is to say of a round that is not finished.
        gate: the bound and how it stands, in words; empty where the group has none.
    """

    number: int
    done: bool
    made: list[tuple[str, str]]
    starts: list[tuple[str, str, str]]
    gains: list[tuple[str, str, str, Cell]]
    state: str = ""
    gate: str = ""


def rounds_of(
    run: Run, artifacts: Mapping[str, Artifact | None], results: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, list[Round], str]]:
    """(group, its rounds, which of them is its result) of every group of the run, finished or not.

    Args:
        results: content of results.json by stage.
    """
    keys = {artifact.key: name for name, artifact in artifacts.items() if artifact is not None}
    stops, spared = {group.group: group for group in run.stops()}, unneeded_of(run, artifacts)
    made = []
    for group in run.groups or ():
        rounds = []
        for index, names in enumerate(group.rounds, start=1):
            line, gate = _round(run, index, names, artifacts, results, keys), ""
            if group.name in stops:
                gate = _gate(stops[group.name], index, artifacts)
            unmade = "not needed" if any(name in spared for name in names) else "not finished"
            rounds.append(line._replace(state="" if line.done else unmade, gate=gate))
        made.append((group.name, rounds, _end(stops[group.name], artifacts) if group.name in stops else ""))
    return made


def _gate(group: Stops, number: int, artifacts: Mapping[str, Artifact | None]) -> str:
    verdict = judge(group.bounds[number - 1], metrics_of(artifacts))
    state = {True: "met", False: "not met", None: "not judged"}[verdict.met]
    return f"{verdict.aim}: {state}" + (f" ({told(verdict)})" if verdict.met is not None else "")


def _end(group: Stops, artifacts: Mapping[str, Artifact | None]) -> str:
    """Which round the group's result is of, once that is known."""
    artifact = artifacts.get(group.result)
    if artifact is None:
        return ""
    chosen, known = int(artifact.manifest.metrics[CHOSEN]), artifact.manifest.facts["chosen"]
    if not chosen:
        return f"{group.result} is {known['stage']}, the start: not even round 1 met its gate."
    return f"{group.result} is {known['stage']}, of round {chosen}: the last that met its gate."


def _round(
    run: Run, index: int, names: tuple[str, ...], artifacts: Mapping[str, Artifact | None],
    results: Mapping[str, Mapping[str, Any]], keys: Mapping[str, str],
) -> Round:
    made, starts, gains = [], [], []
    for name in names:
        stage, artifact = run.stage(name), artifacts[name]
        if artifact is not None and any(stage.row_refs()) and stage.makes != "table":
            written = artifact.manifest.rows.written
            made.append((name, ", ".join(f"{number(many)} {split}" for split, many in written.items())))
        start = next(stage.model_refs(), None)
        if start is not None and stage.makes in ("policy", "reward"):
            starts.append((name, start.stage, _reference(artifact, keys)))
        if name in results and stage.makes == "table":
            table = differences(results[name], measured_by(stage))
            gains += [(challenger, baseline, title, cell) for challenger, baseline, _, cells in table.rows
                      if challenger in names for title, cell in zip(table.columns, cells, strict=True) if cell]
    return Round(index, all(artifacts[name] is not None for name in names), made, starts, gains)


def _reference(artifact: Artifact | None, keys: Mapping[str, str]) -> str:
    """By the name that the run has for it now."""
    facts = artifact.manifest.facts.get("reference") if artifact is not None else None
    if not isinstance(facts, Mapping):
        return ""
    key = str(facts.get("artifact"))
    return keys.get(key, key)
