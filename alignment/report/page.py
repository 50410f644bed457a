"""A run and its finished artifacts -> one self-contained HTML page.

Collects what the template shows; the parts come from the other modules of this room. Nothing is fetched from
anywhere, and the page forbids itself to load anything (Content-Security-Policy). Writes no file: the pipeline does.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from alignment import __version__
from alignment.artifacts import Artifact, Store
from alignment.config import AnyStage, Run, Verdict
from alignment.config.stages.base import plural
from alignment.report import format as texts
from alignment.report.chain import chain
from alignment.report.charts import bars
from alignment.report.commands import commands, made_by
from alignment.report.reading import measured_by, results_of, unneeded_of, verdicts_of
from alignment.report.results import colours_of
from alignment.report.rounds import rounds_of
from alignment.report.sections import sections
from alignment.report.summary import NOT_TAKEN, headline, not_taken, stage_text, tiles, total_seconds

HIDDEN_FACTS = {"histogram", "dropped_rows"}
"""Facts that are drawn, or kept for machines."""


def render(run: Run, artifacts: Mapping[str, Artifact | None], typed: str | None, generated: str) -> str:
    """The page of a run, finished or not.

    Args:
        artifacts: finished artifact by stage name, None (or absent) where a stage is not finished.
        typed: `run FILE OPTIONS` or `submit FILE OPTIONS` as the user typed it, for the commands at the end; None: in
            a pod, where nobody knows it.
        generated: when the page is made, ISO 8601.

    Raises:
        ArtifactError: when a finished artifact's file cannot be read or is no JSON.
    """
    found = {stage.name: artifacts.get(stage.name) for stage in run.stages}
    results, verdicts, spared = results_of(run, found), verdicts_of(run, found), unneeded_of(run, found)
    asked = [stage for stage in run.stages if stage.name not in spared]
    return _environment().get_template("report.html.jinja").render(
        run=run, generated=texts.when(generated), version=__version__, store=Store(run.store).url,
        span=_span(found), total=texts.duration(total_seconds(found)),
        headline=headline(run, found, results, verdicts), tiles=tiles(run, found, results, verdicts),
        aims=[_aim(verdict) for verdict in verdicts],
        chain=chain(run, {
            stage.name: stage_text(run.title_of(stage), found[stage.name], needed=stage.name not in spared)
            for stage in run.stages}, _colours(run)),
        groups=rounds_of(run, found, results), **sections(asked, found, results, run.title_of),
        rows=[_rows(stage, found[stage.name]) for stage in asked if stage.splits() or any(stage.row_refs())],
        times=_times(asked, found), versions=_versions(found),
        stages=[_stage(stage, run.title_of(stage), found[stage.name], spared.get(stage.name, "not finished"))
                for stage in run.stages],
        models=[_model(stage, artifact) for stage in run.stages
                if stage.makes in ("policy", "reward", "embedder") and (artifact := found[stage.name]) is not None],
        commands=commands(run, found, typed), places=made_by(run, found), script_hash=_script_hash(),
    )


@cache
def _environment() -> Environment:
    environment = Environment(loader=PackageLoader("alignment.report", "page"), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"plural": plural, "number": texts.number, "duration": texts.duration}
    return environment


@cache
def _script_hash() -> str:
    """The page's policy allows this one script and no other, so that text in the data can never run."""
    source = _environment().get_template("script.js.jinja").render()
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _span(artifacts: Mapping[str, Artifact | None]) -> str:
    manifests = [artifact.manifest for artifact in artifacts.values() if artifact is not None]
    if not manifests:
        return ""
    first, last = min(m.started for m in manifests), max(m.finished for m in manifests)
    # Its ends are whole seconds, which may leave less than the stages took.
    whole = max(texts.between(first, last), total_seconds(artifacts))
    return f"{texts.when(first)} to {texts.when(last)}, {texts.duration(whole)} with all waits"


def _aim(verdict: Verdict) -> dict[str, str]:
    state = {True: "met", False: "missed", None: "unknown"}[verdict.met]
    left, right = texts.told_apart(verdict.left, verdict.right)
    return {"text": str(verdict.aim), "left": left, "right": right, "op": verdict.aim.op, "state": state}


