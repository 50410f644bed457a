"""`AlignmentRun` as pydantic models: what a user writes (spec) and reads (status).

Decides nothing and knows no cluster. The CustomResourceDefinition is made from these (operator/crd.py); `submission`
makes the object of a run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from alignment.config.profile import DnsName
from alignment.config.stages.fields import NAME
from alignment.errors import ConfigError

GROUP, VERSION, KIND, PLURAL = "kubealign.dev", "v1alpha1", "AlignmentRun", "alignmentruns"
API_VERSION = f"{GROUP}/{VERSION}"
APPROVE = f"{GROUP}/approve"
"""Annotation with the stages after which a person lets the run go on: `sft,dpo`."""
RETRY = f"{GROUP}/retry"
"""Annotation; each new value (a time, say) gives failed stages a new start, and what could not be served."""
SERVE = f"{GROUP}/serve"
"""Annotation with the number of the revision that is served, whatever the run makes; without it the newest."""

StageName = Annotated[str, Field(pattern=NAME, max_length=40)]
State = Literal["Waiting", "Held", "Starting", "Queued", "Pending", "Running", "Retrying", "Elsewhere", "Suspended",
                "Finished", "NotNeeded", "Failed"]
Phase = Literal["Pending", "Running", "Waiting", "Suspended", "Failed", "Succeeded"]
ServingState = Literal["Waiting", "Starting", "Proving", "Ready", "Upgrading", "Unhealthy", "Failed"]


class _Object(BaseModel):
    """camelCase outside, snake_case inside; never changed in place."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True, extra="forbid",
                              use_attribute_docstrings=True)


class Gate(_Object):
    """Nothing that stands after `after` in the run's list starts before the gate opens."""

    after: StageName
    metric: Annotated[str, Field(max_length=300)] | None = None
    """A bound as in the run's `aims`: STAGE.METRIC, one of >= <= > <, a number or another STAGE.METRIC. A bound that is
    not met stops the run; what is finished stays."""
    approval: Literal[True] | None = None
    """A person says go: `kubectl annotate alignmentrun NAME kubealign.dev/approve=STAGE`."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.metric is None) == (self.approval is None):
            raise ValueError("give metric or approval: true, one of them")
        return self


class Files(_Object):
    """The bundle of the client."""

    config_map: DnsName
    """ConfigMap with run.yaml and the local data files that the run reads; the AlignmentRun becomes its owner."""


class Spec(_Object):
    """What is to be made, and where."""

    run: dict[str, Any]
    """The run, as in a run file with ${params} filled in. An edit makes the changed stages anew, and those after
    them; finished stages that did not change are left alone."""
    profile: dict[str, Any]
    """The profile, as in a file of configs/profiles/; it needs `cluster`."""
    files: Files | None = None
    digests: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$", max_length=64)]] | None = None
    """Digest of every stage as the client computed it, used while the run is the one in `files`: a source may lie
    where the operator cannot read it. Left out: the operator computes them."""
    suspend: bool = False
    """Stop the stages that are not finished, and start none."""
    queue: DnsName | None = None
    """Kueue LocalQueue, in place of the profile's."""
    gates: Annotated[tuple[Gate, ...], Field(max_length=32)] = ()
    retries: Annotated[int, Field(ge=0, le=20)] = 2
    """How often a stage starts again, on a fresh cluster, after a failure that is not the user's."""
    parallel: Annotated[int, Field(ge=1, le=16)] = 1
    """How many stages may run at once."""
    ttl: Annotated[int, Field(ge=0)] | None = None
    """Seconds after its end until the AlignmentRun is deleted, with its RayJobs and ConfigMap; artifacts and logs stay
    in the storage. Left out: it stays."""


class Condition(_Object):
    """As in metav1.Condition."""

    type: Literal["Ready", "Progressing", "Failed", "Suspended", "GateWaiting", "Serving"]
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""
    observed_generation: int
    last_transition_time: str


class LostPod(_Object):
    """A pod that was lost while a stage was made, or whose container ended by itself."""

    # A status that another version wrote must still be read.
    model_config = ConfigDict(extra="ignore")
    pod: str
    node: str
    reason: str
    at: str
    container: str | None = None
    """That ended, while the pod stays; left out: the whole pod."""

    @property
    def key(self) -> tuple[str, str]:
        return self.pod, self.at if self.container else ""


