"""The artifact store as the operator sees it: is this stage finished, and what does its manifest say."""

from __future__ import annotations

import math

from alignment.artifacts import Artifact, Store
from alignment.cluster.operator.world import Finished


def look_up(url: str, key: str) -> Finished | None:
    """The finished artifact of a key; None where there is none. Raises ArtifactError when the store cannot be read."""
    found = Store(url).find(key)
    return None if found is None else finished_of(found)


def finished_of(artifact: Artifact) -> Finished:
    """What the status shows of an artifact."""
    manifest = artifact.manifest
    metrics = {name: value for name, value in manifest.metrics.items() if math.isfinite(value)}
    return Finished(artifact.url, manifest.digest, metrics, manifest.rows.read, sum(manifest.rows.written.values()),
                    manifest.started, manifest.finished)
