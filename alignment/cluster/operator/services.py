"""RayServices for the controller: read, found out about, applied, deleted. What is to be done is serving's to say.

A run without `serve` costs no request: RayServices are listed with everything else, and asked for by name only where a
run is served or was.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping

from pydantic import ValidationError

from alignment.cluster.client.client import Object
from alignment.cluster.client.refusals import KUBERAY, ClusterError, is_missing_api
from alignment.cluster.manifests.alignment_run import owner_of
from alignment.cluster.manifests.labels import service_name
from alignment.cluster.manifests.ray_service import ray_service
from alignment.cluster.operator.metrics import Metrics
from alignment.cluster.operator.plan import Plan
from alignment.cluster.operator.seen import ClusterApi
from alignment.cluster.operator.served import Proof, Service
from alignment.cluster.operator.serving import Apply, Known, Withdraw, taken
from alignment.cluster.operator.world import seconds_of
from alignment.config import Profile, Serving
from alignment.errors import KubeAlignError

PATIENCE = 15.0
"""Seconds that a revision may take to start before one asks why; and between such questions."""
BLOCKED, BLOCKED_MOST = 30.0, 300.0
"""Seconds until a RayService that could not be applied is tried again; twice as long each time."""
_log = logging.getLogger("kubealign.operator")


@dataclasses.dataclass
class Recalled:
    """What is remembered of one run's serving between two looks; all of it can be lost."""

    blocked: tuple[float, str, str] | None = None
    """Until when, reason, message."""
    waits: float = BLOCKED
    proofs: tuple[tuple[int, str], Mapping[str, Proof]] | None = None
    """(revision, Ray cluster) -> the proofs of all its models, once none is lacking."""
    trouble: tuple[int, float, str] = (0, 0.0, "")
    """Of which revision, asked when, what was said."""


