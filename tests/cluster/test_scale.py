"""150 AlignmentRuns at once on a real API server (KUBECONFIG) with children that finish at once: how long the operator
takes, how large it grows and how much it asks. The figures go to benchmarks/out/operator.json.

The operator is a process of this machine; a thread of the test plays KubeRay and the pods. $KUBEALIGN_SCALE: how many;
500 take seven minutes on two busy cores.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from alignment.artifacts import Store
from alignment.cluster.client.client import Client
from alignment.cluster.manifests.alignment_run import KIND, status_of
from alignment.cluster.manifests.bundle import bundle, config_map
from alignment.cluster.manifests.labels import RUN_LABEL, STAGE_LABEL
from alignment.cluster.manifests.submission import alignment_run
from alignment.pipeline.keys import keys
from tests import small
from tests.cluster.operator_world import profile
from tests.cluster.test_operator_cluster import answer, client, make, operator
from tests.waiting import until

__all__ = ["client"]
OUT = Path(__file__).parents[2] / "benchmarks" / "out" / "operator.json"
RUNS = int(os.environ.get("KUBEALIGN_SCALE", "150"))
pytestmark = [
    pytest.mark.k8s, pytest.mark.slow, pytest.mark.timeout(1500),
    pytest.mark.skipif("KUBECONFIG" not in os.environ, reason="KUBECONFIG names no cluster"),
]


def submit(client: Client, folder: Path) -> dict[str, str]:
    """RUNS runs of two stages, each with a store of its own; gives stage -> key, the same for all."""
    run = small.run(folder)
    known = {name: key.key for name, key in keys(run).items()}
    for number in range(RUNS):
        name = f"run-{number}"
        storage = {"url": str(folder / name), "claim": "none", "mount": str(folder)}
        one, of = run.model_copy(update={"name": name}), profile(storage=storage, keep_finished=0)
        packed, files = bundle(one, of), f"{name}-files"
        client.apply(config_map(packed, name=files, namespace=client.namespace))
        # With a queue that nobody serves, KubeRay leaves the RayJobs alone.
        client.apply(alignment_run(one, of, packed, namespace=client.namespace, config_map=files, queue="nobody"))
    return known


@contextmanager
def instant_pods(space: str, folder: Path, known: dict[str, str]) -> Iterator[list[str]]:
    """Finish every RayJob as soon as it is seen; gives RUN/STAGE of those that were finished."""
    moved: list[str] = []
    stop, failed = threading.Event(), list[BaseException]()

    def play() -> None:
        client = Client(space)
        while not stop.wait(0.2):
            for job in client.list("RayJob", {"app.kubernetes.io/part-of": "kubealign"}):
                if job.get("status", {}).get("jobDeploymentStatus") == "Complete" or "deletionTimestamp" in job[
                        "metadata"]:
                    continue
                labels = job["metadata"]["labels"]
                run, stage = labels[RUN_LABEL], labels[STAGE_LABEL]
                key = known[stage]
                make(Store(str(folder / run)), key, "0" * 64, stage)
                status = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED",
                          "startTime": "2026-01-01T00:00:00Z", "endTime": "2026-01-01T00:00:01Z"}
                client.request("PATCH", client.path("RayJob", job["metadata"]["name"]) + "/status", {},
                               {"status": status}, content_type="application/merge-patch+json")
                moved.append(f"{run}/{stage}")

    def guarded() -> None:
        try:
            play()
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    try:
        yield moved
    finally:
        stop.set()
        thread.join(60)
        assert not failed, failed


def number(text: str, name: str) -> float:
    """The sum of a series over its labels."""
    found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


def test_many_runs_converge(client: Client, tmp_path: Path) -> None:
    known = submit(client, tmp_path)
    with instant_pods(client.namespace, tmp_path, known) as moved, operator(client, tmp_path / "log") as (_, metrics):
        began = time.monotonic()

        def over() -> bool:
            text = answer(metrics)
            phases = dict(re.findall(r'^kubealign_alignmentruns{phase="(\w+)"} (\S+)$', text, re.MULTILINE))
            return float(phases.get("Succeeded", 0)) == RUNS
        until(over, 1200)
        seconds = time.monotonic() - began
        text = answer(metrics)
    figures = {
        "runs": RUNS, "stages": len(known) * RUNS, "seconds": round(seconds, 1),
        "resident_mib": round(number(text, "process_resident_memory_bytes") / 2**20, 1),
        "api_calls_per_run": round(number(text, "kubealign_api_calls_total") / RUNS, 1),
        "cpu_seconds": round(number(text, "process_cpu_seconds_total"), 1),
        "looks_per_run": round(number(text, "kubealign_reconciles_total") / RUNS, 1),
        "errors": number("\n".join(line for line in text.splitlines() if 'outcome="error"' in line),
                         "kubealign_reconciles_total"),
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(figures)
    assert sorted(set(moved)) == sorted(f"run-{index}/{stage}" for index in range(RUNS) for stage in known)
    assert len(moved) == len(set(moved)), "a stage was made twice"
    ended = client.list(KIND)
    assert {status_of(body).finished for body in ended} == {f"{len(known)}/{len(known)}"}
    assert {row.tries for body in ended for row in status_of(body).stages} == {1}
    assert figures["errors"] == 0
    assert figures["resident_mib"] < 400, "the chart gives it 1 GiB, processes that read for it included"
    assert figures["api_calls_per_run"] < 20 * len(known)
