"""A run that is served on a real cluster, as a user would have it: asked, made anew under load, rolled back.

What has to be there: tests/e2e/cluster_helpers.py. The tests share one namespace and stand in the order in which a user
would go. Two served Ray clusters stand side by side for a while: all pods together ask for 1.9 cores and 12 GiB.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import openai
import pytest
import yaml

from alignment.cluster.client.forward import forwarded
from alignment.cluster.client.refusals import ClusterError
from alignment.cluster.manifests.alignment_run import Status, status_of
from alignment.cluster.manifests.labels import COMPONENT_LABEL, REVISION_LABEL, RUN_LABEL
from alignment.cluster.manifests.store_job import store_job
from alignment.cluster.watch.wait import job_pod
from alignment.config import load_profile
from tests.e2e.cluster_helpers import ROOT, World, world
from tests.waiting import until

pytestmark = [pytest.mark.k8s, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]
KEY = secrets.token_hex(16)
RUN = "served.yaml"
LOAD = """
import http.client, json, os, sys, threading, time
host, model, clients, key = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
done, bad = [], []
body = json.dumps({"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "Which boat is red?"}]})
head = {"Content-Type": "application/json", "Authorization": "Bearer " + key}
def client(kept):
    held = None
    while True:
        try:
            held = held or http.client.HTTPConnection(host, 8000, timeout=120)
            held.request("POST", "/v1/chat/completions", body, head)
            answer = held.getresponse()
            said = answer.read()
            done.append(answer.status)
            if answer.status != 200:
                bad.append([answer.status, said.decode()[:300]])
            if not kept or answer.will_close:
                held.close()
                held = None
        except OSError as error:
            bad.append([0, repr(error)])
            held = None
            time.sleep(0.2)
for number in range(clients):
    threading.Thread(target=client, args=(number % 2 == 0,), daemon=True).start()
while True:
    time.sleep(2)
    print(json.dumps({"done": len(done), "bad": bad[:5], "failed": len(bad)}), flush=True)
"""
"""Every second client keeps its connection, the others open one for each question; prints its counts."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("served")) as made:
        made.client.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "kubealign-api-key"},
                            "stringData": {"KUBEALIGN_API_KEY": KEY}})

        def one_pod(tree: dict[str, Any]) -> None:
            tree["compute"]["workers"] = 0
            tree["cluster"]["stages"] = {}
            # Beside one served Ray cluster there is a stage, then another one, on two cores.
            tree["cluster"]["worker"] |= {"cpu": "700m", "memory": "3Gi"}
            tree["cluster"]["serve"]["head"]["cpu"] = "400m"
            tree["cluster"]["serve"]["worker"]["cpu"] = "450m"
            tree["cluster"]["serve"]["keep_old"] = 20

        made.write_profile("e2e", "s3", one_pod)
        _write(made, epochs=2)
        yield made


def _write(place: World, *, epochs: int) -> None:
    tree = yaml.safe_load((ROOT / "configs" / "runs" / "tiny.yaml").read_text(encoding="utf-8"))
    base, seed, sft = tree["stages"][:3]
    measured = {"name": "eval", "kind": "evaluate", "models": ["base", "sft"], "rows": "seed/test", "take": 8,
                "sampling": {"temperature": 0.0, "max_new_tokens": 8}}
    tree |= {"name": "served", "aims": [], "stages": [base, seed, {**sft, "epochs": epochs}, measured],
             "serve": {"models": ["base", "sft"]}}
    (place.folder / RUN).write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


def _submit(place: World) -> Status:
    done = place.kubealign("submit", RUN, "--target", "run", "--wait", seconds=1500)
    assert done.code == 0, f"{done}\n{place.pods()}"
    return status_of(place.client.get("AlignmentRun", "served"))


def _condition(status: Status, kind: str) -> tuple[str, str]:
    return next((part.status, part.reason) for part in status.conditions if part.type == kind)


def _replica(place: World, revision: int) -> str:
    """The pod of a revision that runs."""
    pods = place.client.list("Pod", {RUN_LABEL: "served", COMPONENT_LABEL: "serve", REVISION_LABEL: str(revision),
                                     "ray.io/node-type": "worker"})
    return str(next(pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]))