class Services:
    """The RayServices of one namespace."""

    def __init__(self, cluster: ClusterApi, metrics: Metrics, namespace: str,
                 proofs: Callable[[str, str, int, Mapping[str, str]], Mapping[str, Proof]],
                 clock: Callable[[], float]) -> None:
        """
        Args:
            proofs: `Apart.proofs`.
        """
        self.cluster, self.metrics, self.namespace = cluster, metrics, namespace
        self.proofs, self.clock = proofs, clock
        self.absent: tuple[str, str] | None = None
        """(reason, message) why there can be no RayServices."""

    def listed(self) -> list[Object]:
        """All that carry a run's label; none where the cluster knows no RayServices, or we may not see them."""
        try:
            found = self.cluster.rayservices()
        except ClusterError as error:
            self._without(error)
            return []
        self.absent = None
        return found

    def read(self, body: Object, seen: Object | None) -> Object | None:
        """The run's RayService as it is now, whoever owns it.

        Args:
            seen: as a watch or the list had it.
        """
        status = (body.get("status") or {}).get("serving")
        if not (body["spec"].get("run") or {}).get("serve") and seen is None and status is None:
            return None
        try:
            found = self.cluster.rayservice(service_name(body["metadata"]["name"]))
        except ClusterError as error:
            self._without(error)
            return None
        self.absent = None
        return found

    def known(self, plan: Plan, service: Service | None, recalled: Recalled, *, readable: bool) -> Known:
        """What is to be known beside the RayService.

        Args:
            readable: the store can be read.

        Raises:
            ArtifactError: it cannot.
        """
        blocked = recalled.blocked
        hindered = (blocked[1], blocked[2]) if blocked is not None and self.clock() < blocked[0] else None
        proofs: Mapping[str, Proof] | None = {} if readable else None
        trouble = ""
        if service is not None and service.mine and service.target is not None:
            if readable:
                proofs = self._proofs(plan.store, service, recalled)
            trouble = self._trouble(plan.name, service, recalled)
        return Known(proofs, trouble, self.absent or hindered)

    def apply(self, body: Object, action: Apply, service: Service | None, recalled: Recalled) -> Object | None:
        """Apply a RayService; None, and remembered why, where it cannot be."""
        name, number = body["metadata"]["name"], action.revision.number
        try:
            content = action.revision.content
            manifest = ray_service(
                Serving.model_validate_json(json.dumps(content["serving"])),
                Profile.model_validate_json(json.dumps(content["profile"])), run=name, revision=number,
                namespace=self.namespace, owner=owner_of(body), annotations=action.annotations)
            made = self.cluster.apply_rayservice(manifest, action.uid)
        except ClusterError as error:
            if not 400 <= error.status < 500:
                raise
            self._block(recalled, *self._why(error, body, action))
            return None
        except (ValidationError, KubeAlignError) as error:
            self._block(recalled, "Unreadable", f"revision {number} was recorded by a version of the operator that "
                                                f"this one does not understand: {str(error)[:500]}")
            return None
        recalled.blocked, recalled.waits, recalled.proofs = None, BLOCKED, None
        changed = service is None or service.target is None or service.target.number != number
        self.metrics.services.labels("applied" if changed else "noted").inc()
        _log.info("%s: applied RayService %s, revision %d", name, manifest["metadata"]["name"], number)
        return made

    def withdraw(self, action: Withdraw) -> None:
        _log.info("deleting RayService %s: its run is not to be served any more", action.name)
        self.cluster.delete_rayservice(action.name, action.uid)
        self.metrics.services.labels("deleted").inc()

    def _why(self, error: ClusterError, body: Object, action: Apply) -> tuple[str, str]:
        """(reason, message) why the API server would not have it."""
        name = service_name(body["metadata"]["name"])
        if error.status == 409 and action.uid is None:
            return taken(name)
        _log.warning("%s: RayService %s is refused: %s", body["metadata"]["name"], name, error)
        self.metrics.services.labels("refused").inc()
        return "Refused", f"the API server refuses the RayService: {error}"

    def block(self, recalled: Recalled, service: Service | None) -> None:
        """Remember, of a RayService that is somebody else's, that it is: no list or watch of ours shows it."""
        if service is not None and not service.mine:
            self._block(recalled, *taken(service.name))

    def _block(self, recalled: Recalled, reason: str, message: str) -> None:
        recalled.blocked = (self.clock() + recalled.waits, reason, message)
        recalled.waits = min(2 * recalled.waits, BLOCKED_MOST)

    def _without(self, error: ClusterError) -> None:
        """Remember that there can be no RayServices; raises the error where it says something else."""
        if is_missing_api(error):
            self.absent = ("RayServiceMissing", "the cluster has no RayServices, which KubeRay brings, so nothing can "
                                                f"be served; install it: {KUBERAY}")
        elif error.status == 403:
            self.absent = ("Forbidden", f"{error.problem}, so nothing can be served; upgrade the chart: helm upgrade "
                                        "kubealign charts/kubealign -n NAMESPACE")
        else:
            raise error

    def _proofs(self, url: str, service: Service, recalled: Recalled) -> Mapping[str, Proof]:
        """Of the revision that the RayService is of, once its replicas say anything; all proved once is remembered."""
        assert service.target is not None
        revision = service.revision(service.target.number)
        part = service.part_of(service.target.number)
        if revision is None or not (part.state in ("running", "failed") or (
                part.cluster and part.cluster == service.active.cluster)):
            return {}
        if revision.said_of("serving", "serve", "unproved"):
            return {}
        whose = (revision.number, part.cluster)
        if recalled.proofs is not None and recalled.proofs[0] == whose and part.state != "failed":
            return recalled.proofs[1]
        found = self.proofs(url, service.name, revision.number, revision.models)
        whole = all(name in found and found[name].proved and found[name].cluster == part.cluster
                    for name in revision.models)
        recalled.proofs = (whose, found) if whole else None
        return found

    def _trouble(self, run: str, service: Service, recalled: Recalled) -> str:
        """Why the pods of the revision that is to answer do not run, when it has not for a while."""
        assert service.target is not None
        number, now = service.target.number, self.clock()
        part = service.part_of(number)
        if service.answering == number or part.state == "failed" or service.stopped or (
                now < seconds_of(service.target.since) + PATIENCE):
            return ""
        of, asked, text = recalled.trouble
        if of != number or now >= asked + PATIENCE:
            text = self.cluster.serving_trouble(run, number, service.name)
            recalled.trouble = (number, now, text)
        return text
