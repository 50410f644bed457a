"""DeepSpeed's config as it is made from ours, and what is said where it cannot compile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignment.config import Compute
from alignment.errors import StageError


def options(sharding: str, autocast: Any = None, **more: Any) -> Any:
    from alignment.training.sharding import options as made

    return made(Compute.model_validate({"workers": 2, "sharding": sharding, **more}), autocast)


@pytest.mark.parametrize(("sharding", "stage"), [("zero1", 1), ("zero2", 2), ("zero3", 3), ("zero3-offload", 3)])
def test_batch_clipping_and_arithmetic_are_left_to_the_stages_own_keys(sharding: str, stage: int) -> None:
    made = options(sharding)
    assert made["zero_optimization"]["stage"] == stage
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
                "gradient_clipping"):
        assert made[key] == "auto"
    assert not {"optimizer", "scheduler", "bf16", "fp16", "torch_autocast"} & made.keys(), "float32, TRL's optimizer"
    gathers = made["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save")
    assert gathers is (True if stage == 3 else None)


@pytest.mark.parametrize("sharding", ["auto", "none"])
def test_without_a_stage_there_is_no_deepspeed(sharding: str) -> None:
    assert options(sharding) is None


def test_offload_pins_memory_where_there_is_a_gpu() -> None:
    for gpus, pinned in ((0.0, False), (1.0, True)):
        zero = options("zero3-offload", gpus_per_worker=gpus)["zero_optimization"]
        assert zero["offload_optimizer"] == zero["offload_param"] == {"device": "cpu", "pin_memory": pinned}


def test_bfloat16_is_autocast_over_float32_weights_and_gradients() -> None:
    import torch

    assert options("zero2", torch.bfloat16)["torch_autocast"] == {
        "enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}


def test_own_options_stand_over_ours_and_auto_in_ours_says_nothing() -> None:
    made = options("zero3-offload", deepspeed={
        "train_batch_size": "auto", "bf16": "auto", "steps_per_print": 5,
        "comms_logger": {"enabled": False, "x": (1, 2)},
        "zero_optimization": {"stage": 3, "stage3_max_live_parameters": 7, "offload_param": {"device": "none"}}})
    assert made["steps_per_print"] == 5
    assert made["comms_logger"] == {"enabled": False, "x": [1, 2]}
    assert "bf16" not in made
    zero = made["zero_optimization"]
    assert (zero["stage"], zero["stage3_max_live_parameters"], zero["offload_param"]) == (3, 7, {"device": "none"})
    assert zero["offload_optimizer"]["device"] == "cpu"


@pytest.mark.parametrize(("there", "missing"), [(("ninja",), "g++"), (("c++",), "ninja")])
def test_a_missing_compiler_is_named(
    there: tuple[str, ...], missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignment.training import sharding

    for name in there:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sharding.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(StageError) as caught:
        sharding.compile_cpu_adam("compute.sharding: zero3-offload")
    assert f"{missing} on the PATH of every worker" in str(caught.value)
    assert "without offload" in str(caught.value)


@pytest.mark.parametrize("library", ["torch", "python"])
def test_a_full_disk_is_named_whatever_a_library_says_of_it(library: str, tmp_path: Path) -> None:
    import torch

    from alignment.training.checkpoints import naming_the_disk

    full = tmp_path / "checkpoint-2" / "weights"
    full.parent.mkdir()
    full.symlink_to("/dev/full")

    def write() -> None:
        if library == "torch":
            torch.save({"a": torch.ones(100_000)}, full)
        else:
            full.write_text("x" * 100_000)

    with pytest.raises(StageError, match="the disk is full") as caught, naming_the_disk(full.parent):
        write()
    assert caught.value.where == str(full.parent)
    assert "MiB free" in str(caught.value.found)
    with pytest.raises(RuntimeError, match="something else"), naming_the_disk(full.parent):
        raise RuntimeError("something else")
