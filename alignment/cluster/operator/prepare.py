"""A spec read and checked: which stages there are, what key each has, which gates stand between them.

Reads the ConfigMap that it is handed and, for a run without known digests, those of its sources that lie where the
operator may read. Decides nothing. A spec may be large or hostile: `apart` runs this, within bounds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alignment.artifacts import key_of
from alignment.cluster.manifests.alignment_run import APPROVE, RETRY, SERVE, Gate, Spec, annotation, spec_of
from alignment.cluster.manifests.bundle import RUN_FILE, RUN_LIMIT, Bundle, located, unpack
from alignment.cluster.manifests.labels import service_name
from alignment.cluster.manifests.ray_job import ray_job
from alignment.cluster.manifests.ray_service import endpoint_of, ray_service
from alignment.cluster.operator.crd import STAGES
from alignment.cluster.operator.plan import Bound, Offer, Plan, PlannedStage
from alignment.cluster.operator.reads import ELSEWHERE, Reads, said
from alignment.config import Profile, Run, Serving, parse_aim, parse_run, served
from alignment.config.messages import told
from alignment.config.yaml_nodes import dotted
from alignment.config.yaml_text import dump
from alignment.errors import ConfigError, KubeAlignError
from alignment.pipeline.keys import keys
from alignment.planner.auto import undecided

_OF_STAGES = ("stages", "start_within", "run_within", "keep_finished")
LENGTH = 2000
"""Characters of a refusal that stand in the status; a path may have any number."""


@dataclass(frozen=True)
class Prepared:
    """A spec that can be carried out, with what its pods are made from."""

    spec: Spec
    run: Run
    """As executed: store and compute are the profile's."""
    profile: Profile
    stages: tuple[PlannedStage, ...]
    gates: tuple[Bound, ...]
    bundle: Bundle = field(repr=False)
    as_sent: bool
    """The ConfigMap in `files` holds this very run; else the operator makes another one."""


