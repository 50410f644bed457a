"""The operator against a real API server (KUBECONFIG): the definition applies, AlignmentRuns go in and come back, wrong
ones are refused, and the real operator process drives runs whose RayJobs a test moves on, killed in between.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Store
from alignment.artifacts.manifest import Manifest
from alignment.cluster.client.client import Client
from alignment.cluster.client.refusals import ClusterError
from alignment.cluster.manifests.alignment_run import KIND, Gate, spec_of, status_of
from alignment.cluster.manifests.bundle import bundle, config_map
from alignment.cluster.manifests.labels import STAGE_LABEL
from alignment.cluster.manifests.submission import alignment_run
from alignment.cluster.operator.crd import definition
from alignment.cluster.submit.to_operator import submit_run
from alignment.cluster.watch.voice import Voice
from alignment.config import load_profile, load_run
from alignment.pipeline.keys import keys
from tests.cluster.operator_world import chain, profile
from tests.waiting import gone, until

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.k8s,
    pytest.mark.skipif("KUBECONFIG" not in os.environ, reason="KUBECONFIG names no cluster"),
]
Object = dict[str, Any]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A namespace of its own on a cluster that has the definition and KubeRay's; what was not there goes again."""
    name = f"operator-{uuid.uuid4().hex[:8]}"
    client = Client(name)
    client.request("POST", "/api/v1/namespaces", {}, {"metadata": {"name": name}})
    crd = definition()
    there = client.find("CustomResourceDefinition", crd["metadata"]["name"])
    new = there is None
    applied = client.apply(crd, dry_run=not new)
    until(lambda: _served(client))
    if there is not None and there["spec"]["versions"] != applied["spec"]["versions"]:
        client.delete("Namespace", name)
        pytest.fail("the cluster has another version's definition of AlignmentRun: upgrade the chart there first")
    yield client
    client.delete("Namespace", name)
    if new:
        gone(client, "CustomResourceDefinition", crd["metadata"]["name"])


def _served(client: Client) -> bool:
    try:
        client.list(KIND)
    except ClusterError as error:
        if error.status != 404:
            raise
        return False
    return True


def tiny(client: Client, monkeypatch: pytest.MonkeyPatch) -> Object:
    monkeypatch.chdir(ROOT)
    run, of = load_run("configs/runs/tiny.yaml"), load_profile("s3")
    return alignment_run(run, of, bundle(run, of), namespace=client.namespace, config_map="files")


def test_an_alignmentrun_comes_back_as_it_was_sent(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = tiny(client, monkeypatch)
    sent = client.apply(manifest)
    assert sent["spec"] == manifest["spec"]  # nothing pruned, no default put in
    assert spec_of(client.get(KIND, "tiny")) == spec_of(manifest)
    assert sent["metadata"]["generation"] == 1
    client.delete(KIND, "tiny")


def test_a_gate_that_the_next_submit_leaves_out_is_gone(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    run, of, voice = load_run("configs/runs/tiny.yaml"), load_profile("s3"), Voice(print, print)
    submit_run(run, of, client, voice, gates=(Gate(after="sft", approval=True),))
    assert spec_of(client.get(KIND, "tiny")).gates == (Gate(after="sft", approval=True),)
    submit_run(run, of, client, voice)
    assert spec_of(client.get(KIND, "tiny")).gates == ()
    client.delete(KIND, "tiny")


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda m: m["metadata"].update(name="other"), "must be called as its run"),
    (lambda m: m["spec"].update(gates=[{"after": "nosuch", "approval": True}]), "does not have"),
    (lambda m: m["spec"].update(gates=[{"after": "sft"}]), "one of them"),
    (lambda m: m["spec"]["run"]["stages"][2].pop("method"), "has a method"),
    (lambda m: m["spec"]["run"]["stages"][2].update(learnig_rate=1), "learnig_rate"),
    (lambda m: m["spec"]["run"]["stages"].append(m["spec"]["run"]["stages"][0]), "uplicate"),
    (lambda m: m["spec"].update(retries=99), "retries"),
    (lambda m: m["spec"]["profile"]["cluster"]["worker"].update(memory="much"), "memory"),
])
def test_a_wrong_one_is_refused(client: Client, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Object], Any],
                                said: str) -> None:
    manifest = tiny(client, monkeypatch)
    spoil(manifest)
    with pytest.raises(ClusterError) as refused:
        client.apply(manifest, dry_run=True)
    assert said in str(refused.value)