class StageRow(_Object):
    """One stage of the run."""

    name: str
    key: str
    """Folder of its artifact in the store, KIND-DIGEST."""
    state: State = "Waiting"
    ray_job: str | None = None
    message: str | None = None
    tries: int = 0
    """RayJobs begun for this key, which is also the number of the newest."""
    failures: int = 0
    """Of those, the failed ones that count against `retries`; an edit or a resume sets it to 0."""
    last_failed: int = 0
    """Number of the newest RayJob that ended without an artifact and was judged."""
    retry_at: str | None = None
    lost: int | None = None
    """Pods that were lost while this key was made."""
    losses: tuple[LostPod, ...] | None = None
    """The last 16 of them, oldest first."""
    artifact: str | None = None
    """URL of the finished artifact."""
    digest: str | None = None
    metrics: dict[str, float] | None = None
    """Those of the manifest that are finite numbers."""
    rows_in: int | None = None
    rows_out: int | None = None
    started: str | None = None
    finished: str | None = None


class ServedModel(_Object):
    """One model of the revision that is wanted."""

    model_config = ConfigDict(extra="ignore")
    name: str
    artifact: str
    """Its key."""
    proved: bool | None = None
    """Left out: nothing is known of a proof yet."""
    rows: int | None = None
    """That were asked."""
    most_off: float | None = None
    """The largest distance to the record: nats of a token's log-probability, or of a score."""
    message: str | None = None
    """How it differs from its record."""


class ServedRevision(_Object):
    """One set of models and settings that was served, or was to be."""

    model_config = ConfigDict(extra="ignore")
    number: int
    models: dict[str, str]
    """Name -> key of the artifact."""
    when: str
    proved: bool | None = None


class ServingStatus(_Object):
    """What the RayService of the run does."""

    model_config = ConfigDict(extra="ignore")
    state: ServingState = "Waiting"
    """Of the revision that is wanted."""
    endpoint: str | None = None
    """Where OpenAI's protocol is spoken, inside the cluster."""
    revision: int | None = None
    """The one that answers."""
    wanted: int | None = None
    """The one that should: the newest, or the pinned one."""
    pinned: int | None = None
    """`kubealign rollback` asked for this one; it stays until `kubealign rollback --latest`."""
    replicas: int | None = None
    """Replicas that answer."""
    models: tuple[ServedModel, ...] = ()
    message: str | None = None
    history: tuple[ServedRevision, ...] = ()
    """The last revisions, newest last: those that can be gone back to."""


class Status(_Object):
    """What the operator saw last. It may be lost: the store and the children say it again."""

    # A status that another version wrote must still be read.
    model_config = ConfigDict(extra="ignore")
    observed_generation: int = 0
    phase: Phase = "Pending"
    stage: str | None = None
    """The stages at work, or the one that keeps the run from going on."""
    finished: str | None = None
    """Stages of all that are finished, or not needed since a round before did not meet its gate: 3/8."""
    store: str | None = None
    started: str | None = None
    ended: str | None = None
    retried: str = ""
    """The retry annotation that was last obeyed."""
    conditions: tuple[Condition, ...] = ()
    stages: tuple[StageRow, ...] = ()
    serving: ServingStatus | None = None
    """Of a run with `serve`."""


def spec_of(body: Mapping[str, Any]) -> Spec:
    """The spec of an AlignmentRun as the API server holds it. Raises ConfigError with every finding."""
    try:
        return Spec.model_validate_json(json.dumps(body.get("spec", {})))
    except ValidationError as error:
        findings = [f"spec.{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ConfigError("; ".join(findings), where=f"AlignmentRun {body['metadata']['name']}") from error


def serves(body: Mapping[str, Any]) -> bool:
    """Whether the run of an AlignmentRun is to be served."""
    return bool(((body.get("spec") or {}).get("run") or {}).get("serve"))


def status_of(body: Mapping[str, Any]) -> Status:
    """The status of an AlignmentRun; an empty one where there is none that this version understands."""
    try:
        return Status.model_validate_json(json.dumps(body.get("status") or {}))
    except ValidationError:
        return Status()


def status_json(status: Status) -> dict[str, Any]:
    """As it is sent to the API server."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def annotation(body: Mapping[str, Any], name: str) -> str:
    """The value of an annotation of an object; "" where it has none."""
    return str((body["metadata"].get("annotations") or {}).get(name, ""))


def owner_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """The owner reference that children of this AlignmentRun carry: they go when it goes."""
    return {"apiVersion": API_VERSION, "kind": KIND, "name": body["metadata"]["name"],
            "uid": body["metadata"]["uid"], "controller": True, "blockOwnerDeletion": False}
