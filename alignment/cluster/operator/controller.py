"""Sees, decides, acts: one look at one AlignmentRun at a time. Safe to call from several threads for different runs.

Keeps copies of what the watches say, and trusts them only as far as "nothing to do": before anything is written, the
run, its RayJobs and its RayService are read anew and the decision is made again. So a lost, doubled or late event costs
time, never correctness; and all of this may be killed at any moment, because it remembers nothing that is not in the
cluster or the store. RayJobs are read anew by name, once a full read has said which there are: asking for those with
the run's label makes the API server go through everybody's each time (500 runs did not end in nine minutes). Decisions
themselves are reconcile's; what concerns RayServices alone is services'.

A world that does not change is written once: what can mend itself without an edit is looked into at growing intervals,
and a status whose words alone differ is held back.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from alignment.cluster.client.client import Object
from alignment.cluster.client.refusals import ClusterError, is_missing_api
from alignment.cluster.manifests.alignment_run import RETRY, annotation, owner_of, status_json, status_of
from alignment.cluster.manifests.bundle import config_map
from alignment.cluster.manifests.ray_job import ray_job
from alignment.cluster.operator.metrics import Metrics
from alignment.cluster.operator.prepare import Prepared, Refused, plan_of
from alignment.cluster.operator.reconcile import Create, Decision, Hindrance, reconcile, wanted
from alignment.cluster.operator.rows import Delete
from alignment.cluster.operator.seen import ClusterApi, Seen, version
from alignment.cluster.operator.served import Proof, service_of
from alignment.cluster.operator.services import Recalled, Services
from alignment.cluster.operator.serving import Apply, Withdraw
from alignment.cluster.operator.verdict import reworded
from alignment.cluster.operator.world import Child, Finished, Held, child_of, seconds_of, stamp_of, with_losses
from alignment.errors import ArtifactError

PATIENCE = 15.0
"""Seconds that a RayJob may wait for its pods before one asks why; and between such questions."""
ANEW = 1.0
"""Seconds until the next look after one that was overtaken by a change."""
REFUSED, REFUSED_MOST = 30.0, 300.0
"""Seconds until a RayJob that the API server refused is tried again, or a spec whose files are missing looked into; of
such a spec twice as long each time."""
REWORDED = 300.0
"""Seconds until a status is written again of which only the words of messages changed."""
EVENTS = 10
"""Different Events of one run for one reason; what comes after them is counted in one."""
MENDABLE = ("FilesMissing", "SourceUnreadable")
"""Refusals that end without an edit of the AlignmentRun."""
_log = logging.getLogger("kubealign.operator")


@dataclasses.dataclass
class Memory:
    """What is remembered of one run between two looks; all of it can be lost."""

    uid: str = ""
    generation: int = 0
    retry: str = ""
    prepared: Prepared | Refused | None = None
    again: float | None = None
    """When a refused spec is looked into again."""
    waits: float = REFUSED
    wrote: float = 0.0
    """When the status was written last."""
    finished: dict[str, Finished] = dataclasses.field(default_factory=dict)
    refused: dict[str, tuple[float, str]] = dataclasses.field(default_factory=dict)
    trouble: dict[str, tuple[float, str]] = dataclasses.field(default_factory=dict)
    told: dict[str, set[str]] = dataclasses.field(default_factory=dict)
    serving: Recalled = dataclasses.field(default_factory=Recalled)
    config_map: str = ""
    settled: object = None


class Controller:
    """Looks at AlignmentRuns of one namespace, one at a time, and brings each a step on."""

    def __init__(self, cluster: ClusterApi, metrics: Metrics, *, namespace: str,
                 prepare: Callable[[Object, Object | None], Prepared],
                 look_up: Callable[[str, Sequence[str]], Mapping[str, Finished | Held]],
                 proofs: Callable[[str, str, int, Mapping[str, str]], Mapping[str, Proof]],
                 trouble: Callable[[str, str, str], str], clock: Callable[[], float] = time.time) -> None:
        """
        Args:
            prepare: `Apart.prepare`.
            look_up: `Apart.look_up`.
            proofs: `Apart.proofs`.
            trouble: (run, stage, RayJob) -> why the RayJob's pods do not run, "" where nothing is wrong.
        """
        self.cluster, self.metrics, self.namespace = cluster, metrics, namespace
        self.prepare, self.look_up, self.trouble, self.clock = prepare, look_up, trouble, clock
        self.services = Services(cluster, metrics, namespace, proofs, clock)
        self.seen = Seen()
        self._read = False  # whether a full read has shown all RayJobs
        self._memory: dict[str, Memory] = {}

    def resync(self) -> list[str]:
        """Read everything anew, whatever the watches said; returns the names to look at."""
        try:
            jobs, read = self.cluster.rayjobs(), True
        except ClusterError as error:
            if not is_missing_api(error):
                raise
            jobs, read = [], False  # each look says what is missing
        services = self.services.listed() if read else []
        runs = self.seen.replace(self.cluster.runs(), jobs, services)
        self._read = read
        self._memory = {name: memory for name, memory in self._memory.items() if name in runs}
        statuses = {name: body.get("status") or {} for name, body in runs.items()}
        self.metrics.count((status.get("phase", "Pending") for status in statuses.values()),
                           (row["state"] for status in statuses.values() for row in status.get("stages", ())),
                           (status["serving"]["state"] for status in statuses.values() if status.get("serving")))
        return sorted(runs, key=lambda name: statuses[name].get("phase") == "Failed")  # those at work come first

    def knows(self, name: str) -> bool:
        """Whether the run's present spec was read before."""
        body, memory = self.seen.of(name)[0], self._memory.get(name)
        return body is not None and memory is not None and memory.prepared is not None and (
            memory.uid, memory.generation) == (body["metadata"]["uid"], body["metadata"]["generation"])

    def look(self, name: str) -> float | None:
        """Bring one run a step on. Returns the seconds until the next look, None where only news make one.

        Raises:
            ClusterError: the API server refused or stayed away; look again later.
        """
        body, jobs = self.seen.of(name)
        service = self.seen.service_of(name)
        if body is None or "deletionTimestamp" in body["metadata"]:
            self._memory.pop(name, None)
            return None
        memory = self._memory.setdefault(name, Memory())
        stamp = (version(body), frozenset(map(version, jobs)), service)
        if memory.settled == stamp:
            return None
        decision = self._decide(body, jobs, service, memory)
        if decision.actions or self._is_news(body, decision, memory):
            return self._act(name, memory)
        self.metrics.looks.labels("idle").inc()
        sure = memory.again is None and all(part.status != "Unknown" for part in decision.status.conditions)
        if decision.status.ended is not None and decision.wake is None and sure:
            # An ended run costs nothing until something about it changes.
            memory.settled, memory.prepared, memory.finished = stamp, None, {}
        return None if decision.wake is None else max(0.0, decision.wake - self.clock())

    def _act(self, name: str, memory: Memory) -> float | None:
        """Decide again on what the API server says now, write the status, then do what there is to do."""
        body = self.cluster.run(name)
        if body is None or "deletionTimestamp" in body["metadata"]:
            return None
        stop, jobs, service = None, [], None
        try:
            jobs = self._jobs(body)
            service = self.services.read(body, self.seen.service_of(name))
        except ClusterError as error:
            if not is_missing_api(error):
                raise
            stop = ("KubeRayMissing", str(error))
        decision = self._decide(body, jobs, service, memory, stop)
        news = self._is_news(body, decision, memory)
        if news:
            try:
                body = self.cluster.apply_status(body, status_json(decision.status))
                memory.wrote = self.clock()
            except ClusterError as error:
                if error.status == 409:
                    return ANEW
                if error.status == 404:
                    return None
                raise
        self.seen.read(name, body, jobs, service)
        there = None if service is None else service_of(service, body["metadata"]["uid"])
        self.services.block(memory.serving, there)
        for note in decision.notes if news else ():
            told = memory.told.setdefault(note.reason, set())
            text = note.message if note.message in told or len(told) < EVENTS else "and others: see the status"
            told.add(note.message if len(told) < EVENTS else text)
            self.cluster.event(body, note.type, note.reason, text, stamp_of(self.clock()))
        for action in decision.actions:
            if isinstance(action, Create):
                self._create(body, action, memory)
            elif isinstance(action, Delete):
                _log.info("%s: deleting RayJob %s: %s", name, action.name, action.why)
                self.cluster.delete_rayjob(action.name, action.uid)
                self.metrics.children.labels("deleted").inc()
            elif isinstance(action, Apply):
                made = self.services.apply(body, action, there, memory.serving)
                if made is not None:
                    self.seen.service(made)
            elif isinstance(action, Withdraw):
                self.services.withdraw(action)
            else:
                _log.info("%s: its time to live is over", name)
                self.cluster.delete_run(name, body["metadata"]["uid"])
        ready = memory.prepared
        if decision.status.phase == "Succeeded" and not memory.config_map and isinstance(ready, Prepared) \
                and ready.as_sent:
            # Nothing had to be made; the ConfigMap that came with it goes with it all the same.
            memory.config_map = self._config_map(body, ready, owner_of(body))
        self.metrics.looks.labels("acted").inc()
        # One more look, at copies, tells whether this is all.
        return ANEW if stop is None else REFUSED

    def _is_news(self, body: Object, decision: Decision, memory: Memory) -> bool:
        """Whether the status is to be written: not for other words alone, shortly after the last ones."""
        before = status_of(body)
        return decision.status != before and (
            bool(decision.actions) or self.clock() >= memory.wrote + REWORDED or not reworded(before, decision.status))

    def _jobs(self, body: Object) -> list[Object]:
        """The run's RayJobs as they are now.

        Those that a full read or a watch has shown, and those in the status, which is written before a RayJob is made:
        there are no others, whatever event was lost.
        """
        name = body["metadata"]["name"]
        if not self._read:
            return self.cluster.rayjobs(name)
        known = [str(job["metadata"]["name"]) for job in self.seen.of(name)[1]]
        begun = [row.ray_job for row in status_of(body).stages if row.ray_job and row.state != "Finished"]
        found = [self.cluster.rayjob(job) for job in dict.fromkeys([*known, *begun])]
        return [job for job in found if job is not None]

    def _decide(self, body: Object, jobs: Iterable[Object], service: Object | None, memory: Memory,
                stop: tuple[str, str] | None = None) -> Decision:
        prepared = self._prepared(body, memory)
        plan, held = plan_of(body, prepared), dict[str, str]()
        if plan.problem is None and stop is None:
            try:
                while keys := [stage.key for stage in wanted(plan, memory.finished)]:
                    found = self.look_up(plan.store, keys)
                    finished = {key: item for key, item in found.items() if isinstance(item, Finished)}
                    held |= {key: item.words for key, item in found.items() if isinstance(item, Held)}
                    memory.finished |= finished
                    if not finished:
                        break
            except ArtifactError as error:
                stop = ("StoreUnreadable", str(error))
        there = None if service is None else service_of(service, body["metadata"]["uid"])
        readable = plan.problem is None and stop is None
        try:
            known = self.services.known(plan, there, memory.serving, readable=readable)
        except ArtifactError as error:
            stop = ("StoreUnreadable", str(error))
            known = self.services.known(plan, there, memory.serving, readable=False)
        now, losses = self.clock(), self.seen.losses(plan.name)
        seen = [with_losses(self._troubled(child_of(job, body["metadata"]["uid"]), plan.name, memory), losses, now)
                for job in jobs]
        decision = reconcile(plan, status_of(body), [child for child, _ in seen], memory.finished, now,
                             Hindrance(stop, memory.refused, held), there, known)
        wakes = [wake for wake in (decision.wake, *(wake for _, wake in seen)) if wake is not None]
        return dataclasses.replace(decision, wake=min(wakes, default=None))

    def _prepared(self, body: Object, memory: Memory) -> Prepared | Refused:
        metadata = body["metadata"]
        if (memory.uid, memory.generation) != (metadata["uid"], metadata["generation"]):
            memory.uid, memory.generation, memory.prepared = metadata["uid"], metadata["generation"], None
            memory.config_map, memory.refused, memory.finished, memory.serving = "", {}, {}, Recalled()
            memory.waits = REFUSED
        retry = annotation(body, RETRY)
        due = memory.again is not None and self.clock() >= memory.again
        if memory.prepared is None or due or (isinstance(memory.prepared, Refused) and retry != memory.retry):
            memory.retry, memory.again = retry, None
            files = (body["spec"].get("files") or {}).get("configMap")
            try:
                memory.prepared = self.prepare(body, self.cluster.config_map(files) if files else None)
            except Refused as error:
                memory.prepared = error
                if error.reason in MENDABLE:
                    memory.again = self.clock() + memory.waits
                    memory.waits = min(2 * memory.waits, REFUSED_MOST)
        return memory.prepared

    def _troubled(self, child: Child, run: str, memory: Memory) -> Child:
        """The child with the reason why its pods do not run, when it has waited for a while."""
        now = self.clock()
        if child.state != "pending" or not child.mine or now < seconds_of(child.started) + PATIENCE:
            memory.trouble.pop(child.name, None)
            return child
        asked, text = memory.trouble.get(child.name, (0.0, ""))
        if now >= asked + PATIENCE:
            text = self.trouble(run, child.stage, child.name)
            memory.trouble[child.name] = (now, text)
        return dataclasses.replace(child, trouble=text)

    def _create(self, body: Object, action: Create, memory: Memory) -> None:
        """Make a stage's RayJob, or remember why not."""
        prepared = memory.prepared
        assert isinstance(prepared, Prepared)
        name, owner = body["metadata"]["name"], owner_of(body)
        try:
            if not memory.config_map:
                memory.config_map = self._config_map(body, prepared, owner)
            manifest = ray_job(
                prepared.run, prepared.run.stage(action.stage), prepared.profile, namespace=self.namespace,
                name=action.name, config_map=memory.config_map, attempt=action.attempt, owner=owner)
            job = self.cluster.create_rayjob(manifest)
        except ClusterError as error:
            taken = self.cluster.rayjob(action.name) if error.status == 409 else None
            if taken is not None:
                self.seen.job(taken, run=name)
                return
            if not 400 <= error.status < 500:
                raise
            _log.warning("%s: RayJob %s is refused: %s", name, action.name, error)
            self.metrics.children.labels("refused").inc()
            memory.refused[action.name] = (self.clock() + REFUSED, f"the API server refuses the RayJob: {error}")
            return
        memory.refused.pop(action.name, None)
        self.seen.job(job)
        self.metrics.children.labels("created").inc()
        _log.info("%s: created RayJob %s", name, action.name)

    def _config_map(self, body: Object, prepared: Prepared, owner: dict[str, Any]) -> str:
        """The name of the ConfigMap with this very run, which the AlignmentRun owns from now on."""
        files = prepared.spec.files
        if prepared.as_sent and files is not None:
            found = {"apiVersion": "v1", "kind": "ConfigMap",
                     "metadata": {"name": files.config_map, "ownerReferences": [{**owner, "controller": False}]}}
        else:
            name = prepared.bundle.name_for(body["metadata"]["name"])
            found = config_map(prepared.bundle, name=name, namespace=self.namespace, owner=owner)
        return str(self.cluster.apply_config_map(found)["metadata"]["name"])
