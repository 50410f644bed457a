"""A small Kubernetes for tests of the operator: objects in memory with the API server's own rules, RayJobs and
RayServices that a test moves on, and a store that holds what finished stages made and what replicas proved. It can fail
at any write, before or after it was done.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from alignment.cluster.client.refusals import cluster_error
from alignment.cluster.manifests.alignment_run import status_of
from alignment.cluster.manifests.bundle import bundle, config_map
from alignment.cluster.manifests.labels import ATTEMPT_LABEL, REVISION_LABEL, RUN_LABEL, STAGE_LABEL
from alignment.cluster.manifests.submission import alignment_run
from alignment.cluster.operator.controller import Controller
from alignment.cluster.operator.metrics import Metrics
from alignment.cluster.operator.prepare import prepare
from alignment.cluster.operator.reads import Reads
from alignment.cluster.operator.served import Proof
from alignment.cluster.operator.world import Finished, Held, stamp_of
from alignment.config import Profile, Run, parse_run
from alignment.pipeline.keys import Key, keys
from tests import small

Object = dict[str, Any]
NAMESPACE = "align"
READS = Reads(("s3://bucket/artifacts",))
EXIT_2 = ("Job entrypoint command failed with exit code 2, last available logs (truncated to 20,000 chars):\n"
          "reading\n\x1b[31mstage sft: the split has no rows\x1b[0m\n  expected: at least one row\n")
THEIRS = "run theirs, stage two, since 2026-01-01 00:00:00, makes it"
EXIT_4 = ("Job entrypoint command failed with exit code 4, last available logs (truncated to 20,000 chars):\n"
          f"… sft 0123 another works on it\n{THEIRS}\n")
RAISED = ("The deployment failed to start 2 times in a row. This may be due to a problem with its constructor or "
          "initial health check failing. See controller logs for details. Error:\n\x1b[36mray::ServeReplica:kubealign:"
          "models.initialize_and_get_metadata()\x1b[39m (pid=1, ip=10.1.1.1)\n  File \"/usr/lib/x.py\", line 1, in y\n"
          "    return await z()\nalignment.errors.StageError: sft (sft-000000000000) is not served: row rows-r1: the "
          "prompt has other ids\n  expected: the same ids\n")
EXIT_1 = "Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 chars):\nboom\n"


class Crash(BaseException):
    """The operator is killed here."""


class Store:
    """Finished artifacts by key, and who of other runs is at unfinished ones."""

    def __init__(self, url: str = READS.prefixes[0]) -> None:
        self.url = url
        self.made: dict[str, Finished] = {}
        self.held: dict[str, bool] = {}
        """key -> whether the holder of its lease is alive; a dead one's looks the same for a while."""
        self.asked = 0
        self.proved: dict[tuple[str, int, str], Proof] = {}
        """(service, revision, model) -> the newest."""

    def proofs(self, url: str, service: str, revision: int, models: Mapping[str, str]) -> dict[str, Proof]:
        self.asked += len(models)
        return {model: self.proved[service, revision, model] for model in models
                if (service, revision, model) in self.proved}

    def look_up(self, url: str, keys: Iterable[str]) -> dict[str, Finished | Held]:
        assert url == self.url
        wanted = list(keys)
        self.asked += len(wanted)
        return {key: self.made.get(key) or Held(THEIRS) for key in wanted if key in self.made or key in self.held}

    def finish(self, key: str, digest: str, **metrics: float) -> None:
        self.made[key] = Finished(f"{self.url}/artifacts/{key}", digest, metrics, 7, 5,
                                  "2026-01-01T00:00:00Z", "2026-01-01T00:00:09Z")


