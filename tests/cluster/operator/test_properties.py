"""Whatever happens on the way (kills, lost and doubled events, failures, people), a run ends as one left alone."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from alignment.cluster.client.refusals import ClusterError, cluster_error
from alignment.cluster.manifests.alignment_run import APPROVE, Gate, status_of
from alignment.cluster.manifests.labels import RUN_LABEL, STAGE_LABEL
from tests.cluster.operator_world import (
    Crash,
    Store,
    World,
    calm,
    chain,
    key_of,
    keys_of,
    operator,
    states,
    step,
    submit,
)

RETRIES = 3
BOUND = 0.6
GATES = (Gate(after="rm", metric=f"rm.accuracy >= {BOUND}"), Gate(after="dpo", approval=True))


class Recorded(World):
    """Checks the promises at every creation, whatever led to it."""

    parallel = 1

    def create_rayjob(self, manifest: Any) -> Any:
        labels, name = manifest["metadata"]["labels"], manifest["metadata"]["name"]
        stage, live = labels[STAGE_LABEL], [job for job in self.live() if job["metadata"]["name"] != name]
        assert stage not in [job["metadata"]["labels"][STAGE_LABEL] for job in live], f"two live children for {stage}"
        assert len(live) < self.parallel, "more at once than asked for"
        key, _ = key_of(self, manifest)
        assert key not in self.store.made, f"{stage} is finished and would be run again"
        body = self.objects[("AlignmentRun", labels[RUN_LABEL])]
        row = next(row for row in status_of(body).stages if row.name == stage)
        assert row.failures or key not in self.store.held, f"pods for {stage}, which another run makes"
        known = keys_of(self, manifest)
        finished = {name for name, key in known.items() if key.key in self.store.made}
        if stage in ("dpo", "eval"):
            assert "rm" in finished, "past a gate that nothing says is met"
            assert self.store.made[known["rm"].key].metrics["accuracy"] >= BOUND, "past a gate that is not met"
        if stage == "eval":
            assert "dpo" in body["metadata"].get("annotations", {}).get(APPROVE, ""), "past a gate nobody approved"
        assert finished.issuperset({"sft": ["base", "data"], "rm": ["sft"], "dpo": ["sft"], "eval": ["dpo"]}.get(
            stage, [])), f"{stage} before its inputs"
        return super().create_rayjob(manifest)


class Operated(RuleBasedStateMachine):
    """One AlignmentRun, its operator, and everything that gets between them."""

    @initialize(parallel=st.sampled_from([1, 2]), broken=st.sampled_from(["", "", "dpo", "rm"]),
                accuracy=st.sampled_from([0.7, 0.7, 0.5]), rounds=st.integers(0, 14))
    def begin(self, parallel: int, broken: str, accuracy: float, rounds: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.options = {"parallel": parallel, "retries": RETRIES, "gates": GATES}
        self.outcome = {broken: "user"} if broken else {}
        self.metrics = {"rm": {"accuracy": accuracy}}
        self.world = Recorded(Store())
        self.world.parallel = parallel
        self.name = submit(self.world, chain(Path(self.folder.name)), **self.options)
        self.controller = operator(self.world)
        self.old_events: list[tuple[str, Any, bool]] = []
        self.harm: dict[str, int] = {}
        self.elsewhere = Store()
        self.stops = 0
        for _ in range(rounds):
            self.go_on()

    @rule()
    def go_on(self) -> None:
        """A quiet moment: everything that moves moves by one."""
        self.resync()
        self.look()
        for job in self.world.jobs():
            self._step(job)

    # --- the operator ---

    @rule()
    def look(self) -> None:
        self._attempt(lambda: self.controller.look(self.name))

    @rule()
    def resync(self) -> None:
        self._attempt(self.controller.resync)

    @rule(fuse=st.integers(0, 6))
    def look_and_be_killed(self, fuse: int) -> None:
        self.world.fuse = fuse
        try:
            self.controller.resync()
            self.controller.look(self.name)
        except Crash:
            self.controller = operator(self.world)
        self.world.fuse = None

    @rule()
    def restart(self) -> None:
        self.controller = operator(self.world)

    @rule()
    def be_cut_off(self) -> None:
        away = copy.copy(self.world)

        def silent(*_: Any, **__: Any) -> Any:
            raise cluster_error("the API server does not answer", 0)

        for request in ("run", "runs", "rayjobs", "create_rayjob", "apply_status", "config_map"):
            setattr(away, request, silent)
        self.controller.cluster = away
        self._attempt(lambda: self.controller.look(self.name), status=0)
        self.controller.cluster = self.world

    def _attempt(self, what: Any, status: int = 403) -> None:
        try:
            what()
        except ClusterError as error:
            if error.status != status:
                raise

    # --- watches ---

    @rule(data=st.data())
    def hear(self, data: st.DataObject) -> None:
        """Some of what is there arrives, once or twice; the rest is lost."""
        things = [("run", body, False) for body in self.world.runs()]
        things += [("job", job, False) for job in self.world.rayjobs()]
        for event in data.draw(st.lists(st.sampled_from(things), max_size=4)):
            self._tell(event)
            self.old_events.append(event)

    @precondition(lambda self: self.old_events)
    @rule(data=st.data(), gone=st.booleans())
    def hear_late(self, data: st.DataObject, gone: bool) -> None:
        """An old event arrives now, or a deletion that is long undone."""
        kind, thing, _ = data.draw(st.sampled_from(self.old_events))
        self._tell((kind, thing, gone and kind == "job"))

    def _tell(self, event: tuple[str, Any, bool]) -> None:
        kind, thing, gone = event
        (self.controller.seen.run if kind == "run" else self.controller.seen.job)(copy.deepcopy(thing), gone)

    # --- RayJobs ---

    @precondition(lambda self: self.world.jobs())
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.world.jobs()))
        self._step(job)

    def _step(self, job: Any) -> None:
        stage = job["metadata"]["labels"][STAGE_LABEL]
        step(self.world, job, self.outcome.get(stage, "well"), **self.metrics.get(stage, {}))

    @precondition(lambda self: self.world.live())
    @rule(data=st.data(), how=st.sampled_from(["fail", "nothing", "vanish"]))
    def harm_one(self, data: st.DataObject, how: str) -> None:
        """The cluster fails a stage: its node dies, its manifest is missing, somebody deletes its RayJob."""
        job = data.draw(st.sampled_from(self.world.live()))
        key, _ = key_of(self.world, job)
        if self.harm.get(key, 0) >= RETRIES or key in self.world.store.made:
            return
        self.harm[key] = self.harm.get(key, 0) + 1
        if how == "vanish":
            self.world.vanish(job)
        elif "deletionTimestamp" not in job["metadata"]:
            self.world.move(job, "Running", "RUNNING")
            step(self.world, job, how)

    @rule(stage=st.sampled_from(["base", "sft", "rm", "dpo"]))
    def finish_elsewhere(self, stage: str) -> None:
        """Another run, or a laptop, makes the very same stage into the same store."""
        for row in status_of(self.world.objects[("AlignmentRun", self.name)]).stages:
            if row.name == stage and stage not in self.outcome:
                for store in (self.world.store, self.elsewhere):
                    store.finish(row.key, "0" * 64, **self.metrics.get(stage, {}))

    @rule(stage=st.sampled_from(["base", "sft", "rm", "dpo"]), alive=st.booleans())
    def be_held_elsewhere(self, stage: str, alive: bool) -> None:
        """Another run is at the very same stage, or was killed while it was and has left its lease."""
        for row in status_of(self.world.objects[("AlignmentRun", self.name)]).stages:
            if row.name == stage and row.key not in self.world.store.made:
                self.stops += alive
                self.world.store.held[row.key] = alive

    @precondition(lambda self: self.world.store.held)
    @rule(data=st.data())
    def be_let_go(self, data: st.DataObject) -> None:
        """The other run was stopped and has given the lease back, or the dead one's has lapsed."""
        del self.world.store.held[data.draw(st.sampled_from(sorted(self.world.store.held)))]

    @rule()
    def lose_the_status(self) -> None:
        """A backup without statuses is played back."""
        self.stops += 1
        self.world.objects[("AlignmentRun", self.name)].pop("status", None)

    @rule(seconds=st.sampled_from([1.0, 11.0, 40.0, 700.0]))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds

    @rule()
    def refuse(self) -> None:
        self.world.refuse = not self.world.refuse

    # --- people ---

    @rule(suspend=st.booleans())
    def suspend(self, suspend: bool) -> None:
        self.stops += 1
        self.world.edit(self.name, suspend=suspend)

    @rule()
    def approve(self) -> None:
        self.world.annotate(self.name, APPROVE, "sft, dpo")

    @rule(rate=st.sampled_from([5e-3, 1e-3]))
    def change_a_stage(self, rate: float) -> None:
        """Another learning rate for dpo: it and eval get other keys, the others keep theirs."""
        run = copy.deepcopy(self.world.objects[("AlignmentRun", self.name)]["spec"]["run"])
        next(stage for stage in run["stages"] if stage["name"] == "dpo")["learning_rate"] = rate
        self.stops += 1
        self.world.edit(self.name, run=run)

    @rule()
    def spoil_and_mend(self) -> None:
        """An edit that does not parse, seen by the operator, then taken back."""
        good = copy.deepcopy(self.world.objects[("AlignmentRun", self.name)]["spec"]["run"])
        before = {job["metadata"]["name"] for job in self.world.jobs()}
        self.world.edit(self.name, run={**good, "stages": []})
        self._attempt(self.controller.resync)
        self._attempt(lambda: self.controller.look(self.name))
        assert {job["metadata"]["name"] for job in self.world.jobs()} == before
        self.stops += 1
        self.world.edit(self.name, run=good)

    # --- what always holds ---

    @invariant()
    def attempts_are_bounded(self) -> None:
        if not hasattr(self, "world"):
            return
        made: dict[str, int] = {}
        for what, name in self.world.log:
            if what == "create":
                stem = name.rpartition("-")[0]
                made[stem] = made.get(stem, 0) + 1
        bound = 1 + RETRIES + self.stops
        assert all(count <= bound for count in made.values()), made

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.refuse = False
        self.world.store.held.clear()
        self.world.edit(self.name, suspend=False)
        self.world.annotate(self.name, APPROVE, "dpo")
        calm(self.world, self.controller, self.name, self.outcome, self.metrics)
        alone = World(self.elsewhere)
        submit(alone, chain(Path(self.folder.name)), **self.options)
        alone.edit(self.name, run=self.world.objects[("AlignmentRun", self.name)]["spec"]["run"])
        alone.annotate(self.name, APPROVE, "dpo")
        calm(alone, operator(alone), self.name, self.outcome, self.metrics)
        assert states(self.world, self.name) == states(alone, self.name)
        ours, theirs = (status_of(world.objects[("AlignmentRun", self.name)]) for world in (self.world, alone))
        assert (ours.phase, ours.finished, ours.stage) == (theirs.phase, theirs.finished, theirs.stage)
        broken = self.outcome or self.metrics["rm"]["accuracy"] < BOUND
        assert ours.phase == ("Failed" if broken else "Succeeded")
        assert self.world.live() == []
        self.folder.cleanup()


TestOperated = Operated.TestCase
TestOperated.settings = settings(max_examples=30, stateful_step_count=30, deadline=None,
                                 suppress_health_check=list(HealthCheck))
