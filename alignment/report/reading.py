"""What the report reads from finished artifacts: events, results, answers, and metrics of all manifests.

Single files are fetched, never whole artifacts: on an object store those hold models. Nothing is computed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from alignment.artifacts import Artifact
from alignment.config import AnyStage, Run, Verdict, judge
from alignment.config.stops import standing_of
from alignment.errors import ArtifactError

Artifacts = Mapping[str, Artifact | None]
"""Stage name -> finished artifact, or None while it is not finished. A missing name counts as None."""


def read_text(artifact: Artifact, name: str) -> str | None:
    """Text of one file of an artifact; None when the artifact has no such file.

    Raises:
        ArtifactError: it should be there and is not, or not whole.
    """
    entry = artifact.manifest.files.get(name)
    if entry is None:
        return None
    where = f"{artifact.store.root}/artifacts/{artifact.key}/{name}"
    try:
        data: bytes = artifact.store.fs.cat_file(where)
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise ArtifactError(f"the artifact cannot be read: {error}", where=where) from error
    if len(data) != entry.size:
        artifact.verify()
    return data.decode("utf-8", errors="replace")


def read_events(artifact: Artifact) -> list[dict[str, Any]]:
    """Lines of events.jsonl in order. A line that a kill left half-written is skipped."""
    events = []
    for line in (read_text(artifact, "events.jsonl") or "").split("\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def read_results(artifact: Artifact) -> dict[str, Any] | None:
    """results.json of an evaluate artifact, or None when it has none. Raises ArtifactError when it is damaged."""
    text = read_text(artifact, "results.json")
    return None if text is None else _object(text, f"{artifact.url}/results.json")


def read_answers(artifact: Artifact) -> list[dict[str, Any]]:
    """Lines of answers.jsonl; empty when there is no such file. Raises ArtifactError naming a damaged line."""
    return _lines(artifact, "answers.jsonl")


def read_pairs(artifact: Artifact) -> list[dict[str, Any]]:
    """Lines of pairs.jsonl, likewise."""
    return _lines(artifact, "pairs.jsonl")


def read_samples(artifact: Artifact) -> list[dict[str, Any]]:
    """Lines of samples.jsonl, which tasks of the harness leave, likewise."""
    return _lines(artifact, "samples.jsonl")


def read_map(artifact: Artifact) -> dict[str, Any] | None:
    """map.json of a coverage, or None when it has none. Raises ArtifactError when it is damaged."""
    text = read_text(artifact, "map.json")
    return None if text is None else _object(text, f"{artifact.url}/map.json")


def _lines(artifact: Artifact, name: str) -> list[dict[str, Any]]:
    lines = (read_text(artifact, name) or "").split("\n")
    return [_object(line, f"{artifact.url}/{name} row {row}") for row, line in enumerate(lines, 1) if line]


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ArtifactError(f"the artifact is damaged: {error}", where=where, found=text[:80],
                            hint="remove this artifact's folder and run again to make it anew") from error
    if not isinstance(value, dict):
        raise ArtifactError("the artifact is damaged", where=where, found=text[:80], expected="a JSON object")
    return value


def metrics_of(artifacts: Artifacts) -> dict[str, float]:
    """Metrics of all finished stages under the names that aims use: STAGE.NAME."""
    return {
        f"{stage}.{name}": value
        for stage, artifact in artifacts.items()
        if artifact is not None
        for name, value in artifact.manifest.metrics.items()
    }


def verdicts_of(run: Run, artifacts: Artifacts) -> list[Verdict]:
    """Every aim of the run held against the metrics there are."""
    metrics = metrics_of(artifacts)
    return [judge(aim, metrics) for aim in run.parsed_aims()]


def unneeded_of(run: Run, artifacts: Artifacts) -> dict[str, str]:
    """Unfinished stages of rounds that are not made, since a round before did not meet its gate -> why."""
    found = standing_of(run.stops(), artifacts).unneeded
    return {name: why for name, why in found.items() if artifacts.get(name) is None}


def results_of(run: Run, artifacts: Artifacts) -> dict[str, dict[str, Any]]:
    """Results of every finished stage that makes a table, by stage name, in the run's order."""
    found = {}
    for stage in run.stages:
        artifact = artifacts.get(stage.name)
        if stage.makes == "table" and artifact is not None:
            results = read_results(artifact)
            if results is not None:
                found[stage.name] = results
    return found


def measured_by(stage: AnyStage) -> list[str]:
    """Names of the models whose answers to rows a stage measures, in the order of its table; none where it measures
    judges, or by tasks of the harness."""
    if stage.known_by is not None:
        return []
    return [ref.stage for ref in stage.model_refs() if ref.role == "policy" and not ref.drawn]


def measures_models(stage: AnyStage) -> bool:
    """Whether a stage makes a table of models; one of judges asks models for nothing but judgements, and one
    of tasks has other columns."""
    return stage.makes == "table" and bool(measured_by(stage))
