"""kill -9 while publishing: a reader never sees half an artifact, whenever it looks and whenever the writer dies."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from alignment.artifacts import Store, sha256_of
from tests.artifacts.built import FILES

WRITER = """
import itertools, sys
sys.path.insert(0, sys.argv[2])
from tests.artifacts.built import publish
from alignment.artifacts import Store
store = Store(sys.argv[1])
print("ready", flush=True)
for number in itertools.count(int(sys.argv[3])):
    key = f"seed-{number:012d}"
    with store.lease(key) as lease:
        publish(store, key, lease)
        store.clear_work(key)
"""
KILLS = 12


def _whole(store: Store) -> int:
    """Check every visible artifact; returns how many there are."""
    folder = Path(store.root) / "artifacts"
    keys = [path.name for path in folder.iterdir()] if folder.exists() else []
    for key in keys:
        artifact = store.find(key)
        assert artifact is not None, f"{key} is visible without a manifest"
        assert set(artifact.manifest.files) == set(FILES)
        path = artifact.path()
        for name, entry in artifact.manifest.files.items():
            assert sha256_of(path / name) == entry.sha256
        assert {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()} == {*FILES, "manifest.json"}
    return len(keys)


def test_killed_writers_leave_whole_artifacts_or_none(tmp_path: Path) -> None:
    store, dice, seen = Store(str(tmp_path / "store")), random.Random(5), 0
    died_at_work = 0
    for attempt in range(KILLS):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, store.url, str(Path(__file__).parents[2]), str(attempt * 100_000)],
            stdout=subprocess.PIPE, text=True,
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        until = time.monotonic() + dice.uniform(0.0, 0.12)
        while time.monotonic() < until:
            seen = max(seen, _whole(store))
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        work = Path(store.root) / "work"
        died_at_work += any(work.iterdir()) if work.exists() else 0
        seen = _whole(store)
    assert seen > KILLS, "the writers published while they lived"
    assert died_at_work > 0, "some writer was killed in the middle of its work"


def test_work_of_a_killed_writer_is_taken_up_and_published(tmp_path: Path) -> None:
    store, key = Store(str(tmp_path / "store")), "seed-000000000000"
    stuck = subprocess.Popen([sys.executable, "-c", (
        "import sys, time\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from tests.artifacts.built import fill\n"
        "from alignment.artifacts import Store\n"
        "store = Store(sys.argv[1])\n"
        "with store.lease(sys.argv[3]):\n"
        "    fill(store.workdir(sys.argv[3]) / 'out')\n"
        "    print('holding', flush=True)\n"
        "    time.sleep(600)\n"
    ), store.url, str(Path(__file__).parents[2]), key], stdout=subprocess.PIPE, text=True)
    assert stuck.stdout is not None
    assert stuck.stdout.readline() == "holding\n"
    stuck.kill()
    stuck.wait()
    stuck.stdout.close()
    assert store.find(key) is None
    began = time.monotonic()
    with store.lease(key, ttl=600) as lease:
        assert lease.held
        assert time.monotonic() - began < 5, "a holder of this machine that is gone is not waited for"
        from tests.artifacts.built import publish
        publish(store, key, lease)
    assert _whole(store) == 1
