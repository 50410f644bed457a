"""Who served a model: read from the proofs that servers left in the store (STORE/served/KEY/proof-*.json).

A server writes one for each model that it has held to its record, whatever came of it; one that serves without proof
(`--unproved`), or could not load a model, leaves none. Whether it still serves is not known here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from alignment.artifacts import Artifact


@dataclass(frozen=True)
class Served:
    """The last proof of a model that one server left.

    Attributes:
        name: what the model was called there.
        at: when, UTC, in ISO 8601.
        proved: whether it was what was recorded, so that it answered.
        problem: why not.
        service, cluster, revision: RayService, its RayCluster and the revision; None: on a machine.
    """

    name: str
    at: str
    proved: bool
    problem: str | None = None
    service: str | None = None
    cluster: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        by = "on a machine" if self.service is None else f"by {self.service}" + (
            "" if self.revision is None else f", revision {self.revision}")
        outcome = "proved" if self.proved else f"NOT served: {self.problem}"
        return f"{by} as {self.name}, {outcome} ({self.at})"


def served(artifact: Artifact, unknown: list[str]) -> list[Served]:
    """The last proof that each server left of an artifact, the newest first: one for each service and revision, and one
    for what was served on machines. What cannot be read is added to `unknown`.

    Raises:
        ArtifactError: the store cannot be read.
    """
    found = []
    for name in artifact.store.proof_files(artifact.key):
        text = artifact.store.read_served_file(artifact.key, name)
        if text is not None:
            try:
                found.append(_read(json.loads(text)))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                unknown.append(f"{artifact.key}: {name} is no proof: {type(error).__name__}: {error}")
    return _last(found)


def _last(proofs: Iterable[Served]) -> list[Served]:
    last: dict[tuple[str | None, str | None], Served] = {}
    for one in sorted(proofs, key=lambda proof: proof.at):
        last[one.service, one.revision] = one
    return sorted(last.values(), key=lambda proof: proof.at, reverse=True)


def _read(proof: dict[str, Any]) -> Served:
    at = str(proof["at"])
    with suppress(ValueError):  # a later version's, in another form
        at = datetime.strptime(at, "%Y%m%dT%H%M%SZ").strftime("%Y-%m-%dT%H:%M:%SZ")
    service, cluster, revision = (None if (value := proof.get(key)) is None else str(value)
                                  for key in ("service", "cluster", "revision"))
    return Served(str(proof["model"]), at, bool(proof["proved"]), proof.get("problem"), service, cluster, revision)
