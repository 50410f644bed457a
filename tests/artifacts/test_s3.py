"""On a real S3 server: conditional creation, two processes that fetch one copy, and errors a user can act on."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from alignment.artifacts import Store, StoreUnreachable
from alignment.errors import ArtifactError
from tests.artifacts.built import FILES, fill, manifest, publish
from tests.s3 import SECRET, Server, forget_clients, free_port

KEY = "seed-0123456789ab"
READER = """
import sys
sys.path.insert(0, sys.argv[2])
from alignment.artifacts import Store
store = Store(sys.argv[1])
fetched, fetch = [], Store._fetch
Store._fetch = lambda self, *given: (fetched.append(given), fetch(self, *given))
found = store.find(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
print(found.path(), len(fetched))
"""


def test_of_many_creators_one_wins(s3: Server) -> None:
    fs, results = Store(s3.url()).fs, list[list[str]]()
    for number in range(10):
        path, won = f"{s3.url()}/{number}", list[str]()

        def create(path: str = path, won: list[str] = won, me: str = "") -> None:
            try:
                fs.pipe_file(path, me.encode(), mode="create")
                won.append(me)
            except FileExistsError:
                return

        threads = [threading.Thread(target=create, kwargs={"me": str(index)}) for index in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        results.append(won)
        assert fs.cat_file(path).decode() == won[0]
    assert [len(won) for won in results] == [1] * 10


def test_of_two_writers_one_works_and_a_killed_one_is_taken_over(s3: Server, tmp_path: Path) -> None:
    stores = [Store(s3.url(), cache=tmp_path / name) for name in ("one", "two")]
    worked, lock = [], threading.Lock()

    def work(store: Store) -> None:
        with store.lease(KEY, poll=0.05) as lease:
            if lease.held:
                with lock:
                    worked.append(store)
                time.sleep(0.3)
                publish(store, KEY, lease)
                store.clear_work(KEY)

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(worked) == 1
    other = "seed-ffffffffffff"
    stores[0].fs.pipe_file(f"{stores[0].root}/work/{other}/lease.json", b'{"token": "x", "beat": 1, "boot": "gone"}')
    began = time.monotonic()
    with stores[1].lease(other, ttl=0.6, poll=0.05) as lease:
        assert lease.held
        assert time.monotonic() - began >= 0.6
        publish(stores[1], other, lease)
    assert stores[0].find(other) is not None


def test_two_processes_of_one_machine_fetch_a_copy_once(s3: Server, tmp_path: Path, monkeypatch) -> None:
    store = Store(s3.url(), cache=tmp_path / "writer")
    with store.lease(KEY) as lease:
        fill(store.workdir(KEY) / "out", {"model.bin": "x" * 3_000_000, **FILES})
        store.publish(manifest(KEY), store.workdir(KEY) / "out", lease)
    monkeypatch.setenv("KUBEALIGN_CACHE", str(tmp_path / "node"))
    leftover = Store(s3.url()).cache / f".{KEY}.{socket.gethostname()}.killed"
    fill(leftover)
    command = [sys.executable, "-c", READER, store.url, str(Path(__file__).parents[2]), KEY]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    both = [subprocess.Popen(command, text=True, **pipes) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0].split() for process in both]
    assert sorted(words[1] for words in said) == ["0", "1"], said
    assert said[0][0] == said[1][0]
    assert (Path(said[0][0]) / "model.bin").stat().st_size == 3_000_000
    assert not leftover.exists(), "what a killed process left is cleared away"


def _error(url: str) -> ArtifactError:
    """What a run meets first: taking a lease asks whether the work is made already."""
    forget_clients()
    store = Store(url)
    with pytest.raises(ArtifactError) as caught, store.lease(KEY):
        raise AssertionError("no lease can be had there")
    with pytest.raises(ArtifactError):
        store.write_run_file("run", "run.yaml", "x")
    error = caught.value
    assert url in str(error), "names the URL"
    assert error.hint is not None, "says what to do"
    assert error.__cause__ is None, "no stack of the client's"
    assert SECRET not in str(error)
    return error


def test_a_missing_bucket_is_named_and_not_made(s3: Server) -> None:
    error = _error("s3://no-such-bucket/store")
    assert "bucket does not exist" in error.problem
    assert s3.endpoint in error.problem
    assert not (s3.root / "no-such-bucket").exists()


@pytest.mark.parametrize(("changed", "problem"), [
    ({"AWS_SECRET_ACCESS_KEY": "wrong-secret-key"}, "refuses these credentials"),
    ({"AWS_ACCESS_KEY_ID": "nobody-known-here"}, "refuses these credentials"),
    ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials"),
    ({"AWS_ENDPOINT_URL": "127.0.0.1:7070"}, "endpoint is no URL"),
])
def test_credentials_and_endpoint_that_are_wrong(
    s3: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: dict[str, str], problem: str
) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for name, value in changed.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name)
    error = _error(s3.url())
    assert problem in error.problem
    assert not isinstance(error, StoreUnreachable), "another attempt would meet it again"


def test_a_server_that_does_not_answer_is_worth_another_attempt(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    error = _error(s3.url())
    assert isinstance(error, StoreUnreachable)
    assert "does not answer" in error.problem


def test_a_server_that_is_gone_for_a_while_does_not_end_a_lease(tmp_path: Path, monkeypatch) -> None:
    from tests.s3 import serving

    with serving(tmp_path / "first") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        forget_clients()
        store = Store("s3://bucket/store", cache=tmp_path / "cache")
        lease = store.lease(KEY, ttl=1.2)
        lease.__enter__()
    time.sleep(0.6)  # a renewal or two fail
    assert lease._thread is not None
    assert lease._thread.is_alive()
    lease.__exit__(None, None, None)  # gives up quietly what cannot be given back


def test_what_a_store_holds_is_listed_as_in_a_folder(s3: Server, tmp_path: Path) -> None:
    for store in (Store(s3.url()), Store(str(tmp_path / "store"))):
        assert (store.listed(), store.runs()) == ([], [])
        with store.lease(KEY) as lease:
            publish(store, KEY, lease)
        store.write_run_file("one", "run.yaml", "name: one\n")
        store.write_run_file("half", "report.html", "")
        assert (store.listed(), store.runs()) == ([KEY], ["one"])
        assert store.read_run_file("one", "run.yaml") == "name: one\n"
        assert store.read_run_file("one", "nothing.html") is None
