"""Copies of the AlignmentRuns, RayJobs and RayServices that were seen last, small ones, for all threads; and the
requests that the controller makes. A copy may be old: the controller trusts it only as far as "nothing to do".
"""

from __future__ import annotations

import threading
from typing import Protocol

from alignment.cluster.client.client import Object
from alignment.cluster.manifests.alignment_run import GROUP
from alignment.cluster.manifests.labels import RUN_LABEL, service_name
from alignment.cluster.status.losses import Loss, loss_of

_METADATA = ("name", "namespace", "uid", "resourceVersion", "generation", "labels", "annotations", "ownerReferences",
             "creationTimestamp", "deletionTimestamp")
MOST = 100
"""Lost pods of one run that are remembered."""
_JOB_STATUS = ("jobDeploymentStatus", "jobStatus", "message", "reason", "startTime", "endTime")


class ClusterApi(Protocol):
    """The requests that the controller makes; api.Api is the real one."""

    def runs(self) -> list[Object]: ...
    def run(self, name: str) -> Object | None: ...
    def rayjobs(self, run: str | None = None) -> list[Object]: ...
    def rayjob(self, name: str) -> Object | None: ...
    def create_rayjob(self, manifest: Object) -> Object: ...
    def delete_rayjob(self, name: str, uid: str) -> None: ...
    def rayservices(self) -> list[Object]: ...
    def rayservice(self, name: str) -> Object | None: ...
    def apply_rayservice(self, manifest: Object, uid: str | None) -> Object: ...
    def delete_rayservice(self, name: str, uid: str) -> None: ...
    def serving_trouble(self, run: str, revision: int, service: str) -> str: ...
    def delete_run(self, name: str, uid: str) -> None: ...
    def apply_status(self, body: Object, status: Object) -> Object: ...
    def config_map(self, name: str) -> Object | None: ...
    def apply_config_map(self, manifest: Object) -> Object: ...
    def event(self, body: Object, kind: str, reason: str, message: str, stamp: str) -> None: ...


