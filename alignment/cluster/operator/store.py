"""The artifact store as the operator sees it: is a stage finished, what does its manifest say, is somebody at it."""

from __future__ import annotations

import math
from collections.abc import Iterable

from alignment.artifacts import Artifact, Store
from alignment.artifacts.at_work import SILENT
from alignment.cluster.operator.reads import Reads, said
from alignment.cluster.operator.world import Finished, Held
from alignment.errors import ArtifactError


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
