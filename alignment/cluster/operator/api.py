"""The requests that the operator makes, counted, through `cluster.client`. One client per thread; holds nothing else.

Every refusal is a ClusterError with its HTTP status; an API server that is away for a while is waited for.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from alignment.cluster.client.client import Client, Object
from alignment.cluster.client.refusals import ClusterError
from alignment.cluster.manifests.alignment_run import API_VERSION, KIND
from alignment.cluster.manifests.labels import COMPONENT_LABEL, REVISION_LABEL, RUN_LABEL, STAGE_LABEL
from alignment.cluster.operator.metrics import Metrics
from alignment.cluster.status.trouble import (
    Trouble,
    halved_trouble,
    in_short,
    pod_trouble,
    refused_trouble,
    unreached_trouble,
)

MANAGER = "kubealign-operator"
_APPLY = "application/apply-patch+yaml"


class _Counted(Client):
    """A client whose requests show in the metrics."""

    metrics: Metrics

    def request(self, method: str, path: str, query: Mapping[str, str] | None = None, body: Object | None = None, *,
                content_type: str = "application/json", accept: str = "application/json") -> Object:
        kind = path.split("/namespaces/")[-1].split("/")[1]
        verb = "LIST" if method == "GET" and path.endswith(kind) else method
        try:
            made = super().request(method, path, query, body, content_type=content_type, accept=accept)
        except ClusterError as error:
            self.metrics.calls.labels(verb, kind, str(error.status)).inc()
            raise
        self.metrics.calls.labels(verb, kind, "ok").inc()
        return made


class Api:
    """The requests for AlignmentRuns, RayJobs, RayServices and ConfigMaps of one namespace; a `ClusterApi`."""

    def __init__(self, namespace: str, metrics: Metrics, say: Callable[[str], None]) -> None:
        self.namespace, self.metrics, self.say = namespace, metrics, say
        self._own = threading.local()

    @property
    def client(self) -> Client:
        """This thread's client."""
        if not hasattr(self._own, "client"):
            self._own.client = _Counted(self.namespace, say=self.say)
            self._own.client.metrics = self.metrics
        client: Client = self._own.client
        return client

    def runs(self) -> list[Object]:
        return self.client.list(KIND)

    def run(self, name: str) -> Object | None:
        return self.client.find(KIND, name)

    def rayjobs(self, run: str | None = None) -> list[Object]:
        """RayJobs that carry the run's label; without a run, all that carry one."""
        if run is not None:
            return self.client.list("RayJob", {RUN_LABEL: run})
        return [job for job in self.client.list("RayJob", {"app.kubernetes.io/part-of": "kubealign"})
                if RUN_LABEL in (job["metadata"].get("labels") or {})]

    def rayjob(self, name: str) -> Object | None:
        return self.client.find("RayJob", name)

    def create_rayjob(self, manifest: Object) -> Object:
        """Create, never change: an apply would set back what Kueue or KubeRay changed since. 409: the name is taken."""
        query = {"fieldManager": MANAGER, "fieldValidation": "Strict"}
        return self.client.request("POST", self.client.path("RayJob"), query, manifest)

    def delete_rayjob(self, name: str, uid: str) -> None:
        """Delete one with this uid; what is gone, or is another by now, is left alone."""
        self._delete("RayJob", name, uid)

    def rayservices(self) -> list[Object]:
        """RayServices that carry a run's label."""
        return [one for one in self.client.list("RayService", {"app.kubernetes.io/part-of": "kubealign"})
                if RUN_LABEL in (one["metadata"].get("labels") or {})]

    def rayservice(self, name: str) -> Object | None:
        return self.client.find("RayService", name)

    def apply_rayservice(self, manifest: Object, uid: str | None) -> Object:
        """Make it, or see to it that the one with this uid has these fields, whatever KubeRay's fields are.

        Args:
            uid: None: there was none. One that somebody made meanwhile is not taken over (409).
        """
        query = {"fieldManager": MANAGER, "fieldValidation": "Strict", "force": "true" if uid is not None else "false"}
        if uid is not None:
            manifest = {**manifest, "metadata": {**manifest["metadata"], "uid": uid}}
        path = self.client.path("RayService", manifest["metadata"]["name"])
        return self.client.request("PATCH", path, query, manifest, content_type=_APPLY)

    def delete_rayservice(self, name: str, uid: str) -> None:
        self._delete("RayService", name, uid)

    def delete_run(self, name: str, uid: str) -> None:
        self._delete(KIND, name, uid)

    def apply_status(self, body: Object, status: Object) -> Object:
        """Write the whole status, unless the object has changed since `body` was read (409)."""
        metadata = body["metadata"]
        manifest = {
            "apiVersion": API_VERSION, "kind": KIND, "status": status,
            "metadata": {"name": metadata["name"], "resourceVersion": metadata["resourceVersion"]},
        }
        query = {"fieldManager": MANAGER, "force": "true", "fieldValidation": "Strict"}
        path = self.client.path(KIND, metadata["name"]) + "/status"
        return self.client.request("PATCH", path, query, manifest, content_type=_APPLY)

    def config_map(self, name: str) -> Object | None:
        return self.client.find("ConfigMap", name)

    def apply_config_map(self, manifest: Object) -> Object:
        """Make it, or see to it that it has these fields."""
        query = {"fieldManager": MANAGER, "force": "true"}
        path = self.client.path("ConfigMap", manifest["metadata"]["name"])
        return self.client.request("PATCH", path, query, manifest, content_type=_APPLY)

    def event(self, body: Object, kind: str, reason: str, message: str, stamp: str) -> None:
        """An Event about an AlignmentRun; what was said before is counted there."""
        metadata = body["metadata"]
        digest = hashlib.sha256(f"{metadata['uid']} {reason} {message}".encode()).hexdigest()[:16]
        name = f"{metadata['name']}.{digest}"
        event: dict[str, Any] = {
            "apiVersion": "v1", "kind": "Event", "type": kind, "reason": reason, "message": message[:1000], "count": 1,
            "metadata": {"name": name, "namespace": self.namespace},
            "involvedObject": {"apiVersion": API_VERSION, "kind": KIND, "name": metadata["name"],
                               "namespace": self.namespace, "uid": metadata["uid"]},
            "source": {"component": MANAGER}, "firstTimestamp": stamp, "lastTimestamp": stamp,
        }
        try:
            self.client.request("POST", self.client.path("Event"), {}, event)
        except ClusterError as error:
            if error.status == 409:
                self._again(name, event)
            elif error.status not in (403, 404):  # no right to write it, a namespace that ends
                raise

    def _again(self, name: str, event: Object) -> None:
        """Count one more of an Event."""
        found = self.client.find("Event", name)
        if found is not None:
            change = {"count": (found.get("count") or 1) + 1, "lastTimestamp": event["lastTimestamp"]}
            self.client.request("PATCH", self.client.path("Event", name), {}, change,
                                content_type="application/merge-patch+json")

    def trouble(self, run: str, stage: str, job: str) -> str:
        """Why a RayJob's pods do not run, in words; "" where nothing is wrong."""
        pods = self.client.list("Pod", {RUN_LABEL: run, STAGE_LABEL: stage})
        found = self._of_pods(pods)
        if not any(found):
            found = [unreached_trouble(self.client.find("RayJob", job) or {}, pods, time.time())]
        return self._in_words(found, job)

    def serving_trouble(self, run: str, revision: int, service: str) -> str:
        """The same of the pods that are to serve a revision."""
        pods = self.client.list("Pod", {RUN_LABEL: run, REVISION_LABEL: str(revision), COMPONENT_LABEL: "serve"})
        return self._in_words(self._of_pods(pods), service)

    def _of_pods(self, pods: list[Object]) -> list[Trouble | None]:
        found = [pod_trouble(pod, self.client.events("Pod", pod["metadata"]["name"])) for pod in pods]
        return [*found, halved_trouble(pods)]

    def _in_words(self, found: list[Trouble | None], owner: str) -> str:
        """Troubles in short; where there are none, that pods of this owner were refused."""
        if not any(found):
            warnings = self.client.list("Event", fields="type=Warning")
            found = [refused_trouble(event for event in warnings
                                     if str(event.get("involvedObject", {}).get("name", "")).startswith(owner))]
        return "; ".join(in_short(trouble for trouble in found if trouble is not None))

    def _delete(self, kind: str, name: str, uid: str) -> None:
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background",
                   "preconditions": {"uid": uid}}
        try:
            self.client.request("DELETE", self.client.path(kind, name), {}, options)
        except ClusterError as error:
            if error.status not in (404, 409):
                raise
