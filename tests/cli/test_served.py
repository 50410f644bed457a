"""What a person reads of a run that is served: by `status`, `rollback` and `submit`. An AlignmentRun's status is the
operator's own, over a small cluster (operator_world); the commands see it through a small API server, and what they
write there the operator sees."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.artifacts import Store as RealStore
from alignment.cli.output import status_json
from alignment.cluster.manifests.alignment_run import KIND, SERVE, Status, status_of
from alignment.config import Run, load_profile, load_run
from alignment.config.yaml_text import dump
from alignment.pipeline.keys import keys
from tests.cli.conftest import Call
from tests.cluster.api_server import Api, Json, serving
from tests.cluster.kuberay import Controllers
from tests.cluster.operator_world import NAMESPACE, Store, World, calm, chain, operator, states, step, submit
from tests.cluster.test_operator_cluster import make

NAME = "chain"
WHERE = f"http://{NAME}-serve-svc.{NAMESPACE}.svc:8000/v1"
OPTIONS = ("run.yaml", "--profile", "cluster.yaml")


class Cluster:
    """An API server, and the operator over a small cluster, which takes up what commands write when a test lets it."""

    def __init__(self, api: Api, folder: Path) -> None:
        self.api, self.folder = api, folder
        self.world = World(Store(str(folder / "artifacts")))
        self.controller = operator(self.world)
        api.reacts = self._react

    @property
    def body(self) -> Json:
        found: Json = self.world.objects[KIND, NAME]
        return found

    @property
    def status(self) -> Status:
        return status_of(self.body)

    def begin(self, **serve: Any) -> Run:
        """A run of the file run.yaml, submitted and at rest."""
        run = written(self.folder, **serve)
        submit(self.world, run, load_profile("cluster.yaml"))
        self.settle()
        return run

    def settle(self, outcome: str = "well", **stages: str) -> None:
        """Bring what commands have written to its end: serving, and stages that do not go well."""
        here = self.api.objects.get((KIND, NAMESPACE, NAME))
        if here is not None:
            self._take(here)
        calm(self.world, self.controller, NAME, stages, serving=outcome)
        self.show()

    def look(self, times: int = 1) -> None:
        """Let the operator look, and nothing else happen."""
        for _ in range(times):
            self.controller.resync()
            self.controller.look(NAME)
        self.show()

    def edit(self, stage: str, **changes: Any) -> None:
        """As kubectl edit."""
        run = deepcopy(self.body["spec"]["run"])
        next(one for one in run["stages"] if one["name"] == stage).update(changes)
        self.world.edit(NAME, run=run)
        self.show(spec=deepcopy(self.body["spec"]))

    def show(self, **written: Any) -> None:
        """The API server has the status that the operator wrote; a spec is a person's to write."""
        with self.api.changed:
            here = self.api.objects.get((KIND, NAMESPACE, NAME))
            self.api.put({**deepcopy(self.body), "kind": KIND} if here is None else
                         {**here, "status": deepcopy(self.body.get("status", {})), **written})

    def _take(self, thing: Json) -> None:
        if (KIND, NAME) not in self.world.objects:
            self.world.put(KIND, {**deepcopy(thing), "status": {}})
            return
        self.body["spec"] = deepcopy(thing["spec"])
        self.body["metadata"]["annotations"] = deepcopy(thing["metadata"].get("annotations", {}))
        self.body["metadata"]["generation"] = thing["metadata"]["generation"]
        self.world._touch(self.body)

    def _react(self, thing: Json) -> None:
        if thing["kind"] == "ConfigMap" and ("ConfigMap", thing["metadata"]["name"]) not in self.world.objects:
            self.world.put("ConfigMap", deepcopy(thing))
        if thing["kind"] == "Job" and not thing.get("status"):
            self._looked(thing["metadata"]["name"])

    def _looked(self, job: str) -> None:
        """What `status --json` prints in a pod that has the storage."""
        run = load_profile("cluster.yaml").applied(load_run("run.yaml"))
        found = {name: RealStore(run.store).find(key.key) for name, key in keys(run).items()}
        printed = status_json(run, {name: one and one.manifest for name, one in found.items()}, {})
        Controllers(self.api, self.folder)._pod(job, printed, {"batch.kubernetes.io/job-name": job})
        self.api.status("Job", job, conditions=[{"type": "Complete", "status": "True"}])


