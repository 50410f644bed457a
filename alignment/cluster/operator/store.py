"""The artifact store as the operator sees it: is a stage finished, what does its manifest say, is somebody at it; and
what a server's replicas have proved of a model."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from alignment.artifacts import Artifact, Store
from alignment.artifacts.at_work import SILENT
from alignment.cluster.operator.reads import Reads, said
from alignment.cluster.operator.served import Proof
from alignment.cluster.operator.world import Finished, Held
from alignment.cluster.status.reading import LENGTH
from alignment.errors import ArtifactError
from alignment.serving.hosts import WRITES

LOOKED_AT = 32
"""Proofs of one artifact by one revision that are opened, from the newest on: each start of each replica writes one."""
LARGEST_PROOF = 256 * 1024
"""Bytes of one."""
_MOST_ROWS = 2**31
"""What a file says beyond this fits no status."""


def look_up(reads: Reads, url: str, keys: Iterable[str]) -> dict[str, Finished | Held]:
    """Those of these keys that are finished, or that somebody is at. Raises ArtifactError, in the operator's own words,
    when the store cannot be read, or may not."""
    found: dict[str, Finished | Held] = {}
    for key in keys:
        path = f"{url.rstrip('/')}/artifacts/{key}/manifest.json"
        refusal = reads.refusal(path)
        if refusal is not None:
            raise ArtifactError(refusal)
        try:
            artifact = Store(url).find(key)
        except ArtifactError as error:
            raise ArtifactError(said(error, url if "damaged" not in error.problem else path)) from error
        if artifact is not None:
            found[key] = finished_of(artifact)
        elif reads.refusal(f"{url.rstrip('/')}/work/{key}/lease.json") is None:
            held = _held(url, key)
            if held is not None:
                found[key] = held
    return found


def _held(url: str, key: str) -> Held | None:
    """Who is at it, as far as the lease and the two clocks tell; where they do not, a stage's own pods find out."""
    try:
        holder = Store(url).lease(key).holder()
    except ArtifactError:
        return None
    if holder is None or holder.gone or not abs(holder.silent) <= SILENT:
        return None
    return Held(f"{holder.words}, makes it")


def finished_of(artifact: Artifact) -> Finished:
    """What the status shows of an artifact."""
    manifest = artifact.manifest
    metrics = {name: value for name, value in manifest.metrics.items() if math.isfinite(value)}
    return Finished(artifact.url, manifest.digest, metrics, manifest.rows.read, sum(manifest.rows.written.values()),
                    manifest.started, manifest.finished)


def proofs(reads: Reads, url: str, service: str, revision: int, models: Mapping[str, str]) -> dict[str, Proof]:
    """The newest proof of each model, by its served name, that a replica of this revision of the service wrote.

    Args:
        models: served name -> key of the artifact.

    Raises:
        ArtifactError: the store cannot be read, or may not.
    """
    found: dict[str, Proof] = {}
    store, by = Store(url), WRITES.format(service=service, revision=revision)
    for model, key in models.items():
        where = f"{url.rstrip('/')}/served/{key}"
        refusal = reads.refusal(where)
        if refusal is not None:
            raise ArtifactError(refusal)
        try:
            for name in store.proof_files(key, by)[: -LOOKED_AT - 1 : -1]:
                if reads.refusal(f"{where}/{name}") is not None:
                    continue
                told = _told(store.read_served_file(key, name, LARGEST_PROOF))
                whose = told.get("service"), str(told.get("revision")), told.get("model")
                if whose == (service, str(revision), model):
                    found[model] = _proof(told)
                    break
        except ArtifactError as error:
            raise ArtifactError(said(error, url)) from error
    return found


def _told(text: str | None) -> dict[str, Any]:
    """What a file says; nothing where it is gone, cut short, or no proof."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _proof(told: Mapping[str, Any]) -> Proof:
    rows, off, problem = told.get("rows"), told.get("most_off"), told.get("problem")
    return Proof(
        told.get("proved") is True, str(told.get("cluster") or ""),
        rows if isinstance(rows, int) and 0 <= rows <= _MOST_ROWS else None,
        float(off) if isinstance(off, int | float) and abs(off) <= sys.float_info.max else None,
        str(problem)[:LENGTH] if problem else None if told.get("proved") is True else "it is not proved",
    )
