"""Whatever happens on the way (kills, lost events, failing replicas, edits, pins), what is served comes to be what is
wanted; the service is never deleted while it is wanted, and never applied twice for what it is of."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from alignment.cluster.client.refusals import ClusterError
from alignment.cluster.manifests.alignment_run import SERVE, status_of
from alignment.cluster.operator.services import BLOCKED_MOST
from alignment.cluster.operator.serving import KEPT
from alignment.pipeline.keys import keys
from tests.cluster.operator_world import (
    Crash,
    Store,
    World,
    calm,
    chain,
    operator,
    profile,
    revision_of,
    submit,
    told,
)

NAME = "chain"


class Recorded(World):
    """Checks the promises at every apply and every deletion."""

    def apply_rayservice(self, manifest: Any, uid: str | None) -> Any:
        here = self.objects.get(("RayService", NAME))
        if here is not None and here["metadata"]["uid"] == uid:
            same = all(here["metadata"]["annotations"][key] == value
                       for key, value in manifest["metadata"]["annotations"].items())
            assert not same, "applied, and nothing differs"
        finished = set(self.store.made)
        assert finished.issuperset(told(manifest)["models"].values()), "a model that is not made"
        return super().apply_rayservice(manifest, uid)

    def delete_rayservice(self, name: str, uid: str) -> None:
        body = self.objects.get(("AlignmentRun", NAME))
        assert body is not None
        assert not body["spec"]["run"].get("serve"), "deleted while it is wanted"
        super().delete_rayservice(name, uid)


class Served(RuleBasedStateMachine):
    """One served AlignmentRun, all of whose stages are made at once, its operator, and what gets between them."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.world = Recorded(Store())
        run = chain(Path(self.folder.name), serve={"models": ["sft"]})
        self._make(run)
        submit(self.world, run)
        self.controller = operator(self.world)

    def _make(self, run: Any) -> None:
        for key in keys(profile().applied(run)).values():
            self.world.store.finish(key.key, key.digest)

    # --- the operator and its watches ---

    @rule()
    def look(self) -> None:
        self._attempt(lambda: self.controller.look(NAME))

    @rule()
    def resync(self) -> None:
        self._attempt(self.controller.resync)

    @rule(fuse=st.integers(0, 5))
    def look_and_be_killed(self, fuse: int) -> None:
        self.world.fuse = fuse
        try:
            self.controller.resync()
            self.controller.look(NAME)
        except Crash:
            self.controller = operator(self.world)
        self.world.fuse = None

    @rule(gone=st.booleans())
    def hear(self, gone: bool) -> None:
        """The watch tells of the RayService, or of a deletion that never was."""
        here = self.world.objects.get(("RayService", NAME))
        if here is not None:
            self.controller.seen.service(copy.deepcopy(here), gone)

    def _attempt(self, what: Any) -> None:
        try:
            what()
        except ClusterError as error:
            if error.status not in (403, 404):
                raise

    # --- the cluster ---

    @rule(outcome=st.sampled_from(["well", "well", "refuted", "broken"]))
    def come_up(self, outcome: str) -> None:
        self.world.come_up(outcome)

    @rule()
    def lose_the_status(self) -> None:
        self.world.objects[("AlignmentRun", NAME)].pop("status", None)

    @rule()
    def lose_rayservices(self) -> None:
        self.world.rayservice_api = not self.world.rayservice_api

    @rule(seconds=st.sampled_from([1.0, 20.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds

    # --- people ---

    @rule(replicas=st.integers(1, 3))
    def edit(self, replicas: int) -> None:
        self._edit(serve={"models": {"sft": "sft"}, "replicas": replicas})

    @rule()
    def withdraw(self) -> None:
        self._edit(serve=None)

    @rule(suspend=st.booleans())
    def suspend(self, suspend: bool) -> None:
        self.world.edit(NAME, suspend=suspend)

    @rule(pin=st.sampled_from(["", "", "1", "2", "77"]))
    def pin(self, pin: str) -> None:
        self.world.annotate(NAME, SERVE, pin)

    def _edit(self, serve: Any) -> None:
        run = copy.deepcopy(self.world.objects[("AlignmentRun", NAME)]["spec"]["run"])
        self.world.edit(NAME, run={**run, "serve": serve})

    # --- what always holds ---

    @invariant()
    def numbers_are_of_one_thing_each(self) -> None:
        if hasattr(self, "world") and ("AlignmentRun", NAME) in self.world.objects:
            serving = status_of(self.world.objects[("AlignmentRun", NAME)]).serving
            numbers = [one.number for one in serving.history] if serving is not None else []
            assert numbers == sorted(set(numbers))
            assert len(numbers) <= KEPT + 2

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.rayservice_api = True
        self.world.edit(NAME, suspend=False)
        self.world.annotate(NAME, SERVE, "")
        self.edit(replicas=2)
        self.world.now += BLOCKED_MOST
        # A revision that failed stays as it is until somebody asks for another.
        calm(self.world, self.controller, NAME, steps=60)
        body, here = self.world.objects[("AlignmentRun", NAME)], self.world.objects[("RayService", NAME)]
        serving = status_of(body).serving
        assert serving is not None
        assert here["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["replicas"] == 2
        assert (serving.wanted, serving.pinned) == (revision_of(here), None)
        assert serving.state in ("Ready", "Failed")
        if serving.state == "Ready":
            assert serving.revision == serving.wanted
        self.folder.cleanup()


TestServed = Served.TestCase
TestServed.settings = settings(max_examples=15, stateful_step_count=25, deadline=None,
                               suppress_health_check=list(HealthCheck))
