"""What is seen of a run's serving: its RayService, the revisions that it remembers, and the proofs in the store, as
plain facts. Reads no clock and no network. The one place of the operator that knows KubeRay's and Ray Serve's words.

The RayService itself remembers what it serves, in two annotations, so that a lost status loses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from alignment.cluster.manifests.alignment_run import GROUP
from alignment.cluster.status.reading import LENGTH, gist

REVISIONS = f"{GROUP}/revisions"
"""Annotation: the last revisions, newest last, each with all that its replicas were told, as JSON."""
TARGET = f"{GROUP}/serving"
"""Annotation: the revision that the spec is of, since when, and which Ray clusters were of which revision then."""
_FAILED = ("DEPLOY_FAILED", "UNHEALTHY")
_REFUSED = ("ValidationFailed", "InitializingTimeout")
"""Reasons of KubeRay's condition Ready with which it goes no further."""


@dataclass(frozen=True)
class Revision:
    """One set of models and settings.

    Attributes:
        content: `serving` (a `Serving`) and `profile`, as JSON without what is default.
        when: it was first wanted.
        retry: the retry annotation that asked for it, where it follows one with the same content.
    """

    number: int
    content: Mapping[str, Any]
    when: str
    proved: bool | None = None
    retry: str = ""

    @property
    def models(self) -> dict[str, str]:
        """Name -> key of the artifact."""
        return dict(self.content["serving"]["models"])

    def said_of(self, *path: str) -> Any:
        """A value of the content, None where it is what it is by default."""
        found: Any = self.content
        for name in path:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found


@dataclass(frozen=True)
class Target:
    """What the RayService's spec is of. `clusters`: names of Ray clusters that were there before it -> revision."""

    number: int
    since: str
    clusters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One of the two Ray clusters of a RayService; `state` of its application, `message` why it is as it is."""

    cluster: str = ""
    state: Literal["none", "starting", "running", "failed"] = "none"
    message: str = ""


@dataclass(frozen=True)
class Service:
    """A RayService of the name that the run's has.

    Attributes:
        mine: this very AlignmentRun owns it.
        deleting: it was deleted and is still there.
        answers: replicas that requests are sent to.
        stopped: why KubeRay goes no further with it, "" where it does.
        active: the Ray cluster that requests are sent to.
        pending: the one that is to take over.
    """

    name: str
    uid: str
    mine: bool = True
    deleting: bool = False
    revisions: tuple[Revision, ...] = ()
    target: Target | None = None
    answers: int = 0
    stopped: str = ""
    active: Part = Part()
    pending: Part = Part()

    def revision_of(self, part: Part) -> int | None:
        """Which revision a Ray cluster is of; None where there is no cluster, or nobody can say."""
        if not part.cluster or self.target is None:
            return None
        return self.target.clusters.get(part.cluster, self.target.number)

    @property
    def answering(self) -> int | None:
        """The revision that answers."""
        return self.revision_of(self.active) if self.answers else None

    def part_of(self, number: int) -> Part:
        """The Ray cluster of a revision: the one that requests are sent to, before another that is to take over."""
        return next((part for part in (self.active, self.pending) if self.revision_of(part) == number), Part())

    def revision(self, number: int | None) -> Revision | None:
        return next((one for one in self.revisions if one.number == number), None)


@dataclass(frozen=True)
class Proof:
    """What a replica wrote into the store of one model. `cluster`: the Ray cluster it belongs to."""

    proved: bool
    cluster: str
    rows: int | None = None
    most_off: float | None = None
    problem: str | None = None


def service_of(thing: Mapping[str, Any], owner_uid: str) -> Service:
    """A RayService as the API server holds it -> what matters of it."""
    metadata, status = thing["metadata"], thing.get("status") or {}
    annotations = metadata.get("annotations") or {}
    ready: Mapping[str, Any] = next((one for one in status.get("conditions") or () if one.get("type") == "Ready"), {})
    stopped = ready.get("reason") in _REFUSED and ready.get("status") != "True"
    return Service(
        metadata["name"], metadata["uid"],
        mine=any(owner.get("uid") == owner_uid for owner in metadata.get("ownerReferences") or []),
        deleting="deletionTimestamp" in metadata,
        revisions=_revisions(annotations.get(REVISIONS, "")), target=_target(annotations.get(TARGET, "")),
        answers=int(status.get("numServeEndpoints") or 0),
        stopped=str(ready.get("message") or ready["reason"])[:LENGTH] if stopped else "",
        active=_part(status.get("activeServiceStatus") or {}), pending=_part(status.get("pendingServiceStatus") or {}),
    )


def annotations_of(revisions: tuple[Revision, ...], target: Target) -> dict[str, str]:
    """The two annotations; `service_of` reads them back."""
    listed = [{"number": one.number, **one.content, "when": one.when,
               **({} if one.proved is None else {"proved": one.proved}), **({"retry": one.retry} if one.retry else {})}
              for one in revisions]
    return {REVISIONS: _dumped(listed),
            TARGET: _dumped({"revision": target.number, "since": target.since, "clusters": target.clusters})}


def said(message: str) -> str:
    """What of Ray's message about a replica says why: the error's own words, without the traceback before them and the
    class that Ray puts in front."""
    found = gist(message)
    head, colon, rest = found.partition(": ")
    named = colon and " " not in head and (head[:1].isupper() or "." in head or head.startswith("ray::"))
    return (rest if named else found).strip()[:LENGTH]


def _part(status: Mapping[str, Any]) -> Part:
    cluster = str(status.get("rayClusterName") or "")
    if not cluster:
        return Part()
    found = list((status.get("applicationStatuses") or {}).values())
    states = [str(one.get("status") or "") for one in found]
    bad = next((one for one in found if one.get("status") in _FAILED), None)
    words = next((text for one in ([bad] if bad else found) for text in _words(one)), "")
    if bad is not None:
        return Part(cluster, "failed", words)
    running = bool(states) and all(state == "RUNNING" for state in states)
    return Part(cluster, "running" if running else "starting", "" if running else words)


def _words(application: Mapping[str, Any]) -> list[str]:
    """What its deployments say of themselves, then what it says, which only names them."""
    deployments = (application.get("serveDeploymentStatuses") or {}).values()
    texts = [str(one.get("message") or "") for one in (*deployments, application)]
    return [said(text) for text in texts if text.strip()]


def _revisions(text: str) -> tuple[Revision, ...]:
    """Those that can be read: somebody may have changed them by hand."""
    found = []
    for one in _loaded(text, list):
        try:
            content = {"serving": {**one["serving"], "models": dict(one["serving"]["models"])},
                       "profile": dict(one["profile"])}
            found.append(Revision(int(one["number"]), content, str(one["when"]), one.get("proved"),
                                  str(one.get("retry") or "")))
        except (KeyError, TypeError, ValueError):
            continue
    return tuple(sorted(found, key=lambda one: one.number))


def _target(text: str) -> Target | None:
    found = _loaded(text, dict)
    try:
        return Target(int(found["revision"]), str(found["since"]),
                      {str(name): int(number) for name, number in found["clusters"].items()})
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _loaded(text: str, kind: type) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        return kind()
    return found if isinstance(found, kind) else kind()


def _dumped(thing: object) -> str:
    return json.dumps(thing, separators=(",", ":"), ensure_ascii=False)
