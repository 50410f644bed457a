"""Runs killed with SIGKILL at random points, and two runs at once: the results are those of one left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from alignment.artifacts import Manifest, sha256_of
from alignment.config import Run
from tests import small

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def chain(folder: Path) -> Run:
    """Training long enough to be hit, with dropout, so that random states count."""
    lora = {"kind": "lora", "r": 4, "alpha": 8, "dropout": 0.1}
    options = {"strategy": lora, "epochs": 12, "batch_size": 4, "micro_batch_size": 2, "checkpoints": {"every": 3}}
    return small.run(
        folder,
        small.train("sft", eval_rows="data/dev", **options),
        small.train("rm", "reward", "sft", **{**options, "epochs": 2}),
        {"name": "rs", "kind": "sample", "model": "sft", "prompts": ["data/train"], "n": 3, "batch_size": 4,
         "sampling": {"temperature": [0.8, 1.2], "max_new_tokens": 8}, "score": {"model": "rm"}},
        small.train("dpo", "dpo", "sft", **options),
        {"name": "eval", "kind": "evaluate", "models": ["base", "dpo"], "rows": "data/test", "score": {"model": "rm"},
         "sampling": {"temperature": 0.0, "max_new_tokens": 8}, "bootstrap": 100},
    )


def start(run: Run, folder: Path) -> subprocess.Popen[bytes]:
    """The run as a process group of its own, as the CLI would be started."""
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(run.model_dump(mode="json", exclude_none=True), sort_keys=False), encoding="utf-8")
    log = (folder / "log").open("ab")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "alignment.cli.main", "run", str(file)], stdout=log, stderr=log,
                            start_new_session=True, env=environment)


def visible(run: Run) -> dict[str, Manifest]:
    """Finished artifacts by stage; fails when one of them is not whole."""
    found = {}
    for folder in Path(run.store, "artifacts").glob("*"):
        manifest = Manifest.model_validate_json((folder / "manifest.json").read_text(encoding="utf-8"))
        for name, entry in manifest.files.items():
            assert sha256_of(folder / name) == entry.sha256, f"{folder.name}/{name} is not what its manifest says"
        found[manifest.stage] = manifest
    return found


def result(run: Run) -> dict[str, object]:
    """What must not depend on kills: keys, metrics, row counts, and every file but those that hold times. An adapter's
    config says where its base lies."""
    return {
        stage: (m.key, m.metrics, m.rows.model_dump(),
                {name: _placeless(run, m.key, name) if name.endswith("adapter_config.json") else entry.sha256
                 for name, entry in m.files.items()
                 if name not in ("events.jsonl", "training.json", "results.json")})
        for stage, m in visible(run).items()
    }


def _placeless(run: Run, key: str, name: str) -> dict[str, object]:
    config = json.loads(Path(run.store, "artifacts", key, name).read_text(encoding="utf-8"))
    assert str(run.store) in config.pop("base_model_name_or_path")
    return config


def curve(run: Run, stage: str) -> list[dict[str, object]]:
    folder = Path(run.store, "artifacts", visible(run)[stage].key)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in event.items() if k != "time"} for event in events if event["event"] in ("train", "eval")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("alone")
    run = chain(folder)
    assert start(run, folder).wait(timeout=500) == 0, (folder / "log").read_text()
    assert set(visible(run)) == {stage.name for stage in run.stages}
    return run


@pytest.mark.timeout(1500)
def test_killed_at_random_points(alone: Run, tmp_path: Path) -> None:
    run, chance = chain(tmp_path), random.Random(os.environ.get("KUBEALIGN_TEST_SEED", "11"))
    kills = 0
    while kills < 3:
        process = start(run, tmp_path)
        deadline = time.monotonic() + 300
        # Start-up is the same each time and teaches nothing, so wait for the run to touch something first.
        before = snapshot(run)
        while snapshot(run) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 6))
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        visible(run)
    assert start(run, tmp_path).wait(timeout=500) == 0, (tmp_path / "log").read_text()
    assert kills > 0
    assert result(run) == result(alone)
    for stage in ("sft", "rm", "dpo"):
        assert curve(run, stage) == curve(alone, stage)


def snapshot(run: Run) -> set[tuple[str, int]]:
    """Checkpoints, parts and artifacts that exist, with their times."""
    root = Path(run.store)
    seen = set()
    for pattern in ("artifacts/*", "work/*/checkpoints/*", "work/*/parts/*", "work/*/answers-*/*"):
        for path in root.glob(pattern):
            try:
                seen.add((str(path), path.stat().st_mtime_ns))
            except FileNotFoundError:
                continue
    return seen


@pytest.mark.timeout(900)
def test_two_at_once_make_each_stage_once(alone: Run, tmp_path: Path) -> None:
    run = chain(tmp_path)
    processes = [start(run, tmp_path) for _ in range(2)]
    assert [process.wait(timeout=800) for process in processes] == [0, 0], (tmp_path / "log").read_text()
    log = (tmp_path / "log").read_text(encoding="utf-8")
    for stage in run.stages:
        made = [line for line in log.splitlines() if line.startswith(f"+ {stage.name} ")]
        assert len(made) == 1, f"{stage.name} was made {len(made)} times"
    assert result(run) == result(alone)