class Refused(ConfigError):
    """A spec that cannot be carried out; `reason` is one word for the condition."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return (Refused, (self.reason, self.problem))


def prepare(reads: Reads, body: Mapping[str, Any], config_map: Mapping[str, Any] | None) -> Prepared:
    """Check an AlignmentRun.

    Args:
        reads: where the store, and sources whose content has to be known, may lie.
        body: the AlignmentRun.
        config_map: the ConfigMap that `spec.files` names, None when it is not there or none is named.

    Raises:
        Refused: with one clear message.
    """
    _check_size(body.get("spec", {}), config_map)
    try:
        spec = spec_of(body)
        if grouped := [index for index, stage in enumerate(spec.run.get("stages") or ())
                       if isinstance(stage, dict) and "group" in stage]:
            raise Refused("InvalidRun", f"spec.run.stages[{grouped[0]}] is a group of rounds, and an AlignmentRun has "
                                        "plain stages: `kubealign submit RUN.yaml --target run` writes groups out")
        profile = Profile.model_validate_json(json.dumps(spec.profile))
        run = profile.applied(parse_run(dump(spec.run), "spec.run"))
        if undecided(run):
            raise Refused("InvalidRun", f"stage {undecided(run)[0]}: strategy auto is resolved before a run travels: "
                                        "kubealign submit does, or say lora, qlora or full")
    except ValidationError as error:
        found = (f"spec.profile.{one.where}: {one.problem}" + (f"; expected {one.expected}" if one.expected else "")
                 for one in told(error, Profile))
        raise Refused("InvalidProfile", "; ".join(found)) from error
    except KubeAlignError as error:
        raise Refused("InvalidRun", str(error)) from error
    if profile.cluster is None:
        raise Refused("InvalidProfile", f"profile {profile.name} has no `cluster`, so it cannot say what pods to make")
    wrong = [f"spec.profile.{dotted(item.place)}: {item.problem}; found {item.found!r}, expected {item.expected}"
             for item in profile.findings(run)]
    if wrong:
        raise Refused("InvalidProfile", "; ".join(wrong))
    elsewhere = reads.refusal(run.store)
    if elsewhere is not None:
        raise Refused("InvalidProfile", f"spec.profile.cluster.storage.url: {elsewhere}")
    if run.name != body["metadata"]["name"]:
        raise Refused("InvalidRun", f"the run is called {run.name} and the AlignmentRun {body['metadata']['name']}: "
                                    "give both the same name")
    if spec.queue is not None:
        profile = profile.model_copy(update={"cluster": profile.cluster.model_copy(update={"queue": spec.queue})})
    if run.serve is not None and spec.ttl is not None:
        raise Refused("InvalidRun", f"spec.ttl ({spec.ttl}) deletes the AlignmentRun after its end, and with it what "
                                    "the run's `serve` serves: give one of them")
    gates = tuple(_bound(gate, run) for gate in spec.gates)
    _renderable(run, profile)
    if spec.files is not None and config_map is None:
        raise Refused("FilesMissing", f"the ConfigMap {spec.files.config_map} with the run's files is not there; "
                                      "kubealign submit makes it")
    with tempfile.TemporaryDirectory(prefix="kubealign-") as folder:
        return _with_bundle(spec, run, profile, gates, config_map, Path(folder), reads)


def _check_size(spec: Mapping[str, Any], config_map: Mapping[str, Any] | None) -> None:
    """Refuse at once what would take long to read."""
    run = spec.get("run")
    stages = run.get("stages") if isinstance(run, Mapping) else None
    if isinstance(stages, list) and len(stages) > STAGES:
        raise Refused("InvalidRun", f"the run has {len(stages)} stages; at most {STAGES}")
    sent = ((config_map or {}).get("data") or {}).get(RUN_FILE, "")
    for what, size in (("spec.run", len(json.dumps(run))), ("spec.profile", len(json.dumps(spec.get("profile")))),
                       (f"{RUN_FILE} in the ConfigMap", len(sent))):
        if size > RUN_LIMIT:
            raise Refused("InvalidRun", f"{what} takes {size // 1024} KiB; at most {RUN_LIMIT // 1024} KiB")


def plan_of(body: Mapping[str, Any], found: Prepared | Refused) -> Plan:
    """What reconcile() is to bring about, annotations included."""
    metadata = body["metadata"]
    if isinstance(found, Refused):
        return Plan(metadata["name"], metadata["generation"], problem=(found.reason, str(found)[:LENGTH]))
    spec, cluster = found.spec, found.profile.cluster
    assert cluster is not None
    return Plan(
        metadata["name"], metadata["generation"], found.stages, found.gates, spec.suspend, spec.retries, spec.parallel,
        spec.ttl, cluster.keep_finished, found.run.store,
        frozenset(name.strip() for name in annotation(body, APPROVE).split(",")), annotation(body, RETRY),
        tuple(found.run.stops()), _offer(metadata, found.run, found.profile, annotation(body, SERVE)),
    )


def _offer(metadata: Mapping[str, Any], run: Run, profile: Profile, pin: str) -> Offer | None:
    if run.serve is None:
        return None
    # Of the profile what is of stages alone makes no other revision.
    whole = profile.model_dump(mode="json", exclude_defaults=True)
    cluster = {key: value for key, value in whole["cluster"].items() if key not in _OF_STAGES}
    serving = Serving(store=run.store, models=served(run), compute=run.compute,
                      serve=run.serve.model_copy(update={"models": None}))
    return Offer(service_name(run.name), endpoint_of(run.name, metadata.get("namespace", "default")), served(run),
                 {"serving": serving.model_dump(mode="json", exclude_defaults=True), "profile": {
                     "name": profile.name, "cluster": cluster,
                     **({"compute": whole["compute"]} if "compute" in whole else {})}}, pin)


def _with_bundle(spec: Spec, run: Run, profile: Profile, gates: tuple[Bound, ...],
                 config_map: Mapping[str, Any] | None, folder: Path, reads: Reads) -> Prepared:
    sent: Run | None = None
    text, files = "", {}
    try:
        if config_map is not None:
            path = unpack(dict(config_map), folder)
            text = path.read_text(encoding="utf-8")
            sent = parse_run(text, f"ConfigMap {config_map['metadata']['name']}, {path.name}")
            files = {file.relative_to(folder).as_posix(): file.read_bytes()
                     for file in sorted(folder.rglob("*")) if file.is_file() and file != path}
        as_sent = sent == run
        if not as_sent:
            text = dump(run.model_dump(mode="json"))
        known = _unchanged(spec, sent, run)
        refused = list(reads.refused_sources((stage for stage in run.stages if stage.name not in known), run, folder))
        if refused:
            raise Refused("SourceUnreadable", "\n".join([*refused, ELSEWHERE]))
        known = {name: key.digest for name, key in keys(located(run, folder), known).items()}
    except Refused:
        raise
    except KubeAlignError as error:
        raise Refused("SourceUnreadable", f"{said(error, error.where or 'the run')}\n{ELSEWHERE}") from error
    stages = tuple(PlannedStage(stage.name, key_of(stage.tag, known[stage.name]), known[stage.name], stage.inputs())
                   for stage in run.stages)
    return Prepared(spec, run, profile, stages, gates, Bundle(text, files), as_sent)


def _renderable(run: Run, profile: Profile) -> None:
    """Say now, not in mid-run, which stage's pods cannot be."""
    try:
        for stage in run.stages:
            ray_job(run, stage, profile, namespace="-", name="-", config_map="-", attempt=1)
        if run.serve is not None:
            ray_service(Serving(store=run.store, models=served(run), compute=run.compute, serve=run.serve), profile,
                        run=run.name, revision=1, namespace="-")
    except KubeAlignError as error:
        raise Refused("InvalidProfile", str(error)) from error


def _unchanged(spec: Spec, sent: Run | None, run: Run) -> dict[str, str]:
    """Digests that the client computed of stages which are still what they were, with all that they read: their sources
    may lie where the operator cannot read."""
    known: dict[str, str] = {}
    if sent is not None and (sent.seed, sent.scale) == (run.seed, run.scale):
        before = {stage.name: stage for stage in sent.stages}
        for stage in run.stages:
            if stage == before.get(stage.name) and stage.name in (spec.digests or {}) and known.keys() >= set(
                    stage.inputs()):
                known[stage.name] = (spec.digests or {})[stage.name]
    return known


def _bound(gate: Gate, run: Run) -> Bound:
    names = [stage.name for stage in run.stages]
    if gate.after not in names:
        raise Refused("InvalidGate", f"a gate stands after {gate.after}, which is no stage of the run: "
                                     f"one of {', '.join(names)}")
    if gate.metric is None:
        return Bound(gate.after, None)
    try:
        aim = parse_aim(gate.metric)
    except ValueError as error:
        raise Refused("InvalidGate", f"the gate after {gate.after}: {gate.metric!r} is no bound, expected {error}"
                      ) from error
    before = names[: names.index(gate.after) + 1]
    for metric in aim.metrics:
        if metric.split(".")[0] not in before:
            raise Refused("InvalidGate", f"the gate after {gate.after} asks for {metric}, which is not known by then: "
                                         f"a metric of one of {', '.join(before)}")
    return Bound(gate.after, aim)
