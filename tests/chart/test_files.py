"""What the chart carries as files: the all-reduce of `helm test`, and the dashboard, whose numbers must exist."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignment.cluster.operator.metrics import Metrics
from tests.chart.rendered import CHART, of_set, one

ALL_REDUCE = CHART / "files" / "tests" / "all_reduce.py"


def test_two_processes_reduce() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    workers = [subprocess.Popen([sys.executable, ALL_REDUCE, address], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True, env={**os.environ, "JOB_COMPLETION_INDEX": str(rank)}) for rank in range(2)]
    try:
        ended = [worker.communicate(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], ended
    for rank, (out, _) in enumerate(ended):
        assert f"rank {rank} of 2" in out


def test_a_wrong_sum_fails() -> None:
    """A worker that joins with a third one's number: nobody may call that right."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    wrong = ("import torch, sys; from torch import distributed as d; "
             f"d.init_process_group('gloo', init_method='tcp://{address}', rank=1, world_size=2); "
             "d.all_reduce(torch.full((1 << 16,), 7.0)); d.destroy_process_group()")
    other = subprocess.Popen([sys.executable, "-c", wrong], stderr=subprocess.DEVNULL)
    try:
        done = subprocess.run([sys.executable, ALL_REDUCE, address], capture_output=True, text=True, timeout=120,
                              env={**os.environ, "JOB_COMPLETION_INDEX": "0"})
    finally:
        other.kill()
        other.wait()
    assert done.returncode != 0
    assert "rank 0 got [8.0], expected 3.0" in done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_two_ray_workers_reduce(tmp_path: Path) -> None:
    """As the RayCluster's job runs it, on a local cluster that ray.init() starts."""
    # Without an address Ray would join the cluster that was started last on this machine, by whichever test.
    done = subprocess.run([sys.executable, ALL_REDUCE, "ray"], capture_output=True, text=True, timeout=240,
                          cwd=tmp_path, env={**os.environ, "RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"rank 0 of 2 .*right\n(.*\n)*.*rank 1 of 2 .*right", done.stdout)


def test_the_script_in_the_cluster_is_the_file() -> None:
    for name in ("values.yaml", "values-dev.yaml"):
        data = one(of_set(name), "ConfigMap", "kubealign-tests")["data"]
        assert data["all_reduce.py"] == ALL_REDUCE.read_text(encoding="utf-8")


def _dashboard() -> dict[str, Any]:
    data = one(of_set("everything"), "ConfigMap", "kubealign-dashboard")["data"]
    made: dict[str, Any] = json.loads(data["kubealign.json"])
    return made


def test_every_number_of_the_dashboard_exists() -> None:
    asked = set(re.findall(r"\b(?:ray|kubealign)_[a-z_]+(?={)", json.dumps(
        [target["expr"] for panel in _dashboard()["panels"] for target in panel["targets"]])))
    registry = Metrics().registry
    gauges = {sample.name for family in registry.collect() for sample in family.samples}
    described = {family.name for family in registry.collect()}
    ours = gauges | described | {f"{name}_total" for name in described} | {f"{name}_bucket" for name in described}
    ray = importlib.util.find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    agent = Path(ray.origin).parent / "dashboard" / "modules" / "reporter" / "reporter_agent.py"
    gauge = re.compile(r'^    "(node_[a-z_]+)": Gauge', re.MULTILINE)
    theirs = {f"ray_{name}" for name in gauge.findall(agent.read_text(encoding="utf-8"))}
    assert len(asked) > 8
    assert asked <= ours | theirs


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in _dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
