"""The store goes away while a training saves: training goes on, the end says why it cannot be kept, nothing is lost."""

from __future__ import annotations

import errno
import shutil
import threading
import time
from pathlib import Path

import pytest

from alignment.artifacts import Store, StoreUnreachable
from alignment.pipeline import execute, keys
from tests import small
from tests.s3 import Restarted, s3_restarted

__all__ = ["s3_restarted"]


@pytest.mark.slow
def test_a_training_goes_on_without_its_store_and_its_checkpoints_are_there_when_it_is_back(
    s3_restarted: Restarted, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # a refused connection is not tried again for seconds
    stage = small.train("sft", epochs=20, checkpoints={"every": 25, "keep": 2})
    run = small.run(tmp_path, stage, store=s3_restarted.server.url())
    alone = execute(small.run(tmp_path, stage, store=str(tmp_path / "alone"))).artifacts["sft"]
    execute(run.model_copy(update={"stages": run.stages[:-1]}))
    work = s3_restarted.server.folder(f"{run.store}/work/{keys(run)['sft'].key}")

    def stop_at_the_first() -> None:
        until = time.monotonic() + 60
        while not list(work.glob("checkpoints/checkpoint-25.pushed-*")) and time.monotonic() < until:
            time.sleep(0.002)
        s3_restarted.stop()

    watch = threading.Thread(target=stop_at_the_first)
    watch.start()
    with pytest.raises(StoreUnreachable, match="does not answer") as refused:
        execute(run)
    watch.join()
    assert refused.value.transient
    said = capfd.readouterr().err
    assert "! checkpoint-60 is on this machine alone, training goes on: it was not pushed" in said
    s3_restarted.start()
    made = execute(run).artifacts["sft"]
    assert made is not None
    assert alone is not None
    assert made.manifest.facts["timing"]["resumed_from_step"] == 60, "the last step's, which the store never had"
    assert small.losses(made) == small.losses(alone)
    assert made.manifest.files["model/adapter_model.safetensors"] == alone.manifest.files[
        "model/adapter_model.safetensors"]


@pytest.mark.slow
def test_a_folder_that_is_taken_away_ends_the_training_at_its_next_save_and_it_goes_on_when_it_is_back(
    tmp_path: Path
) -> None:
    """Else it is made anew, on the disk below, and the training goes on into it."""
    run = small.run(tmp_path, small.train("sft", epochs=20, checkpoints={"every": 20}))
    work, elsewhere = Store(run.store).workdir(keys(run)["sft"].key), tmp_path / "elsewhere"

    def take_away_after_the_first() -> None:
        until = time.monotonic() + 60
        while not (work / "checkpoints/checkpoint-20/complete").exists() and time.monotonic() < until:
            time.sleep(0.002)
        Path(run.store).rename(elsewhere)

    watch = threading.Thread(target=take_away_after_the_first)
    watch.start()
    with pytest.raises(StoreUnreachable, match="the store's folder is gone"):
        execute(run)
    watch.join()
    assert not (work / "checkpoints").exists(), "nothing is written on the disk below"
    shutil.rmtree(run.store, ignore_errors=True)  # the log
    elsewhere.rename(run.store)
    made = execute(run).artifacts["sft"]
    assert made is not None
    assert made.manifest.facts["timing"]["resumed_from_step"] >= 20


def test_a_store_that_says_nothing_is_given_up_within_three_minutes(s3_restarted: Restarted) -> None:
    """Counted, not waited for: how often it is asked, and how long for each."""
    fs = Store(s3_restarted.server.url()).fs
    fs.connect()
    config = fs.s3.meta.config
    assert (fs.retries, config.read_timeout, config.retries.get("total_max_attempts", 5)) == (2, 15, 5)


@pytest.mark.parametrize("said", [OSError(errno.ESTALE, "Stale file handle"), OSError(errno.EIO, "Input/output error"),
                                  RuntimeError("I/O error: Transport endpoint is not connected (os error 107)")])
def test_a_file_system_that_is_gone_is_named_and_worth_another_attempt(said: Exception, tmp_path: Path) -> None:
    from alignment.training.checkpoints import naming_the_disk

    with pytest.raises(StoreUnreachable, match="the file system does not answer") as refused, naming_the_disk(tmp_path):
        raise said
    assert (refused.value.where, refused.value.transient) == (str(tmp_path), True)