class Seen:
    """The last copies of everything, safe to read and write from any thread."""

    def __init__(self) -> None:
        self._runs: dict[str, Object] = {}
        self._jobs: dict[str, dict[str, Object]] = {}
        self._services: dict[str, Object] = {}
        self._losses: dict[str, dict[tuple[str, str], Loss]] = {}
        self._lock = threading.Lock()

    def run(self, body: Object, gone: bool = False) -> str:
        """An AlignmentRun, as a watch has it; returns the name to look at."""
        name = str(body["metadata"]["name"])
        with self._lock:
            self._runs.pop(name, None)
            if not gone:
                self._runs[name] = _slim(body)
        return name

    def job(self, job: Object, gone: bool = False, run: str | None = None) -> str:
        """A RayJob, as a watch has it; returns the name of the run to look at.

        Args:
            run: whose it is, where its label says otherwise.
        """
        owner = run or str(job["metadata"]["labels"][RUN_LABEL])
        with self._lock:
            jobs = self._jobs.setdefault(owner, {})
            jobs.pop(job["metadata"]["name"], None)
            if not gone:
                jobs[job["metadata"]["name"]] = _slim_job(job)
        return owner

    def service(self, service: Object, gone: bool = False) -> str:
        """A RayService, as a watch has it; returns the name of the run to look at."""
        owner = str(service["metadata"]["labels"][RUN_LABEL])
        with self._lock:
            if service["metadata"]["name"] == service_name(owner):
                self._services.pop(owner, None)
                if not gone:
                    self._services[owner] = _slim_service(service)
        return owner

    def pod(self, pod: Object) -> str | None:
        """A Ray pod, as a watch has it; returns the name of the run to look at when the pod is lost."""
        loss, run = loss_of(pod), str(pod["metadata"]["labels"][RUN_LABEL])
        if loss is None:
            return None
        with self._lock:
            losses = self._losses.setdefault(run, {})
            known = losses.get(loss.key)
            if known is not None and not (known.asked and not loss.asked):
                return None
            losses[loss.key] = loss
            for key in list(losses)[:-MOST]:
                del losses[key]
        return run

    def losses(self, name: str) -> list[Loss]:
        """Pods of a run that were lost, as far as was seen."""
        with self._lock:
            return list(self._losses.get(name, {}).values())

    def read(self, name: str, body: Object, jobs: list[Object], service: Object | None = None) -> None:
        """One run, all its RayJobs and its RayService, as the API server has just said."""
        with self._lock:
            self._runs[name] = _slim(body)
            self._services.pop(name, None)
            if service is not None:
                self._services[name] = _slim_service(service)
            self._jobs[name] = {job["metadata"]["name"]: _slim_job(job) for job in jobs}

    def replace(self, bodies: list[Object], jobs: list[Object], services: list[Object]) -> dict[str, Object]:
        """Everything, as the API server has just said; returns the runs by name."""
        runs = {str(body["metadata"]["name"]): _slim(body) for body in bodies}
        by_run: dict[str, dict[str, Object]] = {}
        for job in jobs:
            by_run.setdefault(job["metadata"]["labels"][RUN_LABEL], {})[job["metadata"]["name"]] = _slim_job(job)
        with self._lock:
            self._runs, self._jobs = runs, by_run
            self._services = {run: _slim_service(one) for one in services
                              if service_name(run := one["metadata"]["labels"][RUN_LABEL]) == one["metadata"]["name"]}
            self._losses = {name: losses for name, losses in self._losses.items() if name in runs}
        return runs

    def of(self, name: str) -> tuple[Object | None, list[Object]]:
        """The run, None when there is none, and its RayJobs."""
        with self._lock:
            return self._runs.get(name), list(self._jobs.get(name, {}).values())

    def service_of(self, name: str) -> Object | None:
        """The run's RayService, None when there is none."""
        with self._lock:
            return self._services.get(name)


def version(thing: Object) -> tuple[str, str]:
    """Two copies with the same are the same."""
    return thing["metadata"]["uid"], thing["metadata"]["resourceVersion"]


def _slim(body: Object) -> Object:
    """A copy of an AlignmentRun without what no decision reads."""
    return {"metadata": _metadata(body), "spec": body.get("spec", {}), "status": body.get("status")}


def _slim_job(job: Object) -> Object:
    """A copy of a RayJob without what no decision reads: hundreds of runs have thousands of them."""
    status = {key: value for key, value in (job.get("status") or {}).items() if key in _JOB_STATUS}
    suspend = job.get("spec", {}).get("suspend", False)
    return {"metadata": _metadata(job), "status": status, "spec": {"suspend": suspend}}


def _slim_service(service: Object) -> Object:
    """A copy of a RayService without what no decision reads, so that it stays equal while KubeRay counts its pods."""
    status = service.get("status") or {}
    ready = [{key: one.get(key) for key in ("type", "status", "reason", "message")}
             for one in status.get("conditions") or () if one.get("type") == "Ready"]
    parts = {key: {name: value for name, value in (status.get(key) or {}).items()
                   if name in ("rayClusterName", "applicationStatuses")}
             for key in ("activeServiceStatus", "pendingServiceStatus")}
    metadata = {key: value for key, value in _metadata(service).items() if key not in ("resourceVersion", "generation")}
    return {"metadata": metadata, "status": {**parts, "conditions": ready,
                                             "numServeEndpoints": status.get("numServeEndpoints")}}


def _metadata(thing: Object) -> Object:
    metadata = {key: value for key, value in thing["metadata"].items() if key in _METADATA}
    annotations = (metadata.get("annotations") or {}).items()
    return {**metadata, "annotations": {key: value for key, value in annotations if key.startswith(f"{GROUP}/")}}
