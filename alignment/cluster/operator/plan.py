"""What is to be: a run's stages, keys and gates, as plain facts. All that the decisions know of an AlignmentRun's spec.

`prepare` makes it; nothing here reads a file, a bundle or a store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignment.config import Aim
from alignment.config.stops import Stops


@dataclass(frozen=True)
class PlannedStage:
    """One stage: its artifact's folder name and full digest, and the stages it reads."""

    name: str
    key: str
    digest: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Bound:
    """A gate, its metric bound parsed (None: a person's approval)."""

    after: str
    aim: Aim | None


@dataclass(frozen=True)
class Offer:
    """What is served once the run is made.

    Attributes:
        service: name of its RayService.
        models: name -> stage whose model it is.
        content: `serving` without its models, and `profile`, as JSON without what is default.
        pin: the revision that a person asked for, as it stands in the annotation; "": the newest.
    """

    service: str
    endpoint: str
    models: Mapping[str, str]
    content: Mapping[str, Any]
    pin: str = ""


@dataclass(frozen=True)
class Plan:
    """What is to be: all that reconcile() needs to know of an AlignmentRun."""

    name: str
    generation: int
    stages: tuple[PlannedStage, ...] = ()
    gates: tuple[Bound, ...] = ()
    suspend: bool = False
    retries: int = 2
    parallel: int = 1
    ttl: int | None = None
    keep_finished: int = 600
    """Seconds a finished stage's RayJob stays."""
    store: str = ""
    approved: frozenset[str] = frozenset()
    retry: str = ""
    stops: tuple[Stops, ...] = ()
    """Groups whose rounds end where a gate is not met."""
    offer: Offer | None = None
    problem: tuple[str, str] | None = None
    """(reason, message) when the spec cannot be carried out."""
