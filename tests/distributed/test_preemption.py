"""SIGTERM to a training: it saves and says so, and the next start goes on from there, as if it had been left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.artifacts import Store
from alignment.cluster.manifests.pods import SAVE, SAVE_FIRST
from alignment.pipeline import execute, keys
from tests import small
from tests.matrix import cases

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
LORA = {"kind": "lora", "r": 4, "alpha": 8, "dropout": 0.0}
TWO = {"workers": 2, "dtype": "float32", "device": "cpu", "cpus_per_worker": 0.5}


def training(folder: Path, strategy: dict[str, Any] = LORA, epochs: int = 20, **top: Any) -> Any:
    """No checkpoint by itself before the end. Of three steps an epoch."""
    stage = small.train("sft", epochs=epochs, checkpoints={"every": 10_000}, micro_batch_size=4, strategy=strategy)
    return small.run(folder, stage, **top)


def started(run: Any, folder: Path, **environment: str) -> subprocess.Popen[str]:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(run.model_dump(mode="json", exclude_none=True), sort_keys=False), encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-m", "alignment.cli.main", "run", str(file)], text=True, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", **environment})


def wait_until_it_trains(work: Path, process: subprocess.Popen[str], steps: int = 3) -> None:
    until = time.monotonic() + 400
    events = work / "out" / "events.jsonl"
    while not events.exists() or len(events.read_text().splitlines()) < steps:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)


def saved_step(said: str) -> int:
    """From the last line."""
    *_, last = said.splitlines()
    assert last.startswith("terminated; step "), said
    assert last.endswith(" is saved, run it again to go on from there"), said
    return int(last.split()[2])


def alone(folder: Path, strategy: dict[str, Any] = LORA, epochs: int = 20) -> list[float]:
    """Losses of one process that is left alone."""
    return small.losses(execute(training(folder / "alone", strategy, epochs)).artifacts["sft"])


def test_a_training_in_one_process_saves_at_sigterm_and_goes_on(tmp_path: Path) -> None:
    run = training(tmp_path)
    work = Store(run.store).workdir(keys(run)["sft"].key)
    process = started(run, tmp_path)
    wait_until_it_trains(work, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    step = saved_step(said)
    assert (work / f"checkpoints/checkpoint-{step}/complete").exists()
    assert not (work / "lease.json").exists(), "given back"
    made = execute(run).artifacts["sft"]
    assert made is not None
    assert made.manifest.facts["timing"]["resumed_from_step"] == step
    assert small.losses(made) == alone(tmp_path)


@pytest.mark.ray
@pytest.mark.parametrize(("sharding", "strategy"), cases([("zero2", {"kind": "full"})], [("none", LORA)]))
def test_workers_save_for_a_pods_hook_and_for_their_driver(
    sharding: str, strategy: dict[str, Any], tmp_path: Path
) -> None:
    """The hook of a worker's pod waits until it is saved, and the training goes on; the driver's SIGTERM ends it."""
    # Long beside the second that a hook sleeps and the half that workers take to look.
    run = training(tmp_path, strategy, epochs=60, compute={**TWO, "sharding": sharding})
    work = Store(run.store).workdir(keys(run)["sft"].key)
    file = tmp_path / "save"
    process = started(run, tmp_path, KUBEALIGN_SAVE_FILE=str(file))
    hook = ["/bin/sh", "-c", SAVE_FIRST.replace(SAVE, str(file)).replace("/proc/1/", f"/proc/{process.pid}/")]
    wait_until_it_trains(work, process)
    subprocess.run(hook, check=True, timeout=60)
    (first,) = work.glob("checkpoints/checkpoint-*/complete")
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    step = saved_step(said)
    assert step > int(first.parent.name.rpartition("-")[2])
    checkpoint = work / f"checkpoints/checkpoint-{step}"
    assert (checkpoint / "complete").exists()
    assert json.loads((checkpoint / "shares.json").read_text())["workers"] == 2
    assert not (work / "lease.json").exists(), "given back"
    (*_, last) = sorted(int(file.parent.name.rpartition("-")[2]) for file in work.glob("checkpoints/*/complete"))
    assert last >= step, "workers go on until they are ended, and save their last step if they come to it"
    made = execute(run).artifacts["sft"]
    assert made is not None
    assert made.manifest.facts["timing"]["resumed_from_step"] == last
    assert small.losses(made) == pytest.approx(alone(tmp_path, strategy, epochs=60), rel=1e-3)