# --- the operator itself ---


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def operator(client: Client, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The operator as its own process; gives it and the address of its metrics."""
    healthz, metrics = free_port(), free_port()
    command = [sys.executable, "-m", "alignment.cluster.operator", "--namespace", client.namespace,
               "--reads", str(log.parent), "--liveness", f"http://127.0.0.1:{healthz}/healthz",
               "--metrics-port", str(metrics)]
    with log.open("ab") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
    try:
        until(lambda: answer(f"http://127.0.0.1:{healthz}/healthz"), 30)
        yield process, f"http://127.0.0.1:{metrics}/metrics"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def answer(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return str(reply.read().decode())
    except OSError:
        return ""


def submitted(client: Client, folder: Path, name: str) -> tuple[str, dict[str, Any]]:
    """An AlignmentRun whose store is a folder of this machine; gives its name and its keys."""
    storage = {"url": str(folder / "store"), "claim": "none", "mount": str(folder)}
    of, run = profile(storage=storage, keep_finished=0), chain(folder, name=name)
    packed = bundle(run, of)
    files = f"{name}-{packed.digest[:8]}"
    client.apply(config_map(packed, name=files, namespace=client.namespace))
    # With a queue that nobody serves, KubeRay leaves the RayJobs alone.
    client.apply(alignment_run(run, of, packed, namespace=client.namespace, config_map=files, queue="nobody"))
    return name, keys(run)


def pods(client: Client, folder: Path, name: str, known: dict[str, Any]) -> list[str]:
    """What KubeRay and the pods would do, at once: make the artifact, report success. Returns the stages moved on."""
    moved = []
    for job in client.list("RayJob", {"kubealign.dev/run": name}):
        if job.get("status", {}).get("jobDeploymentStatus") == "Complete":
            continue
        stage = job["metadata"]["labels"][STAGE_LABEL]
        make(Store(str(folder / "store")), known[stage].key, known[stage].digest, stage)
        status = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED", "startTime": "2026-01-01T00:00:00Z",
                  "endTime": "2026-01-01T00:00:01Z"}
        client.request("PATCH", client.path("RayJob", job["metadata"]["name"]) + "/status", {}, {"status": status},
                       content_type="application/merge-patch+json")
        moved.append(stage)
    return moved


def make(store: Store, key: str, digest: str, stage: str) -> None:
    """A finished artifact without files."""
    if store.find(key) is not None:
        return
    folder = store.workdir(key) / "out"
    folder.mkdir(parents=True, exist_ok=True)
    made = Manifest(key=key, digest=digest, stage=stage, kind="train", config={}, inputs={}, files={},
                    metrics={"accuracy": 0.75}, started="2026-01-01T00:00:00Z", finished="2026-01-01T00:00:01Z",
                    seconds=1.0)
    with store.lease(key) as lease:
        store.publish(made, folder, lease)


def test_the_operator_brings_a_run_to_its_end_though_it_is_killed_again_and_again(
    client: Client, tmp_path: Path
) -> None:
    name, known = submitted(client, tmp_path, "killed")
    done: list[str] = []

    def over() -> bool:
        done.extend(pods(client, tmp_path, name, known))
        return status_of(client.get(KIND, name)).phase == "Succeeded"

    for patience in (0.5, 1.5, 2.5):
        with operator(client, tmp_path / "log"):
            time.sleep(patience)
            over()
    with operator(client, tmp_path / "log") as (_, metrics):
        until(over)
        assert 'kubealign_alignmentruns{phase="Succeeded"}' in until(
            lambda: (text := answer(metrics)) and "Succeeded" in text and text, 40)
        body = client.get(KIND, name)
        assert sorted(done) == sorted(known), "each stage once"
        assert "finalizers" not in body["metadata"]
        until(lambda: client.list("RayJob", {"kubealign.dev/run": name}) == [])
        reasons = {event["reason"] for event in client.events(KIND, name)}
        assert {"StageStarting", "StageFinished", "Succeeded"} <= reasons
    status = status_of(body)
    assert (status.finished, {row.tries for row in status.stages}) == ("6/6", {1})
    text = (tmp_path / "log").read_text()
    assert "Traceback" not in text, text


def test_deleting_a_run_takes_its_children_and_its_configmap_along(client: Client, tmp_path: Path) -> None:
    name, _ = submitted(client, tmp_path, "deleted")
    with operator(client, tmp_path / "log"):
        until(lambda: client.list("RayJob", {"kubealign.dev/run": name}))
        client.delete(KIND, name)
        until(lambda: not client.list("RayJob", {"kubealign.dev/run": name}), 90)
        until(lambda: not client.list("ConfigMap", {"kubealign.dev/run": name}), 90)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_two_runs_of_one_name_in_two_namespaces_share_what_they_make(client: Client, tmp_path: Path) -> None:
    other = Client(f"operator-{uuid.uuid4().hex[:8]}")
    other.request("POST", "/api/v1/namespaces", {}, {"metadata": {"name": other.namespace}})
    try:
        name, known = submitted(client, tmp_path, "twin")
        submitted(other, tmp_path, "twin")

        def over() -> bool:
            for one in (client, other):
                pods(one, tmp_path, name, known)
            return all(status_of(one.get(KIND, name)).phase == "Succeeded" for one in (client, other))

        with operator(client, tmp_path / "log"), operator(other, tmp_path / "log"):
            until(over, 120)
        rows = [status_of(one.get(KIND, name)).stages for one in (client, other)]
        assert [[row.digest for row in each] for each in rows] == [[key.digest for key in known.values()]] * 2
        assert {row.tries for each in rows for row in each} <= {0, 1}
        assert "Traceback" not in (tmp_path / "log").read_text()
    finally:
        other.delete("Namespace", other.namespace)
