"""Round trips, verification and refusals of the store, on a folder and on an object store."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path

import fsspec
import pytest

from alignment import progress
from alignment.artifacts import Store, digest_of, key_of, sha256_of
from alignment.errors import ArtifactError
from tests.artifacts.built import FILES, fill, manifest, publish

KEY = "seed-0123456789ab"


def _cat(store: Store, path: str) -> bytes:
    content: bytes = store.fs.cat_file(f"{store.root}/{path}")
    return content


def test_what_is_published_is_found_whole(store: Store) -> None:
    assert store.find(KEY) is None
    with store.lease(KEY) as lease:
        made = publish(store, KEY, lease, metrics={"x": 1.5}, facts={"who": "ä"})
        store.clear_work(KEY)
    found = store.find(KEY)
    assert found is not None
    assert found.manifest == made.manifest
    assert set(found.manifest.files) == set(FILES)
    folder = found.path()
    assert {name: (folder / name).read_text() for name in FILES} == FILES
    assert all(sha256_of(folder / name) == entry.sha256 for name, entry in found.manifest.files.items())
    assert json.loads((folder / "manifest.json").read_text())["facts"] == {"who": "ä"}
    assert found.url == f"{store.url}/artifacts/{KEY}"
    assert not store.fs.exists(f"{store.root}/work/{KEY}")
    assert pickle.loads(pickle.dumps(store)).find(KEY) is not None


def test_the_first_publisher_wins(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with store.lease(KEY) as lease:
        first = publish(store, KEY, lease, metrics={"who": 1.0})
        second = publish(store, KEY, lease, metrics={"who": 2.0})
    assert first.manifest.metrics == second.manifest.metrics == {"who": 1.0}
    again = store.find(KEY)
    assert again is not None
    assert again.manifest.metrics == {"who": 1.0}


def test_object_store_gets_the_manifest_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("memory://late", cache=tmp_path)
    order: list[str] = []
    memory = type(fsspec.filesystem("memory"))
    put, pipe = memory.put_file, memory.pipe_file

    def put_file(self: object, local: str, remote: str, **kwargs: object) -> object:
        order.append(remote)
        return put(self, local, remote, **kwargs)

    def pipe_file(self: object, path: str, value: bytes, **kwargs: object) -> object:
        order.append(path)
        return pipe(self, path, value, **kwargs)

    monkeypatch.setattr(memory, "put_file", put_file)
    monkeypatch.setattr(memory, "pipe_file", pipe_file)
    with store.lease(KEY) as lease:
        order.clear()
        publish(store, KEY, lease)
    assert [name.rsplit(f"{KEY}/", 1)[1] for name in order] == [*sorted(FILES), "manifest.json"]


def test_an_upload_that_breaks_off_leaves_nothing_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("memory://broken", cache=tmp_path)
    memory = type(fsspec.filesystem("memory"))
    whole = memory.put_file

    def breaks(self: object, local: str, remote: str, *args: object, **kwargs: object) -> object:
        if remote.endswith("b.bin"):
            raise OSError("connection reset")
        return whole(self, local, remote, *args, **kwargs)

    with store.lease(KEY) as lease:
        monkeypatch.setattr(memory, "put_file", breaks)
        with pytest.raises(ArtifactError, match="connection reset"):
            publish(store, KEY, lease)
        assert store.fs.exists(f"{store.root}/artifacts/{KEY}/a.txt")
        assert store.find(KEY) is None
        monkeypatch.setattr(memory, "put_file", whole)
        publish(store, KEY, lease)
    assert store.find(KEY) is not None


def test_a_changed_file_in_an_object_store_is_refused(tmp_path: Path) -> None:
    store = Store("memory://changed", cache=tmp_path)
    with store.lease(KEY) as lease:
        made = publish(store, KEY, lease)
    store.fs.pipe_file(f"{store.root}/artifacts/{KEY}/a.txt", b"0ne")
    with pytest.raises(ArtifactError, match="differs from its digest") as caught:
        made.path()
    assert "a.txt" in str(caught.value)
    assert not list(tmp_path.glob(f"*{KEY}*")), "nothing half-checked stays in the cache"


def test_the_cache_is_used_again(tmp_path: Path) -> None:
    store = Store("memory://cached", cache=tmp_path)
    with store.lease(KEY) as lease:
        made = publish(store, KEY, lease)
    first = made.path()
    store.fs.rm_file(f"{store.root}/artifacts/{KEY}/a.txt")
    assert made.path() == first
    assert (first / "a.txt").read_text() == FILES["a.txt"]


def test_a_copy_of_an_artifact_that_was_made_anew_is_fetched_again(tmp_path: Path) -> None:
    store = Store("memory://anew", cache=tmp_path)
    with store.lease(KEY) as lease:
        old = publish(store, KEY, lease).path()
    assert (old / "a.txt").read_text() == FILES["a.txt"]
    store.fs.rm(f"{store.root}/artifacts/{KEY}", recursive=True)
    with store.lease(KEY) as lease:
        fill(store.workdir(KEY) / "out", {"a.txt": "another"})
        made = store.publish(manifest(KEY), store.workdir(KEY) / "out", lease)
    assert (made.path() / "a.txt").read_text() == "another"


def test_two_stores_never_share_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBEALIGN_CACHE", str(tmp_path))
    assert Store("memory://one").cache != Store("memory://two").cache


@pytest.mark.parametrize(("text", "problem"), [
    (b"", "damaged"), (b"{", "damaged"), (b'{"key": "x"}', "damaged"), (b"\xff", "damaged"),
])
def test_a_damaged_manifest_is_an_error_not_a_miss(store: Store, text: bytes, problem: str) -> None:
    fs, path = store.fs, f"{store.root}/artifacts/{KEY}"
    fs.makedirs(path, exist_ok=True)
    fs.pipe_file(f"{path}/manifest.json", text)
    with pytest.raises(ArtifactError, match=problem):
        store.find(KEY)


def test_a_manifest_of_another_format_is_refused(store: Store) -> None:
    fs, path = store.fs, f"{store.root}/artifacts/{KEY}"
    fs.makedirs(path, exist_ok=True)
    fs.pipe_file(f"{path}/manifest.json", manifest(KEY, format=99).model_dump_json().encode())
    with pytest.raises(ArtifactError, match="another version") as caught:
        store.find(KEY)
    assert caught.value.found == 99


def test_a_store_below_a_file_is_refused_everywhere(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Store(str(tmp_path / "file" / "sub"))
    with pytest.raises(ArtifactError), store.lease(KEY):
        raise AssertionError("no lease can be had there")
    for attempt in (lambda: store.workdir(KEY), lambda: store.find(KEY),
                    lambda: store.write_run_file("run", "run.yaml", "x")):
        with pytest.raises(ArtifactError, match=r"file/sub|cannot be (read|written)"):
            attempt()


def test_an_unknown_kind_of_store_is_refused() -> None:
    with pytest.raises(ArtifactError, match="no client for this kind of store"):
        Store("nosuch://bucket")


def test_a_store_that_travels_uses_the_cache_of_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBEALIGN_CACHE", str(tmp_path / "driver"))
    packed = pickle.dumps(Store("memory://travels"))
    monkeypatch.setenv("KUBEALIGN_CACHE", str(tmp_path / "worker"))
    assert pickle.loads(packed).workdir(KEY).is_relative_to(tmp_path / "worker")


def test_leftovers_of_a_finished_artifact_are_swept(store: Store) -> None:
    fill(store.workdir(KEY) / "checkpoint-5")
    store.push_work(KEY, "checkpoint-5")
    store.sweep_work(KEY)
    assert not store.fs.exists(f"{store.root}/work/{KEY}")


def test_run_files_are_replaced_whole(store: Store) -> None:
    url = store.write_run_file("my-run", "run.yaml", "first")
    assert store.write_run_file("my-run", "run.yaml", "second") == url == f"{store.url}/runs/my-run/run.yaml"
    assert _cat(store, "runs/my-run/run.yaml") == b"second"
    assert [str(path).rsplit("/", 1)[1] for path in store.fs.find(f"{store.root}/runs")] == ["run.yaml"]


def test_work_travels_to_another_machine_and_back(tmp_path: Path) -> None:
    here = Store("memory://work", cache=tmp_path / "here")
    there = Store("memory://work", cache=tmp_path / "there")
    fill(here.workdir(KEY) / "checkpoints/checkpoint-5")
    fill(here.workdir(KEY) / "checkpoints/checkpoint-9")
    fill(here.workdir(KEY) / "out")
    for name in ("checkpoints/checkpoint-5", "out"):
        here.push_work(KEY, name)
    file = here.workdir(KEY) / "out/a.txt"
    before = file.stat().st_mtime_ns
    assert here.pull_work(KEY) == ["checkpoints/checkpoint-5", "out"]
    assert file.stat().st_mtime_ns == before, "what is here and whole is left alone"
    assert there.pull_work(KEY, "checkpoints/") == ["checkpoints/checkpoint-5"]
    assert not (there.workdir(KEY) / "out").exists()
    assert there.pull_work(KEY, "out") == ["out"]
    copied = there.workdir(KEY) / "checkpoints"
    assert [path.name for path in copied.iterdir()] == ["checkpoint-5"]
    assert (copied / "checkpoint-5/deep/b.bin").read_text() == FILES["deep/b.bin"]
    (copied / "checkpoint-5/a.txt").unlink()
    assert there.pull_work(KEY, "checkpoints/checkpoint-5") == ["checkpoints/checkpoint-5"], "mended"
    assert (copied / "checkpoint-5/a.txt").exists()
    here.clear_work(KEY)
    assert there.pull_work(KEY) == []


def test_a_push_without_its_marker_is_not_pulled(tmp_path: Path) -> None:
    here, there = Store("memory://part", cache=tmp_path / "a"), Store("memory://part", cache=tmp_path / "b")
    fill(here.workdir(KEY) / "checkpoint-5")
    here.push_work(KEY, "checkpoint-5")
    here.fs.rm_file(f"{here.root}/work/{KEY}/checkpoint-5.pushed-0-of-1")
    assert there.pull_work(KEY) == []
    assert there.started_work(KEY) == {"checkpoint-5"}


def test_a_folder_of_two_machines_counts_when_both_have_pushed(store: Store, tmp_path: Path) -> None:
    if store.is_local:
        pytest.skip("a local store is one disk")
    one, two = (Store(store.url, cache=tmp_path / name) for name in ("one", "two"))
    fill(one.workdir(KEY) / "c/checkpoint-4", {"model": "weights", "rng_0": "a"})
    fill(two.workdir(KEY) / "c/checkpoint-4", {"rng_1": "b"})
    one.push_work(KEY, "c/checkpoint-4", part=0, parts=2)
    assert one.pushed_work(KEY) == one.pull_work(KEY) == []
    two.push_work(KEY, "c/checkpoint-4", part=1, parts=2)
    for machine in (one, two, Store(store.url, cache=tmp_path / "three")):
        assert machine.pull_work(KEY, "c/") == ["c/checkpoint-4"]
        folder = machine.workdir(KEY) / "c/checkpoint-4"
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            "model": "weights", "rng_0": "a", "rng_1": "b"}
    one.drop_work(KEY, "c/checkpoint-4")
    assert one.started_work(KEY, "c/") == set()


def test_pushed_files_that_do_not_fit_their_marker_are_not_taken(tmp_path: Path) -> None:
    here, there = Store("memory://torn", cache=tmp_path / "a"), Store("memory://torn", cache=tmp_path / "b")
    fill(here.workdir(KEY) / "checkpoint-5")
    here.push_work(KEY, "checkpoint-5")
    here.fs.pipe_file(f"{here.root}/work/{KEY}/checkpoint-5/a.txt", b"0ne")  # a second push, killed half-way
    assert there.pull_work(KEY) == []
    assert not any(there.workdir(KEY).iterdir())


def test_what_a_worker_pushed_is_published_without_passing_through_the_driver(store: Store, tmp_path: Path) -> None:
    if store.is_local:
        pytest.skip("a local store is one disk")
    worker, driver = Store(store.url, cache=tmp_path / "worker"), Store(store.url, cache=tmp_path / "driver")
    fill(worker.workdir(KEY) / "out", {"model/weights": "w" * 5000, "training.json": "old"})
    worker.push_work(KEY, "out")
    out = driver.workdir(KEY) / "out"
    driver.fetch_work(KEY, "out", "training.json")
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["training.json"]
    (out / "training.json").write_text("new")
    with driver.lease(KEY) as lease:
        made = driver.publish(manifest(KEY), out, lease)
        driver.clear_work(KEY)
    reader = Store(store.url, cache=tmp_path / "reader").find(KEY)
    assert reader is not None
    assert reader.manifest == made.manifest
    assert {name: (reader.path() / name).read_text() for name in made.manifest.files} == {
        "model/weights": "w" * 5000, "training.json": "new"}
    assert driver.started_work(KEY) == set()


def test_digests_ignore_order_and_see_every_change() -> None:
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    different = [{"a": 1}, {"a": 1.5}, {"a": "1"}, {"a": None}, {"b": 1}, {"a": [1]}, {"a": True}, {}]
    assert len({digest_of(parts) for parts in different}) == len(different)
    assert key_of("sft", "0123456789abcdef") == "sft-0123456789ab"
    with pytest.raises(ValueError, match="Out of range"):
        digest_of({"a": float("nan")})


def test_a_remote_store_that_takes_long_is_named_and_a_quick_one_is_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.2)
    store = Store("memory://slow")
    with store.guard("artifacts/base-1/model/model.safetensors", "read"):
        time.sleep(0.5)
    said = capsys.readouterr().err
    assert "memory://slow/artifacts/base-1/model/model.safetensors is being read (0 s so far)" in said
    with store.guard("x", "read"):
        pass
    time.sleep(0.3)
    assert capsys.readouterr().err == ""