class World:
    """See the module. `now` is its clock."""

    def __init__(self, store: Store) -> None:
        self.store, self.now = store, 1_800_000_000.0
        self.objects: dict[tuple[str, str], Object] = {}
        self.log: list[tuple[str, str]] = []
        self.fuse: int | None = None
        self.refuse = False
        self.kuberay = True
        self.rayservice_api = True
        self.asked: list[str] = []
        """RayServices asked for by name."""
        self.clusters: dict[str, dict[str, Object]] = {}
        """RayService's uid -> Ray cluster -> the spec it was made from."""
        self._count = itertools.count(1)
        self.events: list[tuple[str, str]] = []

    # --- the API ---

    def runs(self) -> list[Object]:
        return [copy.deepcopy(thing) for (kind, _), thing in self.objects.items() if kind == "AlignmentRun"]

    def run(self, name: str) -> Object | None:
        return copy.deepcopy(self.objects.get(("AlignmentRun", name)))

    def rayjobs(self, run: str | None = None) -> list[Object]:
        if not self.kuberay:
            raise cluster_error("the cluster does not have KubeRay", 404, hint="install it: ...")
        return [copy.deepcopy(job) for job in self.jobs() if run is None or job["metadata"]["labels"][RUN_LABEL] == run]

    def rayjob(self, name: str) -> Object | None:
        return copy.deepcopy(self.objects.get(("RayJob", name)))

    def create_rayjob(self, manifest: Object) -> Object:
        self._burn()
        if self.refuse:
            raise cluster_error("refused on admission: no RayJobs today", 403)
        name = manifest["metadata"]["name"]
        if ("RayJob", name) in self.objects:
            raise cluster_error("someone else holds it", 409)
        made = self.put("RayJob", {**copy.deepcopy(manifest), "status": {}})
        self.log.append(("create", name))
        self._burn()
        return copy.deepcopy(made)

    def delete_rayjob(self, name: str, uid: str) -> None:
        self._burn()
        job = self.objects.get(("RayJob", name))
        if job is not None and job["metadata"]["uid"] == uid and "deletionTimestamp" not in job["metadata"]:
            job["metadata"]["deletionTimestamp"] = stamp_of(self.now)
            self._touch(job)
            self.log.append(("delete", name))
        self._burn()

    def rayservices(self) -> list[Object]:
        self._has_rayservices()
        return [copy.deepcopy(thing) for (kind, _), thing in self.objects.items()
                if kind == "RayService" and RUN_LABEL in thing["metadata"].get("labels", {})]

    def rayservice(self, name: str) -> Object | None:
        self._has_rayservices()
        self.asked.append(name)
        return copy.deepcopy(self.objects.get(("RayService", name)))

    def apply_rayservice(self, manifest: Object, uid: str | None) -> Object:
        self._burn()
        self._has_rayservices()
        if self.refuse:
            raise cluster_error("refused on admission: no RayServices today", 403)
        name = manifest["metadata"]["name"]
        here = self.objects.get(("RayService", name))
        if (here["metadata"]["uid"] if here is not None else None) != uid:
            raise cluster_error("someone else holds it", 409)
        if here is None:
            here = self.put("RayService", {**copy.deepcopy(manifest), "status": {}})
            self.log.append(("serve", str(revision_of(here))))
        else:
            here["metadata"] |= {key: copy.deepcopy(manifest["metadata"][key]) for key in ("labels", "annotations")}
            if here["spec"] != manifest["spec"]:
                here["spec"] = copy.deepcopy(manifest["spec"])
                here["metadata"]["generation"] += 1
                self.log.append(("serve", str(revision_of(here))))
            self._touch(here)
        self._burn()
        return copy.deepcopy(here)

    def delete_rayservice(self, name: str, uid: str) -> None:
        self._burn()
        here = self.objects.get(("RayService", name))
        if here is not None and here["metadata"]["uid"] == uid:
            del self.objects[("RayService", name)]
            self.log.append(("unserve", name))
        self._burn()

    def serving_trouble(self, run: str, revision: int, service: str) -> str:
        return ""

    def _has_rayservices(self) -> None:
        if not self.rayservice_api:
            raise cluster_error("the cluster does not have KubeRay", 404, hint="install it: ...")

    def delete_run(self, name: str, uid: str) -> None:
        self._burn()
        if self.objects[("AlignmentRun", name)]["metadata"]["uid"] == uid:
            del self.objects[("AlignmentRun", name)]
            for key, thing in list(self.objects.items()):  # garbage collection
                if any(owner["uid"] == uid for owner in thing["metadata"].get("ownerReferences", ())):
                    del self.objects[key]
            self.log.append(("delete", name))

    def apply_status(self, body: Object, status: Object) -> Object:
        self._burn()
        here = self.objects.get(("AlignmentRun", body["metadata"]["name"]))
        if here is None:
            raise cluster_error("gone", 404)
        if here["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            raise cluster_error("the object has been modified", 409)
        if here.get("status") != status:
            here["status"] = copy.deepcopy(status)
            self._touch(here)
            self.log.append(("status", body["metadata"]["name"]))
        self._burn()
        return copy.deepcopy(here)

    def config_map(self, name: str) -> Object | None:
        return copy.deepcopy(self.objects.get(("ConfigMap", name)))

    def apply_config_map(self, manifest: Object) -> Object:
        self._burn()
        here = self.objects.get(("ConfigMap", manifest["metadata"]["name"]))
        if here is None:
            return copy.deepcopy(self.put("ConfigMap", copy.deepcopy(manifest)))
        here["metadata"]["ownerReferences"] = manifest["metadata"]["ownerReferences"]
        return copy.deepcopy(here)

    def event(self, body: Object, kind: str, reason: str, message: str, stamp: str) -> None:
        self._burn()
        self.events.append((reason, message))

    # --- what else happens in a cluster ---

    def put(self, kind: str, thing: Object) -> Object:
        metadata = thing["metadata"]
        metadata |= {"uid": f"uid-{next(self._count)}", "generation": 1, "creationTimestamp": stamp_of(self.now)}
        self.objects[(kind, metadata["name"])] = thing
        self._touch(thing)
        return thing

    def edit(self, name: str, **changes: Any) -> None:
        """As kubectl edit: a changed spec is a new generation."""
        body = self.objects[("AlignmentRun", name)]
        if any(body["spec"].get(key) != value for key, value in changes.items()):
            body["spec"] |= copy.deepcopy(changes)
            body["metadata"]["generation"] += 1
            self._touch(body)

    def annotate(self, name: str, key: str, value: str) -> None:
        body = self.objects[("AlignmentRun", name)]
        body["metadata"].setdefault("annotations", {})[key] = value
        self._touch(body)

    def jobs(self) -> list[Object]:
        return [thing for (kind, _), thing in self.objects.items() if kind == "RayJob"]

    def move(self, job: Object, deployment: str, ray: str = "", message: str = "", reason: str = "") -> None:
        """KubeRay writes a status."""
        ended = {"endTime": stamp_of(self.now)} if deployment in ("Complete", "Failed") else {}
        job["status"] = {"jobDeploymentStatus": deployment, "jobStatus": ray, "message": message, "reason": reason,
                         "startTime": stamp_of(self.now), **ended}
        self._touch(job)

    def come_up(self, outcome: str = "well") -> None:
        """KubeRay and Ray bring each RayService one step on: a Ray cluster for a spec that none is of, its
        application, then, where that runs (`outcome` "well"), requests are sent to it.

        Args:
            outcome: "refuted": a replica finds that its models are not what was recorded; "broken": it does not start.
        """
        for thing in [thing for (kind, _), thing in self.objects.items() if kind == "RayService"
                      and "rayClusterConfig" in thing["spec"]]:
            before = copy.deepcopy(thing["status"])
            self._serve(thing, outcome)
            if thing["status"] != before:
                self._touch(thing)

    def _serve(self, thing: Object, outcome: str) -> None:
        status, revision = thing["status"], revision_of(thing)
        clusters = self.clusters.setdefault(thing["metadata"]["uid"], {})
        active = status.setdefault("activeServiceStatus", {})
        pending = status.setdefault("pendingServiceStatus", {})
        newest = pending.get("rayClusterName") or active.get("rayClusterName")
        if newest is None or clusters[newest] != thing["spec"]:
            name = f"{thing['metadata']['name']}-{next(self._count)}"
            clusters[name] = copy.deepcopy(thing["spec"])
            status["pendingServiceStatus"] = {"rayClusterName": name}
        elif not pending:
            return
        elif not pending.get("applicationStatuses"):
            pending["applicationStatuses"] = {"kubealign": {"status": "DEPLOYING"}}
        elif outcome == "well":
            self._prove(thing, revision, pending["rayClusterName"], None)
            status["activeServiceStatus"] = {"rayClusterName": pending["rayClusterName"], "applicationStatuses": {
                "kubealign": {"status": "RUNNING"}}}
            status["pendingServiceStatus"] = {}
            status |= {"numServeEndpoints": 1, "conditions": [{"type": "Ready", "status": "True"}]}
        else:
            problem = "row rows-r1: the prompt has other ids" if outcome == "refuted" else None
            if problem:
                self._prove(thing, revision, pending["rayClusterName"], problem)
            pending["applicationStatuses"] = {"kubealign": {
                "status": "DEPLOY_FAILED", "message": "Failed to update the deployments ['models'].",
                "serveDeploymentStatuses": {"models": {"status": "DEPLOY_FAILED", "message": RAISED}}}}

    def _prove(self, thing: Object, revision: int, cluster: str, problem: str | None) -> None:
        for model in told(thing)["models"]:
            self.store.proved[thing["metadata"]["name"], revision, model] = Proof(
                problem is None, cluster, 8, 0.00001, problem)

    def vanish(self, job: Object) -> None:
        self.objects.pop(("RayJob", job["metadata"]["name"]), None)

    def live(self) -> list[Object]:
        return [job for job in self.jobs()
                if job["status"].get("jobDeploymentStatus") not in ("Complete", "Failed", "ValidationFailed")]

    def _touch(self, thing: Object) -> None:
        thing["metadata"]["resourceVersion"] = str(next(self._count))

    def _burn(self) -> None:
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                self.fuse = None
                raise Crash


def profile(**cluster: Any) -> Profile:
    """A profile with artifacts in a bucket."""
    return Profile.model_validate_json(json.dumps({
        "name": "test", "cluster": {"storage": {"url": "s3://bucket/artifacts", "secret": "s3"}, **cluster}}))


def chain(folder: Path, **top: Any) -> Run:
    """base, data -> sft -> rm, dpo -> eval."""
    stages = [
        small.train("sft"), small.train("rm", "reward", "sft"), small.train("dpo", "dpo", "sft"),
        {"name": "eval", "kind": "evaluate", "models": ["base", "dpo"], "rows": "data/test"},
    ]
    return small.run(folder, *stages, **{"name": "chain", **top})


def submit(world: World, run: Run, of: Profile | None = None, **options: Any) -> str:
    """As `kubealign submit --target run`; returns the run's name."""
    of = of or profile()
    packed = bundle(run, of)
    name = f"{run.name}-{packed.digest[:8]}"
    world.put("ConfigMap", config_map(packed, name=name, namespace=NAMESPACE))
    world.put("AlignmentRun", alignment_run(run, of, packed, namespace=NAMESPACE, config_map=name, **options))
    return run.name


def operator(world: World) -> Controller:
    """A freshly started operator."""
    return Controller(world, Metrics(), namespace=NAMESPACE, prepare=partial(prepare, Reads((world.store.url,))),
                      look_up=world.store.look_up, proofs=world.store.proofs,
                      trouble=lambda run, stage, job: "", clock=lambda: world.now)


def step(world: World, job: Object, outcome: str = "well", **metrics: float) -> None:
    """Move a RayJob on by one: pending, running, ended (or gone, when it is being deleted)."""
    if "deletionTimestamp" in job["metadata"]:
        world.vanish(job)
        return
    state = job["status"].get("jobDeploymentStatus", "")
    if state == "":
        world.move(job, "Initializing")
    elif state == "Initializing":
        world.move(job, "Running", "RUNNING")
    elif state == "Running" and world.store.held.get(key_of(world, job)[0]):
        world.move(job, "Failed", "FAILED", EXIT_4, "AppFailed")
    elif state == "Running" and outcome == "well":
        key, digest = key_of(world, job)
        world.store.finish(key, digest, **metrics)
        world.move(job, "Complete", "SUCCEEDED")
    elif state == "Running" and outcome == "nothing":
        world.move(job, "Complete", "SUCCEEDED")
    elif state == "Running":
        world.move(job, "Failed", "FAILED", EXIT_2 if outcome == "user" else EXIT_1, "AppFailed")


def key_of(world: World, job: Object) -> tuple[str, str]:
    """What the pods of a RayJob would make: from the ConfigMap that they mount, as job.py computes it."""
    key = keys_of(world, job)[job["metadata"]["labels"][STAGE_LABEL]]
    return key.key, key.digest


def keys_of(world: World, job: Object) -> dict[str, Key]:
    """Keys of all stages of the run that a RayJob's pods mount."""
    return keys(parse_run(world.objects[("ConfigMap", mounted(job))]["data"]["run.yaml"]))


def mounted(job: Object) -> str:
    """The ConfigMap that a RayJob's pods mount."""
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    return next(volume["configMap"]["name"] for volume in head["volumes"] if "configMap" in volume)


def attempts(world: World) -> list[tuple[str, int]]:
    """(stage, attempt) of every RayJob there is."""
    return [(job["metadata"]["labels"][STAGE_LABEL], int(job["metadata"]["labels"][ATTEMPT_LABEL]))
            for job in world.jobs()]


def calm(world: World, controller: Controller, name: str, outcome: dict[str, str] | None = None,
         metrics: dict[str, dict[str, float]] | None = None, steps: int = 400, serving: str = "well") -> None:
    """Let everything go well (or as `outcome` says by stage) until nothing moves any more."""
    for _ in range(steps):
        before = (dict(world.store.made), copy.deepcopy(world.objects))
        controller.resync()
        wake = controller.look(name)
        world.come_up(serving)
        for job in world.jobs():
            stage = job["metadata"]["labels"][STAGE_LABEL]
            step(world, job, (outcome or {}).get(stage, "well"), **(metrics or {}).get(stage, {}))
        world.now += max(1.0, min(wake or 1.0, 60.0))
        if wake is None and before == (world.store.made, world.objects):
            return
    raise AssertionError("it does not come to rest")


def revision_of(service: Object) -> int:
    """The revision that a RayService's spec is of: as its pods are told."""
    labels = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["metadata"]["labels"]
    return int(labels[REVISION_LABEL])


def told(service: Object) -> Object:
    """What the replicas of a RayService are told."""
    made: Object = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]
    return made


def states(world: World, name: str) -> dict[str, str]:
    """Stage -> state, as the status says."""
    return {row.name: row.state for row in status_of(world.objects[("AlignmentRun", name)]).stages}
