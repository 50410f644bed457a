"""Estimates against tensors counted while stages really train: at most 5 % over the highest moment, and never under it.

Small models in float32 and bfloat16 on a CPU, whole TRL trainers. GPUs differ in the output head, whose tiles are
folded by a kernel there, and in what no tensor has: not seen here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact, Store
from alignment.context import StageContext
from alignment.planner.counting import size_of_folder
from alignment.planner.estimate import ADAM_8BIT, Memory, train_memory
from tests.matrix import cases
from tests.models import published
from tests.training.made import context, preferred, published_rows

SHAPE: dict[str, Any] = {
    "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32,
    "intermediate_size": 688, "vocab_size": 4096, "pad_token_id": 0}
LORA, FULL = {"kind": "lora", "r": 8, "alpha": 16}, {"kind": "full"}
Start = Callable[[str], Artifact]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Start:
    """Model family -> a random model of it."""
    import torch
    from transformers import AutoConfig

    from tests.planner.live import model_folder

    torch.set_num_threads(1)
    made: dict[str, Artifact] = {}

    def of(family: str) -> Artifact:
        if family not in made:
            folder = tmp_path_factory.mktemp("start")
            model_folder(folder / "model", tiny_model_dir, AutoConfig.for_model(family, **SHAPE))
            made[family] = published(Store(str(tmp_path_factory.getbasetemp() / "peak")),
                                     f"{family.replace('_', '-')}-000000000000", folder)
        return made[family]

    return of


@pytest.fixture
def rows(start: Start, tmp_path: Path) -> Artifact:
    """Sixteen preferences, the shortest a tenth shorter than the longest."""
    made = [preferred(f"p{number}", "say " * (40 - 3 * (number % 4)), "two " * 20, "nine " * 20)
            for number in range(16)]
    return published_rows(start("llama").store, tmp_path / "rows", f"{tmp_path.name}-000000000000", train=made)


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters train under autocast, which TRL's config turns on; on a CPU of ours they do not."""
    import torch

    from alignment.training import fit

    own = fit.method_of

    def method_of(stage: Any) -> Any:
        method = own(stage)
        return dataclasses.replace(method, config=lambda **given: method.config(**{**given, "bf16": True}))

    monkeypatch.setattr(fit, "method_of", method_of)
    monkeypatch.setattr(fit, "resolve_dtype", lambda *_: torch.bfloat16)


def trained(given: StageContext) -> tuple[int, int]:
    """Highest bytes of live tensors from the second step on, and tokens of the longest row."""
    from alignment.training.fit import fit
    from tests.planner.live import Watch

    watch = Watch()
    fit(given, callbacks=(watch,))
    assert watch.mode is not None
    facts = json.loads((given.out / "training.json").read_text(encoding="utf-8"))["facts"]
    return watch.mode.peak, facts["max_length"]


@pytest.mark.parametrize(("family", "method", "strategy", "again", "dtype", "batch"), cases([
    ("llama", "sft", LORA, True, "autocast", 4),
    ("llama", "sft", FULL, False, "autocast", 8),
    ("llama", "reward", LORA, False, "bfloat16", 4),
    ("llama", "reward", FULL, True, "float32", 8),
    ("llama", "dpo", LORA, False, "float32", 4),
    ("llama", "dpo", FULL, True, "float32", 4),
    ("qwen3", "reward", LORA, False, "autocast", 4),
    ("gemma2", "sft", LORA, False, "float32", 4),
    ("phi3", "reward", FULL, True, "autocast", 4),
], [
    ("llama", "sft", LORA, False, "float32", 4),
    ("llama", "sft", FULL, True, "float32", 8),
    ("llama", "reward", LORA, False, "float32", 4),
    ("llama", "reward", LORA, True, "float32", 8),
    ("llama", "reward", LORA, False, "autocast", 4),
    ("llama", "reward", LORA, True, "autocast", 8),
    ("llama", "reward", FULL, False, "float32", 4),
    ("llama", "reward", FULL, False, "autocast", 8),
    ("llama", "reward", FULL, True, "autocast", 4),
    ("llama", "dpo", LORA, True, "autocast", 4),
    ("qwen2", "reward", LORA, True, "autocast", 4),
    ("qwen3", "reward", FULL, False, "float32", 4),
    ("gemma3_text", "sft", FULL, True, "float32", 4),
    ("phi3", "reward", LORA, False, "float32", 4),
]))
def test_what_a_training_holds_at_once_is_estimated_and_never_under(
    start: Start, rows: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, method: str,
    strategy: dict[str, Any], again: bool, dtype: str, batch: int,
) -> None:
    ratio, said = estimated(start(family), rows, tmp_path, monkeypatch, method, strategy, again, dtype, batch)
    assert 1 <= ratio <= 1.05, said