def _rows(stage: AnyStage, artifact: Artifact | None) -> dict[str, Any]:
    if artifact is None:
        return {"name": stage.name, "done": False}
    manifest = artifact.manifest
    holders = ("bad.jsonl", "left.jsonl", "rows/samples.jsonl")
    files = [name for name in holders if name in manifest.files and manifest.files[name].size]
    if manifest.facts.get("dropped_rows"):
        files.append("manifest.json, facts.dropped_rows")
    dropped = {reason: many for reason, many in manifest.rows.dropped.items() if reason not in NOT_TAKEN}
    kept = [f"artifacts/{artifact.key}/{name}" for name in files] if dropped else []
    return {"name": stage.name, "done": True, "rows": manifest.rows, "dropped": dropped, "kept": kept,
            "not_taken": not_taken(manifest.rows.dropped)}


def _colours(run: Run) -> dict[str, str]:
    """One colour a model on the whole page: those of the last evaluation, and one for reward models."""
    colours = {stage.name: "s5" for stage in run.stages if stage.makes in ("reward", "embedder")}
    evaluated = [models for stage in run.stages if stage.makes == "table" and (models := measured_by(stage))]
    return colours | (colours_of(evaluated[-1]) if evaluated else {})


def _times(stages: Sequence[AnyStage], artifacts: Mapping[str, Artifact | None]) -> Markup | None:
    if not any(artifacts.values()):
        return None
    items = []
    for stage in stages:
        artifact = artifacts[stage.name]
        seconds = artifact.manifest.seconds if artifact is not None else float("nan")
        text = texts.duration(seconds) if artifact is not None else "not finished"
        items.append((stage.name, seconds, text, "s1"))
    return bars("Time of each stage", items)


def _versions(artifacts: Mapping[str, Artifact | None]) -> list[tuple[str, str]]:
    """(package, version) pairs; where stages were made with different versions, each with its stages."""
    used: dict[str, dict[str, list[str]]] = {}
    for name, artifact in artifacts.items():
        for package, version in (artifact.manifest.versions if artifact is not None else {}).items():
            used.setdefault(package, {}).setdefault(version, []).append(name)
    return [
        (package, next(iter(by)) if len(by) == 1 else "; ".join(f"{v} ({', '.join(names)})" for v, names in by.items()))
        for package, by in sorted(used.items())
    ]


def _stage(stage: AnyStage, title: str, artifact: Artifact | None, unmade: str) -> dict[str, Any]:
    config = artifact.manifest.config if artifact is not None else stage.model_dump(mode="json")
    manifest = artifact.manifest if artifact is not None else None
    facts = {name: value for name, value in manifest.facts.items() if name not in HIDDEN_FACTS} if manifest else {}
    return {
        "name": stage.name, "kind": title, "manifest": manifest, "unmade": unmade,
        "url": artifact.url if artifact else "",
        "config": yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100),
        "facts": texts.flat(facts), "compute": texts.flat(manifest.compute) if manifest else [],
        "metrics": texts.flat(manifest.metrics) if manifest else [],
        "started": texts.when(manifest.started) if manifest else "",
        "size": texts.size(sum(entry.size for entry in manifest.files.values())) if manifest else "",
    }


def _apart(difference: Mapping[str, Any]) -> str:
    """How far a model is from the same adapter over its base as it is stored."""
    nats = difference.get("nats_per_token")
    what = f"{difference['score']:.2g} of score" if nats is None else f"{nats:.2g} nats a token"
    return f"over it as stored, {what} apart"


def _model(stage: AnyStage, artifact: Artifact) -> dict[str, str]:
    """Facts a reader asks of every model; a fact that the manifest does not have is shown as absent."""
    facts = artifact.manifest.facts
    template = facts.get("template")
    named = template if isinstance(template, Mapping) else {"name": template}
    reference = facts.get("reference")
    reference = ", ".join(map(str, reference.values())) if isinstance(reference, Mapping) else reference
    start = str(facts.get("start") or texts.NONE)
    if (base := facts.get("quantisation")) is not None:
        start += f", over {base}" + (f" ({_apart(apart)})" if (apart := facts.get("base_difference")) else "")
    return {
        "name": stage.name, "kind": stage.title(),
        "parameters": texts.number(facts.get("parameters", artifact.manifest.metrics.get("parameters"))),
        "trainable": texts.number(facts.get("trainable_parameters")),
        "template": str(named.get("name") or texts.NONE), "hash": str(named.get("hash") or "")[:12],
        "reference": str(reference or texts.NONE), "start": start,
    }
