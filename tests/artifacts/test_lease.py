"""The lease: one writer at a time, over at once when its holder is dead, noticed when it is lost."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from alignment import progress
from alignment.artifacts import Store
from alignment.artifacts.lease import Lease, MadeElsewhere
from alignment.errors import ArtifactError
from tests.artifacts.built import publish

KEY = "seed-0123456789ab"
WORKER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from tests.artifacts.built import publish
from alignment.artifacts import Store
store, key = Store(sys.argv[1]), sys.argv[3]
with store.lease(key, poll=0.05, waiting=lambda sentence: print("waits", flush=True)) as lease:
    if lease.held:
        print("works", flush=True)
        time.sleep(0.7)
        publish(store, key, lease)
        store.clear_work(key)
print("ends", flush=True)
"""


def _lease_file(store: Store) -> Path:
    return Path(store.root) / "work" / KEY / "lease.json"


def _write(store: Store, **changes: object) -> None:
    """A lease that somebody else holds."""
    path = _lease_file(store)
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = {"token": "other", "beat": 1.0, "pid": 1, "boot": "another machine", "start": "1", "since": "then"}
    path.write_text(json.dumps({**holder, **changes}))


def test_of_two_processes_one_does_the_work(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    command = [sys.executable, "-c", WORKER, store.url, str(Path(__file__).parents[2]), KEY]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("works" in words for words in said) == 1, said
    assert all(words[-1] == "ends" for words in said)
    assert store.find(KEY) is not None
    assert not _lease_file(store).exists()


def test_of_many_that_create_it_at_once_one_has_it(tmp_path: Path) -> None:
    for again in range(20):
        store, gate = Store(str(tmp_path / str(again))), threading.Barrier(8)
        leases = [store.lease(KEY) for _ in range(8)]

        def create(lease: Lease, gate: threading.Barrier = gate) -> bool:
            gate.wait()
            return lease._create()

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(create, leases)) == 1


def test_a_living_holder_is_waited_for_and_named(tmp_path: Path) -> None:
    store, said = Store(str(tmp_path)), list[str]()
    with store.lease(KEY, poll=0.05) as first:
        assert first.held
        second = threading.Thread(target=lambda: store.lease(KEY, poll=0.05, waiting=said.append).__enter__())
        second.start()
        time.sleep(0.3)
        assert second.is_alive(), "the second writer waits"
        publish(store, KEY, first)
        second.join(timeout=10)
    assert not second.is_alive()
    assert len(said) == 1
    assert "pid" in said[0]


def test_a_finished_artifact_needs_no_lease(store: Store) -> None:
    with store.lease(KEY) as lease:
        publish(store, KEY, lease)
    with store.lease(KEY) as lease:
        assert not lease.held


def test_a_dead_holder_of_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    from alignment.artifacts import lease as module

    store = Store(str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    _write(store, pid=process.pid, boot=module._boot_id(), start="12345")
    began = time.monotonic()
    with store.lease(KEY, ttl=600, poll=0.05) as lease:
        assert lease.held
    assert time.monotonic() - began < 5


def test_a_reused_pid_is_not_taken_for_the_holder(tmp_path: Path) -> None:
    from alignment.artifacts import lease as module

    store = Store(str(tmp_path))
    _write(store, pid=1, boot=module._boot_id(), start="999999999999")
    with store.lease(KEY, ttl=600, poll=0.05) as lease:
        assert lease.held


def test_a_stale_lease_of_another_machine_waits_out_its_ttl(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    _write(store)
    began = time.monotonic()
    with store.lease(KEY, ttl=0.8, poll=0.05) as lease:
        assert lease.held
    assert time.monotonic() - began >= 0.8


def test_a_holder_that_renews_is_never_stale(tmp_path: Path) -> None:
    store, stop = Store(str(tmp_path)), threading.Event()
    _write(store)

    def beat() -> None:
        number = 2.0
        while not stop.wait(0.1):
            number += 1
            _write(store, beat=number)

    renewing = threading.Thread(target=beat)
    renewing.start()
    entered = threading.Event()

    def wait() -> None:
        with store.lease(KEY, ttl=0.8, poll=0.05):
            entered.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    try:
        assert not entered.wait(2.0), "three times the ttl, and the holder was alive all the while"
    finally:
        stop.set()
        renewing.join()
    assert entered.wait(5.0)
    waiting.join()


def test_the_lease_is_renewed_while_it_is_held(store: Store) -> None:
    with store.lease(KEY, ttl=0.6) as lease:
        first = json.loads(store.fs.cat_file(lease.path))
        time.sleep(0.5)
        second = json.loads(store.fs.cat_file(lease.path))
    assert second["beat"] > first["beat"]
    assert second["token"] == first["token"]
    assert not store.fs.exists(lease.path), "given back"


def test_a_lost_lease_refuses_to_publish(store: Store) -> None:
    with store.lease(KEY) as lease:
        store.fs.pipe_file(lease.path, json.dumps({"token": "other"}).encode())
        with pytest.raises(ArtifactError, match="lost to another writer"):
            publish(store, KEY, lease)
    assert store.find(KEY) is None
    assert json.loads(store.fs.cat_file(lease.path)) == {"token": "other"}, "the other one's lease is left alone"


def test_of_many_that_take_over_one_holds(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    _write(store)
    working, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal working, most
        with store.lease(KEY, ttl=0.3, poll=0.05) as lease:
            if not lease.held:
                return
            with lock:
                working += 1
                most = max(most, working)
            time.sleep(0.2)
            publish(store, KEY, lease)
            with lock:
                working -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert most == 1
    assert store.find(KEY) is not None


def test_a_half_written_lease_is_waited_for(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    path = _lease_file(store)
    path.parent.mkdir(parents=True)
    path.write_text('{"token": "oth')
    began = time.monotonic()
    with store.lease(KEY, ttl=0.5, poll=0.05) as lease:
        assert lease.held
    assert time.monotonic() - began >= 0.5


def test_who_waits_is_told_again_and_for_how_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.2)
    store, said = Store(str(tmp_path)), list[str]()
    with store.lease(KEY):
        second = threading.Thread(target=lambda: store.lease(KEY, poll=0.05, waiting=said.append).__enter__())
        second.start()
        deadline = time.monotonic() + 10
        while len(said) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
    second.join()
    assert "so far" not in said[0]
    assert all("waiting for its result (" in sentence and "s so far)" in sentence for sentence in said[1:3])


def test_who_gives_way_does_so_when_the_holder_is_seen_alive(store: Store) -> None:
    with store.lease(KEY, by="run one, stage sft", ttl=1.2) as first:
        began = time.monotonic()
        with pytest.raises(MadeElsewhere, match=r"^run one, stage sft, since \d{4}-.*, makes it$"), \
                store.lease(KEY, gives_way=True, poll=0.05):
            raise AssertionError("it has the lease, which another holds")
        assert time.monotonic() - began < 5
        first.check()
        found = store.lease(KEY).holder()
        assert found is not None
        assert found.words.startswith("run one, stage sft, since ")


def test_who_gives_way_takes_over_from_a_dead_holder_and_needs_none(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    _write(store)
    with store.lease(KEY, gives_way=True, ttl=0.8, poll=0.05) as lease:
        assert lease.held
        publish(store, KEY, lease)
    with store.lease(KEY, gives_way=True) as lease:
        assert not lease.held, "it is finished"


def test_what_a_lease_says_of_its_holder_stays_one_short_line(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    _write(store, by="x\n" * 1000)
    found = store.lease(KEY).holder()
    assert found is not None
    assert "\n" not in found.words
    assert len(found.words) <= 200
