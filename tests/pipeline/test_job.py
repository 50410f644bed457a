"""The entrypoint of Ray jobs: exit codes, the log and the report it leaves in the store, and being told to end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from alignment.artifacts import Store
from alignment.cluster.storage.stored import stored_logs
from alignment.config import Run
from alignment.exits import Exit
from alignment.pipeline import job, keys
from alignment.pipeline.echo import ECHO
from alignment.pipeline.job import OWN_CLUSTER
from alignment.pipeline.run import make_stage
from alignment.pipeline.stage_log import StageLog
from tests import small
from tests.s3 import Server, forget_clients, free_port, s3, s3_server

__all__ = ["s3", "s3_server"]
JOBS = Path(__file__).parents[2] / "ray_jobs"


@pytest.fixture(autouse=True)
def _as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """main() takes SIGTERM over for good and writes its id to a fixed name: a job is alone in its process and pod."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def written(run: Run, folder: Path) -> str:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(run.model_dump(mode="json", exclude_none=True), sort_keys=False), encoding="utf-8")
    return str(file)


def logs(store: Store) -> dict[str, str]:
    fs = store.fs
    fs.invalidate_cache()
    paths = map(str, fs.find(f"{store.root}/runs/small/logs"))
    return {path.rsplit("/", 1)[1]: fs.cat_file(path).decode() for path in paths}


