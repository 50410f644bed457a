"""The artifact store as the operator sees it: is this stage finished, and what does its manifest say."""

from __future__ import annotations

import math
from collections.abc import Iterable

from alignment.artifacts import Artifact, Store
from alignment.cluster.operator.reads import Reads, said
from alignment.cluster.operator.world import Finished
from alignment.errors import ArtifactError


def look_up(reads: Reads, url: str, keys: Iterable[str]) -> dict[str, Finished]:
    """The finished artifacts among these keys. Raises ArtifactError, in the operator's own words, when the store cannot
    be read, or may not."""
    found = {}
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
    return found


def finished_of(artifact: Artifact) -> Finished:
    """What the status shows of an artifact."""
    manifest = artifact.manifest
    metrics = {name: value for name, value in manifest.metrics.items() if math.isfinite(value)}
    return Finished(artifact.url, manifest.digest, metrics, manifest.rows.read, sum(manifest.rows.written.values()),
                    manifest.started, manifest.finished)