def written(folder: Path, **serve: Any) -> Run:
    """run.yaml with `serve`."""
    run = chain(folder / "rows", serve={"models": ["sft", "dpo"], **serve})
    Path("run.yaml").write_text(dump(run.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    return run


@pytest.fixture
def cluster(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.delenv("KUBEALIGN_PROFILE", raising=False)
    storage = tmp_path / "artifacts"
    storage.mkdir()
    Path("cluster.yaml").write_text(yaml.safe_dump({"name": "mine", "cluster": {
        "keep_finished": 0, "storage": {"url": str(storage), "mount": str(storage), "claim": "artifacts"}}}))
    with serving(tmp_path) as (api, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield Cluster(api, tmp_path)


def told(call: Call) -> list[str]:
    """What `status` says of serving, from the line `serving: ...` on."""
    said = call("status", *OPTIONS)
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    return lines[next(number for number, line in enumerate(lines) if line.startswith("serving: ")):]


def rows(lines: list[str]) -> dict[str, list[str]]:
    """Cells of the table of models, by the model's name; the first is its heading."""
    start = next(number for number, line in enumerate(lines) if line.startswith("revision "))
    return {cells[0]: cells[1:] for line in lines[start:] if len(cells := re.split(r"\s{2,}", line.strip())) > 2}


# --- status --------------------------------------------------------------------------------------------------


def test_a_run_at_work_serves_nothing_and_says_what_it_waits_for(cluster: Cluster, call: Call) -> None:
    submit(cluster.world, written(cluster.folder), load_profile("cluster.yaml"))
    cluster.look(2)
    first, why = told(call)
    assert first == f"serving: Waiting, nothing answers at {WHERE}"
    assert why == "  the run has to succeed first; it is Running, 0/6 stages finished"


def test_what_is_served_is_told_with_its_proofs(cluster: Cluster, call: Call) -> None:
    cluster.begin()
    lines = told(call)
    known = {row.name: row.key for row in cluster.status.stages}
    assert lines[0] == f"serving: Ready, revision 1 answers (1 replica) at {WHERE}"
    assert rows(lines) == {"revision 1": ["artifact", "proof", "rows", "most off", "note"],
                           **{name: [known[name], "proved", "8", "1e-05"] for name in ("sft", "dpo")}}
    assert not any("rollback" in line for line in lines), "there is nothing to go back to"
    tree = json.loads(call("status", *OPTIONS, "--json").out)["serving"]
    assert (tree["state"], tree["revision"], tree["reason"], len(tree["models"])) == ("Ready", 1, "Proved", 2)


def test_one_that_answers_and_whose_proof_nobody_sees_is_not_called_ready(cluster: Cluster, call: Call) -> None:
    cluster.begin()
    cluster.world.store.proved.pop((NAME, 1, "dpo"))
    cluster.controller = operator(cluster.world)
    cluster.look()
    lines = told(call)
    assert lines[:2] == [f"serving: Proving, revision 1 answers (1 replica) at {WHERE}",
                         "  revision 1 answers, and no proof of dpo by its replicas is seen in the store yet"]
    assert rows(lines)["dpo"][1:] == ["no proof seen"]
    assert rows(lines)["sft"][1] == "proved"


def test_a_proof_that_failed_says_which_row_differs_and_that_the_old_revision_goes_on(
    cluster: Cluster, call: Call
) -> None:
    cluster.begin()
    cluster.edit("dpo", learning_rate=1e-4)
    calm(cluster.world, cluster.controller, NAME, serving="refuted")
    cluster.show()
    lines = told(call)
    sft = next(row.key for row in cluster.status.stages if row.name == "sft")
    assert lines[:2] == [
        f"serving: Failed, revision 1 answers (1 replica) at {WHERE}",
        f"  revision 2: sft ({sft}) is not what was recorded: row rows-r1: the prompt has other ids; revision 1 goes "
        "on serving"]
    assert rows(lines)["revision 2"][1] == "proof"
    assert rows(lines)["sft"][1:4] == ["NOT proved", "8", "1e-05"]
    assert "row rows-r1: the prompt has other ids" in rows(lines)["sft"][-1]
    assert lines[-2].startswith("other revisions: 1 (sft=")
    assert "not proved" not in lines[-2]
    assert lines[-1] == f"  kubealign rollback {NAME} -n {NAMESPACE} --to NUMBER"


def test_a_first_revision_that_failed_its_proof_answers_nobody(cluster: Cluster, call: Call) -> None:
    submit(cluster.world, written(cluster.folder), load_profile("cluster.yaml"))
    cluster.settle("refuted")
    lines = told(call)
    assert lines[0] == f"serving: Failed, nothing answers at {WHERE}"
    assert "is not what was recorded: row rows-r1" in lines[1]
    assert "goes on serving" not in lines[1]


def test_the_old_revision_answers_while_the_new_one_is_made_and_while_it_starts(cluster: Cluster, call: Call) -> None:
    cluster.begin()
    cluster.edit("dpo", learning_rate=1e-4)
    cluster.look(3)
    lines = told(call)
    assert lines[0] == f"serving: Ready, revision 1 answers (1 replica) at {WHERE}"
    assert lines[-1] == "the run is Running: models that become others are the next revision, once it has succeeded"
    while cluster.status.phase != "Succeeded":
        cluster.look()
        for job in cluster.world.jobs():
            step(cluster.world, job)
        cluster.world.now += 1
    cluster.world.come_up()
    cluster.look(3)
    lines = told(call)
    assert lines[:2] == [f"serving: Upgrading, revision 1 answers (1 replica) at {WHERE}",
                         "  revision 2 starts; revision 1 goes on serving"]
    assert [cells[1] for name, cells in rows(lines).items() if name != "revision 2"] == ["no proof seen"] * 2


def test_one_that_is_served_without_proof_says_that_nobody_asked_for_one(cluster: Cluster, call: Call) -> None:
    cluster.begin(unproved=True)
    cluster.world.store.proved.clear()
    cluster.controller = operator(cluster.world)
    cluster.look()
    assert rows(told(call))["sft"][1:] == ["none, as asked"]


def test_nothing_is_served_by_a_run_that_was_not_given_to_the_operator(cluster: Cluster, call: Call) -> None:
    run = written(cluster.folder)
    assert "nothing is served" not in call("status", *OPTIONS).out, "it is not made yet"
    applied = load_profile("cluster.yaml").applied(run)
    for stage, key in keys(applied).items():
        make(RealStore(applied.store), key.key, key.digest, stage)
    said = call("status", *OPTIONS).out
    assert "6 of 6 stages finished" in said
    assert said.splitlines()[-1] == ("nothing is served: submit it with --target run, or `kubealign serve` on a "
                                     f"machine that has {applied.store}")
    submit(cluster.world, run, load_profile("cluster.yaml"))
    cluster.show()
    assert call("status", *OPTIONS).out.splitlines()[-1] == "nothing is served yet: the operator has not looked at it"


def test_what_the_operator_says_is_told_where_kuberay_is_missing(cluster: Cluster, call: Call) -> None:
    cluster.begin()
    cluster.api.absent = {"ray.io"}
    assert told(call)[0].startswith("serving: Ready, revision 1 answers")


# --- rollback ------------------------------------------------------------------------------------------------


def test_a_rollback_says_what_it_asks_for_and_status_what_became_of_it(cluster: Cluster, call: Call) -> None:
    cluster.begin()
    cluster.edit("dpo", learning_rate=1e-4)
    cluster.settle()
    assert cluster.status.serving is not None
    one, two = ({f"{name}={key}" for name, key in kept.models.items()} for kept in cluster.status.serving.history)
    said = call("rollback", *OPTIONS)
    assert said.code == 0, said.err
    first, stays, again = said.out.splitlines()
    models = re.fullmatch(rf"run {NAME}: revision 1 is to be served \((.*)\); revision 2 answers until it is proved",
                          first)
    assert models is not None, first
    assert set(models[1].split(", ")) == one != two
    arguments = f"run.yaml --profile cluster.yaml -n {NAMESPACE}"
    assert stays == ("it stays over edits of the run; the newest again: "
                     f"kubealign rollback {arguments} --latest")
    assert again == f"  kubealign status {arguments}"
    cluster.settle()
    lines = told(call)
    assert lines[:2] == [f"serving: Ready, revision 1 answers (1 replica) at {WHERE}",
                         "  pinned to revision 1; the newest is 2"]
    assert lines[-1] == f"  kubealign rollback {NAME} -n {NAMESPACE} --to NUMBER or --latest"
    assert call("rollback", NAME, "--to", 1).out.splitlines()[0].endswith("; it answers already")
    assert call("rollback", NAME, "--latest").out == f"run {NAME}: the newest revision is served from now on\n"
    cluster.settle()
    assert told(call)[0].startswith("serving: Ready, revision 2 answers")


def test_a_rollback_that_is_asked_for_twice_is_the_same(cluster: Cluster, call: Call) -> None:
    cluster.begin()
    cluster.edit("dpo", learning_rate=1e-4)
    cluster.settle()
    for _ in range(2):  # the second time revision 1 is what is wanted, and 2 what answers still
        assert "revision 1 is to be served" in call("rollback", NAME).out
        cluster._take(cluster.api.objects[KIND, NAMESPACE, NAME])
        cluster.look(3)
        assert told(call)[0].startswith("serving: Upgrading, revision 2 answers")
    assert cluster.api.objects[KIND, NAMESPACE, NAME]["metadata"]["annotations"][SERVE] == "1"


def test_a_rollback_to_what_was_refuted_warns(cluster: Cluster, call: Call) -> None:
    cluster.begin()
    cluster.edit("dpo", learning_rate=1e-4)
    cluster.settle("refuted")
    said = call("rollback", NAME).out.splitlines()
    assert said[0].startswith(f"run {NAME}: revision 1 is to be served")
    assert said[0].endswith("; it answers already")
    for to in (("--to", 2), ("--latest",)):
        assert "! revision 2 did not prove its models before" in call("rollback", NAME, *to).out.splitlines()


def test_what_cannot_be_gone_back_to(cluster: Cluster, call: Call) -> None:
    none = call("rollback", NAME)
    assert none.code == 2
    assert "no AlignmentRun of this name" in none.err
    submit(cluster.world, written(cluster.folder), load_profile("cluster.yaml"))
    cluster.look(2)
    early = call("rollback", NAME)
    assert early.code == 2
    assert "nothing of this run was served yet" in early.err
    assert call("rollback", NAME, "--latest").out.splitlines()[-1] == "! nothing of it was served yet"
    cluster.settle()
    other = call("rollback", NAME, "--to", 7)
    assert other.code == 2
    assert "no such revision" in other.err
    assert "one of 1" in other.err
    assert call("rollback", NAME, "--to", 1, "--latest").code == 2


# --- submit ---------------------------------------------------------------------------------------------------


def test_submit_without_waiting_says_where_it_will_be(cluster: Cluster, call: Call) -> None:
    written(cluster.folder, unproved=True)
    said = call("submit", *OPTIONS, "--target", "run")
    assert said.out.splitlines()[-2] == f"its models are served, once they are loaded, at {WHERE} (inside the cluster)"


@contextmanager
def operating(cluster: Cluster, outcome: str = "well", **stages: str) -> Iterator[None]:
    """The operator takes up what commands write meanwhile, and brings each to its end."""
    over = threading.Event()
    failed: list[BaseException] = []

    def operate() -> None:
        seen = None
        while not over.wait(0.05):
            here = cluster.api.objects.get((KIND, NAMESPACE, NAME))
            asked = here and (deepcopy(here["spec"]), deepcopy(here["metadata"].get("annotations")))
            if asked and asked != seen:
                seen = asked
                try:
                    cluster.settle(outcome, **stages)
                except BaseException as error:
                    failed.append(error)
                    raise

    thread = threading.Thread(target=operate)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)
    assert not failed


def test_a_submit_that_waits_ends_once_the_models_are_proved_and_says_where_they_are(
    cluster: Cluster, call: Call
) -> None:
    written(cluster.folder)
    with operating(cluster):
        said = call("submit", *OPTIONS, "--target", "run", "--wait")
    assert said.code == 0, said.err
    assert said.out.splitlines() == [
        "every stage asked for is finished",
        f"  kubealign report {' '.join(OPTIONS)} -n {NAMESPACE}",
        f"revision 1 is served at {WHERE} (inside the cluster)"]
    progress = said.err.splitlines()
    assert [line for line in progress if line.startswith("+ ")][-1] == "+ serving revision 1"
    assert {line.split()[1] for line in progress if line.endswith(" finished")} == set(states(cluster.world, NAME))


def test_models_that_are_not_what_was_recorded_end_a_wait_and_a_resume_serves_them(
    cluster: Cluster, call: Call
) -> None:
    written(cluster.folder)
    with operating(cluster, "refuted"):
        said = call("submit", *OPTIONS, "--target", "run", "--wait")
    assert said.code == 2
    assert said.out == ""
    assert "the run has succeeded, and its models are not served" in said.err
    assert "is not what was recorded: row rows-r1: the prompt has other ids" in said.err
    assert "kubealign resume" in said.err
    with operating(cluster):
        said = call("resume", *OPTIONS, "--wait")
    assert said.code == 0, said.err
    assert said.out.splitlines()[-1].startswith("revision 1 is served at")


def test_a_stage_that_fails_ends_a_wait_before_anything_is_served(cluster: Cluster, call: Call) -> None:
    written(cluster.folder)
    with operating(cluster, sft="user"):
        said = call("submit", *OPTIONS, "--target", "run", "--wait")
    assert said.code == 2
    assert "the run is failed" in said.err
    assert "the split has no rows" in said.err
    assert "served" not in said.out + said.err