def test_a_stage_leaves_artifact_report_and_log(s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small.run(tmp_path, store=s3.url())
    store, file = Store(run.store), written(run, tmp_path)
    monkeypatch.setenv("KUBEALIGN_ATTEMPT", "2")
    assert job.main("import_stage", argv=[file, "data"]) == 0
    assert store.find(keys(run)["data"].key) is not None
    assert "24 train, 8 dev, 8 test" in logs(store)["data-2.log"]
    assert b"data" in store.fs.cat_file(f"{store.root}/runs/small/report.html")
    monkeypatch.setenv("KUBEALIGN_ATTEMPT", "3")
    assert job.main("import_stage", argv=[file, "data"]) == 0
    assert "finished before" in logs(store)["data-3.log"]
    assert job.main("import_stage", argv=[file, "data"]) == 0  # deleted and sent anew: attempts begin at 1 again
    assert sorted(logs(store)) == ["data-2.log", "data-3.2.log", "data-3.log"]
    assert [(name, attempt) for name, attempt, _ in stored_logs(store, "small", "data")] == [
        ("data", "2"), ("data", "3"), ("data", "3.2")]


def test_the_users_errors_end_with_2_and_are_in_the_log(
    s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small.run(tmp_path, small.train("sft"), store=s3.url())
    file = written(run, tmp_path)
    assert job.main("train", argv=[file, "data"]) == 2
    assert "one of sft" in capsys.readouterr().err
    assert job.main("train", argv=[str(tmp_path / "none.yaml"), "sft"]) == 2
    assert "none.yaml" in capsys.readouterr().err
    monkeypatch.setenv("KUBEALIGN_ATTEMPT", "1")
    assert job.main("train", argv=[file, "sft"]) == 2
    shown = capsys.readouterr().err
    assert "base, is not finished" in shown
    assert logs(Store(run.store)) == {"sft-1.log": shown}
    assert job.main("import_stage", argv=[file, "data", "store=s3://no-such-bucket/x"]) == 2
    shown = capsys.readouterr().err
    assert shown.count("bucket does not exist") == 2, "the stage, and its log that cannot be kept"
    assert "Traceback" not in shown


def test_what_another_attempt_may_mend_ends_with_3(
    s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(small.run(tmp_path, store=s3.url()), tmp_path)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        forget_clients()
        assert job.main("import_stage", argv=[file, "data"]) == 3
    shown = capsys.readouterr().err
    assert "does not answer" in shown
    assert "Traceback" not in shown
    local = tmp_path / "local"
    make = job.make_stage

    def loses_it(*given: object) -> object:
        made = make(*given)
        shutil.rmtree(local / "artifacts")  # a disk that forgets
        return made

    monkeypatch.setattr(job, "make_stage", loses_it)
    assert job.main("import_stage", argv=[file, "data", f"store={local}"]) == 3
    assert "its artifact is not at" in capsys.readouterr().err


def test_a_bug_ends_with_1_and_its_traceback_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small.run(tmp_path)

    def broken(*given: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(job, "make_stage", broken)
    assert job.main("import_stage", argv=[written(run, tmp_path), "data"]) == 1
    (text,) = logs(Store(run.store)).values()
    assert "Traceback" in text
    assert "ZeroDivisionError: a bug" in text


def test_the_log_comes_while_the_stage_runs_and_hides_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HUB_TOKEN", "canary-0123456789")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    store = Store(str(tmp_path))
    with StageLog(store, "small", "sft-1", every=0.05):
        print("the token is canary-0123456789.", flush=True)
        sys.stderr.write("half of it: canary-01234")
        sys.stderr.write("56789\n")
        until = time.monotonic() + 10
        while not any("half" in text for text in logs(store).values()):
            assert time.monotonic() < until
            time.sleep(0.02)
        print("later")
    assert logs(store) == {"sft-1.log": "the token is <HUB_TOKEN>.\nhalf of it: <HUB_TOKEN>\nlater\n"}
    assert capsys.readouterr().out == "the token is <HUB_TOKEN>.\nlater\n"
    with pytest.raises(KeyboardInterrupt), StageLog(store, "small", "sft-2"):
        raise KeyboardInterrupt
    assert logs(store)["sft-2.log"] == "ended by KeyboardInterrupt: \n"


def test_lines_go_to_the_pods_own_log_marked_whole_and_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HUB_TOKEN", "canary-0123456789")
    (tmp_path / "pod.log").touch()
    monkeypatch.setenv(ECHO, str(tmp_path / "pod.log"))
    with StageLog(Store(str(tmp_path)), "small", "sft-1"):
        print("\x1b[36m(worker pid=7)\x1b[0m the token is canary-01234", end="")
        assert "token" not in (tmp_path / "pod.log").read_text(), "only whole lines"
        print("56789\nnext")
        sys.stderr.write("the last, without an end")
    assert (tmp_path / "pod.log").read_text().splitlines() == [
        "stage | (worker pid=7) the token is <HUB_TOKEN>", "stage | next", "stage | the last, without an end"]
    assert "not in the pod's own log" not in capsys.readouterr().err


def test_a_pods_log_that_cannot_be_written_is_said_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ECHO, str(tmp_path / "none"))
    with StageLog(Store(str(tmp_path)), "small", "sft-1"):
        print("a line")
    assert logs(Store(str(tmp_path))) == {"sft-1.log": "a line\n"}
    assert "this output is not in the pod's own log" in capsys.readouterr().err
    reader, writer = os.pipe()
    monkeypatch.setenv(ECHO, f"/proc/self/fd/{writer}")
    with StageLog(Store(str(tmp_path)), "small", "sft-2"):
        os.close(reader)
        print("after the reader has gone")
    os.close(writer)
    assert logs(Store(str(tmp_path)))["sft-2.log"] == "after the reader has gone\n"


def test_a_job_that_is_submitted_again_on_its_own_ray_cluster_makes_way_for_a_fresh_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """KubeRay does so when a head was lost, without end and uncounted."""
    run = small.run(tmp_path)
    file, store, key = written(run, tmp_path), Store(run.store), keys(run)["data"].key

    def lost(*given: object) -> None:
        raise SystemExit(137)

    monkeypatch.setenv("RAY_CLUSTER_NAME", "tiny-data-01234567-1-abcde")
    with monkeypatch.context() as head:
        head.setattr(job, "make_stage", lost)
        for _ in range(2):  # on a RayCluster that stays, a stage may be tried as often as one likes
            with pytest.raises(SystemExit):
                job.main("import_stage", argv=[file, "data"])
        head.setenv(OWN_CLUSTER, "1")
        with pytest.raises(SystemExit):
            job.main("import_stage", argv=[file, "data"])
    monkeypatch.setenv(OWN_CLUSTER, "1")
    assert job.main("import_stage", argv=[file, "data"]) == Exit.INFRASTRUCTURE
    assert "its head was lost" in capsys.readouterr().err
    monkeypatch.setenv("RAY_CLUSTER_NAME", "tiny-data-01234567-2-fghij")
    assert job.main("import_stage", argv=[file, "data"]) == Exit.DONE
    assert job.main("import_stage", argv=[file, "data"]) == Exit.DONE, "what is finished is finished"
    assert not Path(store.root, "work", key).exists()


def test_a_stage_that_another_makes_gives_its_own_ray_cluster_back_and_waits_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small.run(tmp_path)
    file, store, key = written(run, tmp_path), Store(run.store), keys(run)["data"].key
    monkeypatch.setenv("RAY_CLUSTER_NAME", "small-data-01234567-1-abcde")
    with ThreadPoolExecutor(1) as pool:
        with store.lease(key, by="run other, stage rows", ttl=1.2):
            with monkeypatch.context() as own:
                own.setenv(OWN_CLUSTER, "1")
                assert job.main("import_stage", argv=[file, "data"]) == Exit.ELSEWHERE
            said = capsys.readouterr().err.splitlines()
            assert said[-1].startswith("run other, stage rows, since ")
            assert said[-1].endswith(", makes it")
            # Here, or on a Ray cluster that stays, waiting costs nobody anything.
            stays = pool.submit(make_stage, run, run.stage("data"), store, keys(run))
            time.sleep(2.0)
            assert not stays.done()
            assert store.find(key) is None
        assert stays.result(timeout=60).key == key, "the other gave it back, so it is made"


@pytest.mark.slow
def test_sigterm_gives_the_lease_back_and_another_machine_goes_on(s3: Server, tmp_path: Path) -> None:
    stage = small.train("sft", epochs=12, checkpoints={"every": 2, "keep": 2},
                        strategy={"kind": "lora", "r": 4, "alpha": 8, "dropout": 0.2})
    run = small.run(tmp_path, stage, store=s3.url())
    store, file, key = Store(run.store), written(run, tmp_path), keys(run)["sft"].key
    for name in ("base", "data"):
        assert job.main("import_stage", argv=[file, name]) == 0

    def start(machine: str, *overrides: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(JOBS / "train.py"), file, "sft", *overrides], text=True, stderr=subprocess.PIPE,
            env={**os.environ, "KUBEALIGN_CACHE": str(tmp_path / machine), "KUBEALIGN_ATTEMPT": machine,
                 "TMPDIR": str(tmp_path), "PYTHONPATH": str(JOBS.parent)})

    first = start("one")
    work = s3.folder(f"{run.store}/work/{key}")
    until = time.monotonic() + 120
    while not list(work.glob("checkpoints/*.pushed-*")):
        assert first.poll() is None, first.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.01)
    assert (work / "lease.json").exists()
    hook = f'kill -TERM "$(cat {tmp_path}/kubealign-stage.pid)"'  # as a pod's preStop does
    subprocess.run(["/bin/sh", "-c", hook], check=True)
    said = first.communicate(timeout=60)[1]
    assert first.returncode == 143, said
    assert not (work / "lease.json").exists(), "given back"
    assert not (tmp_path / "kubealign-stage.pid").exists()
    assert logs(store)["sft-one.log"].endswith("ended by SystemExit: 143\n")
    assert 1 <= len(list(work.glob("checkpoints/checkpoint-*.pushed-*"))) <= 2, "no more than are kept"
    second = start("two")
    said = second.communicate(timeout=200)[1]
    assert second.returncode == 0, said
    made = store.find(key)
    assert made is not None
    assert made.manifest.facts["timing"]["resumed_from_step"] >= 2
    assert not work.exists(), "nothing is left of the work"
    losses = small.losses(made)
    shutil.rmtree(s3.folder(f"{run.store}/artifacts/{key}"))
    assert job.main("train", argv=[file, "sft"]) == 0
    again = store.find(key)
    assert again is not None
    assert again.manifest.facts["timing"]["resumed_from_step"] == 0
    assert small.losses(again) == losses, "the copy of the removed one is not taken for it"
    weights = "model/adapter_model.safetensors"
    assert again.manifest.files[weights].sha256 == made.manifest.files[weights].sha256