def _model(place: World, revision: int, name: str) -> str:
    """Key of the artifact that a revision serves under a name, as the server itself says."""
    with forwarded(place.client, _replica(place, revision), 8000) as port:
        asked = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=3)
        return str(next(model for model in asked.models.list() if model.id == name).model_extra["root"])


@contextmanager
def _load(place: World) -> Iterator[Callable[[], dict[str, Any]]]:
    """Clients in a pod of the namespace that is none of the project's, for one block; gives their last counts."""
    job = store_job(load_profile(str(place.folder / "e2e.yaml")), name="load", namespace=place.space,
                    args=["python", "-c", LOAD, f"served-serve-svc.{place.space}.svc", "sft", "4", KEY])
    job["spec"]["activeDeadlineSeconds"] = 1700
    job["spec"]["template"]["metadata"]["labels"] = {"app": "load"}
    (container,) = job["spec"]["template"]["spec"]["containers"]
    container["resources"]["requests"]["cpu"] = "50m"
    place.client.apply(job)
    try:
        until(lambda: job_pod(place.client, "load"), 60, "the clients' pod")
        pod = job_pod(place.client, "load")
        assert pod is not None

        def told() -> dict[str, Any]:
            with suppress(ClusterError):  # its container may not run yet
                lines = [line.partition(" ")[2] for line in place.client.log_lines(pod)]
                if lines:
                    return dict(json.loads(lines[-1]))
            return {"done": 0, "failed": 0}

        yield told
    finally:
        place.client.delete("Job", "load")


def test_a_run_is_ready_once_its_models_are_proved_and_answers_who_has_the_key(place: World) -> None:
    status = _submit(place)
    assert (status.phase, _condition(status, "Ready")[0], _condition(status, "Serving")[0]) == (
        "Succeeded", "True", "True")
    serving = status.serving
    assert serving is not None
    assert (serving.state, serving.revision, serving.replicas) == ("Ready", 1, 1)
    assert serving.endpoint == f"http://served-serve-svc.{place.space}.svc:8000/v1"
    assert {model.name: model.proved for model in serving.models} == {"base": True, "sft": True}
    shown = place.kubealign("status", RUN)
    assert serving.endpoint in shown.out, shown
    with forwarded(place.client, _replica(place, 1), 8000) as port:
        url = f"http://127.0.0.1:{port}/v1"
        said = openai.OpenAI(base_url=url, api_key=KEY).chat.completions.create(
            model="sft", max_tokens=4, messages=[{"role": "user", "content": "Which boat is red?"}])
        assert said.usage is not None
        assert said.usage.completion_tokens > 0
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="not-the-key").models.list()
    assert _model(place, 1, "sft") == {row.name: row.key for row in status.stages}["sft"]


def test_another_model_takes_over_without_a_failed_request_and_the_one_before_comes_back(place: World) -> None:
    with _load(place) as told:
        until(lambda: told()["done"] > 20, 120, "the clients are answered")
        _write(place, epochs=3)
        status = _submit(place)
        assert status.serving is not None
        assert (status.serving.state, status.serving.revision) == ("Ready", 2)
        assert _model(place, 2, "sft") == {row.name: row.key for row in status.stages}["sft"]
        gone = {RUN_LABEL: "served", COMPONENT_LABEL: "serve", REVISION_LABEL: "1"}
        until(lambda: not place.client.list("Pod", gone), 300, "the pods of the revision before go")
        back = place.kubealign("rollback", RUN)
        assert back.code == 0, back
        until(lambda: _serves(place, 1), 600, "revision 1 serves again")
        before = told()["done"]
        until(lambda: told()["done"] > before + 20, 120, "the clients are answered")
        last = told()
    assert last["failed"] == 0, last
    shown = place.kubealign("status", RUN)
    assert "pinned" in shown.out, shown


def _serves(place: World, revision: int) -> bool:
    serving = status_of(place.client.get("AlignmentRun", "served")).serving
    return serving is not None and (serving.state, serving.revision) == ("Ready", revision)
