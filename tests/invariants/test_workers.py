"""Training on Ray workers: several equal one, and a worker killed in the middle changes nothing.

Of sft: what workers share of each method is in tests/distributed/test_online_sharding.py and test_sharding.py.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from alignment.artifacts import Artifact
from alignment.errors import DataError
from alignment.pipeline import execute
from tests import small

pytestmark = [pytest.mark.ray, pytest.mark.slow]
TWO = {"workers": 2, "dtype": "float32", "device": "cpu", "cpus_per_worker": 0.5}


def stage(name: str):
    return small.train(name, epochs=3, batch_size=8, micro_batch_size=4, checkpoints={"every": 2},
                       trl={"lr_scheduler_type": "constant"})


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Trained by two workers that were left alone."""
    made = execute(small.run(tmp_path_factory.mktemp("two"), stage("sft"), compute=TWO)).artifacts["sft"]
    assert made is not None
    return made


def test_two_workers_equal_one(two: Artifact, tmp_path: Path) -> None:
    one = execute(small.run(tmp_path, stage("sft"))).artifacts["sft"]
    assert two.manifest.compute["workers"] == 2
    assert small.losses(two) == pytest.approx(small.losses(one), rel=1e-3)


def test_a_killed_worker_changes_nothing(two: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignment.distributed import train as module

    once = tmp_path / "killed"
    original = module._worker

    def dies_once(config):
        from transformers import TrainerCallback

        from alignment.training import fit as fit_module

        class Dies(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == 5 and args.process_index == 1 and not once.exists():
                    once.write_text("x")
                    os.kill(os.getpid(), signal.SIGKILL)

        fit = fit_module.fit
        fit_module.fit = lambda context, workers=1, callbacks=(): fit(
            context, workers=workers, callbacks=(*callbacks, Dies()))
        original(config)

    monkeypatch.setattr(module, "_worker", dies_once)
    killed = execute(small.run(tmp_path / "killed-run", stage("sft"), compute=TWO)).artifacts["sft"]
    assert once.exists()
    assert killed.manifest.facts["timing"]["resumed_from_step"] == 4
    assert small.losses(killed) == small.losses(two)
    name = "model/adapter_model.safetensors"
    assert killed.manifest.files[name].sha256 == two.manifest.files[name].sha256


def test_what_only_the_user_can_mend_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from alignment.distributed import train as module

    tries = tmp_path / "tries"

    def refuses(config):
        with tries.open("a") as file:
            file.write("x")
        raise DataError("no row is left", hint="give more")

    monkeypatch.setattr(module, "_worker", refuses)
    with pytest.raises(DataError, match="no row is left"):
        execute(small.run(tmp_path, stage("sft"), compute=TWO))
    assert len(tries.read_text()) <= 2, "once for each worker at most"
    assert "starts its workers again" not in capsys.readouterr().err
