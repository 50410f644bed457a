"""Groups of rounds: what each round read and made, against which reference, and what it gained on an evaluation in it.

Reads manifests and results; computes no statistics. A gain is a paired difference of the round's own evaluation, with
that one's interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from alignment.artifacts import Artifact
from alignment.config import Run
from alignment.report.format import number
from alignment.report.results import Cell, differences


class Round(NamedTuple):
    """One line of the table.

    Attributes:
        made: (stage, its rows in words) of stages that write rows, then of those that train.
        starts: (stage, the stage it starts from, its reference in words or nothing).
        gains: (challenger, baseline, metric, cell).
    """

    number: int
    done: bool
    made: list[tuple[str, str]]
    starts: list[tuple[str, str, str]]
    gains: list[tuple[str, str, str, Cell]]


def rounds_of(
    run: Run, artifacts: Mapping[str, Artifact | None], results: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, list[Round]]]:
    """(group, its rounds) of every group of the run, finished or not.

    Args:
        results: content of results.json by stage.
    """
    keys = {artifact.key: name for name, artifact in artifacts.items() if artifact is not None}
    return [(group.name, [_round(run, index, names, artifacts, results, keys)
                          for index, names in enumerate(group.rounds, start=1)]) for group in run.groups or ()]


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
            table = differences(results[name], [ref.stage for ref in stage.model_refs() if ref.role == "policy"])
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
