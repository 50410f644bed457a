"""Names and labels of everything that is made on a cluster. Policies, logs and cancelling select by these labels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

RUN_LABEL = "kubealign.dev/run"
STAGE_LABEL = "kubealign.dev/stage"
ATTEMPT_LABEL = "kubealign.dev/attempt"
COMPONENT_LABEL = "kubealign.dev/component"
"""ray, serve or store; operator and test in the chart."""
REVISION_LABEL = "kubealign.dev/revision"
"""Of what is served: 1 for the first models, more for each that followed."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

LONGEST = 47
"""Characters of a RayJob's or RayService's name: KubeRay appends what makes names of clusters and services from it."""


def labels(
    run: str | None = None, stage: str | None = None, attempt: int | None = None, component: str | None = None
) -> dict[str, str]:
    """Labels of an object that belongs to a run, a stage, an attempt at it, or to none of them."""
    given = {RUN_LABEL: run, STAGE_LABEL: stage, ATTEMPT_LABEL: None if attempt is None else str(attempt),
             COMPONENT_LABEL: component}
    return {"app.kubernetes.io/part-of": "kubealign", "app.kubernetes.io/managed-by": "kubealign",
            **{key: value for key, value in given.items() if value is not None}}


def labels_of(job: Mapping[str, Any]) -> dict[str, str]:
    """The labels that select the pods of one RayJob."""
    given = job["metadata"].get("labels", {})
    return {name: given[name] for name in (RUN_LABEL, STAGE_LABEL, ATTEMPT_LABEL) if name in given}


def job_name(run_name: str, stage_name: str, digest: str, attempt: int) -> str:
    """RUN-STAGE-DIGEST8-ATTEMPT, at most 47 characters: the one name that an attempt at a stage may have.

    Long names of runs and stages, and those with what no RayJob's name may have (a dot), end in four digits of their
    hash, so that two that look alike stay apart.
    """
    tail = f"-{_short(stage_name, 12)}-{digest[:8]}-{attempt}"
    return _short(run_name, min(20, LONGEST - len(tail))) + tail


def service_name(run_name: str) -> str:
    """The one name of a run's RayService: the run's own, or its beginning and four digits of its hash. KubeRay makes
    the service NAME-serve-svc of it, and Ray clusters NAME-xxxxx."""
    if re.fullmatch("[a-z]([a-z0-9-]*[a-z0-9])?", run_name):
        return _short(run_name, 40)
    return "s-" + _short(f"{run_name}.", 38)


def log_attempt(job: str) -> str:
    """What a log is called after its stage, from an attempt's name: DIGEST8.ATTEMPT. Attempts begin at 1 again after an
    edit, and its log must not take the place of the one before."""
    return ".".join(job.rsplit("-", 2)[1:])


def _short(text: str, limit: int) -> str:
    plain = re.sub("[^a-z0-9-]", "-", text)
    if plain == text and len(text) <= limit:
        return text
    return f"{plain[: limit - 5]}-{hashlib.sha256(text.encode()).hexdigest()[:4]}"