@pytest.mark.parametrize(("family", "method", "strategy", "again", "dtype", "most"), cases([
    ("olmo2", "sft", LORA, False, "float32", 1.05),
    ("gpt_neox", "reward", LORA, False, "float32", 1.6),
], [
    ("stablelm", "reward", FULL, True, "float32", 1.05),
    ("starcoder2", "reward", LORA, False, "autocast", 1.6),
]))
def test_a_counted_family_is_never_under_either(
    start: Start, rows: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, method: str,
    strategy: dict[str, Any], again: bool, dtype: str, most: float,
) -> None:
    ratio, said = estimated(start(family), rows, tmp_path, monkeypatch, method, strategy, again, dtype, 4)
    assert 1 <= ratio <= most, said  # without a gate, less is kept than is counted


def estimated(
    base: Artifact, rows: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str,
    strategy: dict[str, Any], again: bool, dtype: str, batch: int,
) -> tuple[float, str]:
    """The estimate over the counted peak, and both in words."""
    # What is planned is TRL's layout: whether rows share sequences, which takes less, is known with the model at hand.
    monkeypatch.setattr("alignment.training.shared_prefix.structural", lambda trainer: "as TRL has it")
    if dtype == "autocast":
        as_on_a_gpu(monkeypatch)
    compute = {"device": "cpu", "dtype": "float32" if dtype == "float32" else "bfloat16"}
    given = context(base.store, tmp_path, base, rows, method, compute, strategy=strategy, batch_size=batch,
                    micro_batch_size=4, max_length=1024, trl={"max_steps": 2, "gradient_checkpointing": again})
    peak, length = trained(given)
    size = size_of_folder(base.path() / "model")
    assert size is not None
    estimate = train_memory(
        size, lora_rank=strategy.get("r"), frozen_bytes=4 if dtype == "float32" else 2,
        sequences=4 if method == "sft" else 8, length=length, head=method != "reward", checkpointing=again,
        reference=method == "dpo" and strategy is LORA, accumulated=batch > 4, autocast=dtype == "autocast")
    return estimate.total / peak, f"{estimate.total / peak:.3f} of the peak; {estimate}"


@pytest.mark.parametrize("method", ["sft", "reward", "dpo"])
def test_rows_that_share_sequences_hold_no_more_than_was_planned(
    start: Start, rows: Artifact, tmp_path: Path, method: str
) -> None:
    base = start("llama")
    given = context(base.store, tmp_path, base, rows, method, {"device": "cpu", "dtype": "float32"}, strategy=LORA,
                    batch_size=4, micro_batch_size=4, max_length=1024,
                    trl={"max_steps": 2, "gradient_checkpointing": False})
    peak, length = trained(given)
    size = size_of_folder(base.path() / "model")
    assert size is not None
    estimate = train_memory(
        size, lora_rank=8, frozen_bytes=4, sequences=4 if method == "sft" else 8, length=length,
        head=method != "reward", checkpointing=False, reference=method == "dpo", accumulated=False, autocast=False)
    assert peak <= estimate.total


def test_four_bits_and_an_optimizer_of_eight_are_less(start: Start) -> None:
    size = size_of_folder(start("llama").path() / "model")
    assert size is not None

    def of(**more: Any) -> Memory:
        return train_memory(size, lora_rank=8, frozen_bytes=2, sequences=2, length=64, **more)

    whole, packed = of(), of(quantised=True, optimizer=ADAM_8BIT)
    assert whole.weights - packed.weights == pytest.approx(size.linear_parameters * (2 - 0.5159), rel=1e-3)
    assert packed.optimizer == pytest.approx(whole.optimizer / 4, rel=0.02)


def test_nf4_takes_the_bytes_that_bitsandbytes_makes_of_a_layer() -> None:
    import torch
    from bitsandbytes.functional import quantize_4bit

    from alignment.planner.estimate import NF4_DOUBLE

    packed, state = quantize_4bit(torch.randn(1024, 4096), quant_type="nf4", compress_statistics=True)
    held = [packed, state.absmax, state.state2.absmax]
    assert sum(one.numel() * one.element_size() for one in held) == NF4_DOUBLE * 1024 * 4096
