"""The formulae: against numbers worked out by hand, and how they must move when something grows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.config import Sft, load_profile
from alignment.planner.estimate import (
    Rates,
    forward_flops,
    generate_memory,
    generate_seconds,
    measure_rates,
    train_flops,
    train_memory,
)
from alignment.planner.need import Device, memory_of
from alignment.planner.sharing import BUCKET, LIVE, PERSISTENT, Zero, beside, held, zero_of
from alignment.planner.sizes import ModelSize

SMALL = ModelSize(parameters=1000, layers=2, hidden=8, heads=2, kv_heads=1, head_dim=4, intermediate=16, vocab=100)
SMOLLM = ModelSize(134_515_008, 30, 576, 9, 3, 64, 1536, 49152)


def test_weights_gradients_and_states_by_hand() -> None:
    memory = train_memory(SMALL, lora_rank=None, frozen_bytes=4, sequences=3, length=5)
    assert (memory.weights, memory.gradients, memory.optimizer) == (4000, 4000, 8000)
    # r (in + out): q 8+8, o 8+8, k 8+4, v 8+4, gate, up, down 8+16 each = 128 a layer and rank
    trained = 4 * 2 * 128
    assert SMALL.lora_parameters(4) == trained
    memory = train_memory(SMALL, lora_rank=4, frozen_bytes=2, sequences=1, length=1, reference=True)
    assert memory.weights == 1000 * 2 + 2 * trained * 4
    assert (memory.gradients, memory.optimizer) == (trained * 4, trained * 8)


def test_a_reward_model_has_a_row_for_a_head() -> None:
    memory = train_memory(SMALL, lora_rank=4, frozen_bytes=2, sequences=1, length=1, head=False)
    assert memory.weights == (1000 - 100 * 8) * 2 + (4 * 2 * 128 + 8) * 4
    assert memory.logits == 0


def test_generation_by_hand() -> None:
    memory = generate_memory(SMALL, weight_bytes=4, sequences=6, length=10, scorer=True)
    assert memory.cache == 2 * 2 * 6 * 10 * 1 * 4 * 4
    assert memory.weights == 2 * 1000 * 4
    assert memory.logits == 6 * 100 * (3 * 4 + 8)


@pytest.mark.parametrize(("sharding", "weights", "gradients", "optimizer", "buffers"), [
    ("none", 4000, 4000, 8000, 4000),
    ("zero1", 4000, 4000, (8000 + 8000) / 4, 40),
    ("zero2", 4000, 1000, (8000 + 8000) / 4, 40),
    ("zero3", 1000, 1000, (8000 + 8000) / 4, 2 * 40 + 4000),
    ("zero3-offload", 0, 0, 0, 2 * 40 + 4000),
])
def test_what_a_worker_of_four_holds_by_hand(
    sharding: str, weights: float, gradients: float, optimizer: float, buffers: float
) -> None:
    zero = zero_of(sharding, {"zero_optimization": {"reduce_bucket_size": 10}}, 8)
    made = held(1000, 0, 8, sharding=sharding, workers=4, zero=zero)
    assert (made.weights, made.gradients, made.optimizer, made.buffers) == (weights, gradients, optimizer, buffers)
    assert (made.host > 0) is (sharding == "zero3-offload")


@pytest.mark.parametrize(("sharding", "options", "zero"), [
    ("zero2", {}, Zero()),
    ("zero3", {}, Zero(buckets=2)),
    ("zero3-offload", {}, Zero(buckets=2, optimizer_away=True, weights_away=True)),
    ("zero2", {"reduce_bucket_size": 2e8, "overlap_comm": True, "allgather_bucket_size": 1}, Zero(200_000_000, 2)),
    ("zero2", {"offload_optimizer": {"device": "cpu"}}, Zero(optimizer_away=True)),
    ("zero3", {"overlap_comm": False, "stage3_max_live_parameters": 5}, Zero(live=5)),
    ("zero3-offload", {"offload_param": {"device": "none"}}, Zero(buckets=2, optimizer_away=True)),
    ("zero3", {"reduce_bucket_size": "auto", "stage3_param_persistence_threshold": "auto", "overlap_comm": "auto"},
     Zero(64, 2, LIVE, 80)),
])
def test_deepspeeds_options_are_obeyed_and_its_defaults_are_its_own(
    sharding: str, options: dict[str, object], zero: Zero
) -> None:
    assert zero_of(sharding, {"zero_optimization": options}, 8) == zero


def test_the_defaults_are_those_of_the_installed_deepspeed() -> None:
    config = pytest.importorskip("deepspeed.runtime.zero.config").DeepSpeedZeroConfig
    for stage, sharding in ((2, "zero2"), (3, "zero3")):
        made, ours = config(stage=stage), zero_of(sharding, None, 8)
        assert (made.reduce_bucket_size, made.max_live_parameters, made.param_persistence_threshold) == (
            BUCKET, LIVE, PERSISTENT)
        assert made.overlap_comm is (ours.buckets == 2)


def test_what_is_offloaded_or_kept_whole_by_hand() -> None:
    on_host = held(1000, 0, 8, sharding="zero2", workers=4, zero=Zero(10, optimizer_away=True))
    assert (on_host.weights, on_host.optimizer, on_host.host) == (4000, 0, 16_000 / 4)
    whole = held(1000, 0, 8, sharding="zero3", workers=4, zero=Zero(10), kept=400)
    assert whole.weights == 1000 + 400 * 3 / 4
    gathered = held(1000, 0, 8, sharding="zero3", workers=4, zero=Zero(10, live=5), largest=100)
    assert gathered.buffers == 40 + 400, "the largest module is gathered whatever is said"


@given(bucket=st.integers(1, 10**9), more=st.integers(0, 10**9), live=st.integers(0, 10**9),
       sharding=st.sampled_from(["zero1", "zero2", "zero3", "zero3-offload"]), workers=st.integers(1, 64))
def test_a_larger_bucket_never_takes_less_and_more_workers_never_more(
    bucket: int, more: int, live: int, sharding: str, workers: int
) -> None:
    def total(bucket: int, live: int, workers: int) -> int:
        options = {"zero_optimization": {"reduce_bucket_size": bucket, "stage3_max_live_parameters": live}}
        return train_memory(SMALL, lora_rank=None, frozen_bytes=2, sequences=1, length=64, sharding=sharding,
                            workers=workers, zero=zero_of(sharding, options, SMALL.hidden), on_gpu=True).total

    assert total(bucket, live, workers) <= total(bucket + more, live, workers)
    assert total(bucket, live, workers) <= total(bucket, live + more, workers)
    if workers > 1:  # one worker has no NCCL
        assert total(bucket, live, 2 * workers) <= total(bucket, live, workers)


def test_options_of_a_profile_reach_the_estimate() -> None:
    compute = {"compute.workers=8", "compute.sharding=zero2", "compute.deepspeed=configs/deepspeed/zero2.yaml"}
    options = load_profile("multi-gpu", sorted(compute)).compute.deepspeed
    assert zero_of("zero2", options, 8) == Zero(200_000_000, 2)
    stage = Sft.model_validate({"name": "sft", "kind": "train", "method": "sft", "model": "base", "rows": ("d/train",),
                                "strategy": {"kind": "full"}, "dtype": "bfloat16"})
    plain, told = (memory_of(stage, SMALL, Device(True, 8, "zero2", given), rows=1, length=8)
                   for given in (None, options))
    assert (plain.buffers, told.buffers) == (4 * BUCKET, 2 * 4 * 200_000_000)


def test_disk_holds_one_checkpoint_more_than_are_kept() -> None:
    made = beside(1000, 500, 8, keep=2, on_gpu=False)
    assert made.disk == 3 * (4000 + 8000) + 4000
    assert beside(1000, 500, 8, keep=2, on_gpu=False, best=True).disk == made.disk + 4000


def test_operations_by_hand() -> None:
    assert forward_flops(SMALL, tokens=10, length=5) == 10 * (2000 + 2 * 2 * 8 * 5)
    one = forward_flops(SMALL, 10, 5)
    assert train_flops(SMALL, 10, 5, lora=False) == 3 * one
    assert train_flops(SMALL, 10, 5, lora=True) == 2 * one
    assert train_flops(SMALL, 10, 5, lora=True, checkpointing=True) == 3 * one


def test_against_what_was_measured() -> None:
    """SmolLM2-135M in float32 on two cores: LoRA (8 x 128 tokens) 224 tokens/s and full training 176, forward 671,
    sampling 12 tokens/s alone and 135 at batch 128; the figures imply one rate, which the formulae must share."""
    rate = 671 * forward_flops(SMOLLM, 1, 128)
    lora = rate / train_flops(SMOLLM, 1, 128, lora=True, checkpointing=True)
    full = rate / train_flops(SMOLLM, 1, 128, lora=False, checkpointing=True)
    assert lora == pytest.approx(224, rel=0.1)
    assert full == pytest.approx(176, rel=0.1)
    rates = Rates(flops=rate, bandwidth=12 * SMOLLM.parameters * 4)
    alone = generate_seconds(SMOLLM, rates, prompts=1, batch=1, answers=1, prompt_tokens=1, new_tokens=100,
                             weight_bytes=4)
    assert 100 / alone == pytest.approx(12, rel=0.1)
    many = generate_seconds(SMOLLM, rates, prompts=128, batch=128, answers=1, prompt_tokens=100, new_tokens=40,
                            weight_bytes=4)
    assert 135 < 128 * 40 / many < 671, "estimates are below what the processor can do, and no slower than measured"


@given(st.integers(1, 64), st.integers(1, 512), st.booleans(), st.booleans())
def test_memory_grows_with_what_it_is_for(batch: int, length: int, head: bool, checkpointing: bool) -> None:
    def total(batch: int, length: int, rank: int | None) -> int:
        return train_memory(SMOLLM, lora_rank=rank, frozen_bytes=4, sequences=batch, length=length, head=head,
                            checkpointing=checkpointing).total

    assert total(batch, length, 16) < total(batch + 1, length, 16)
    assert total(batch, length, 16) < total(batch, length + 1, 16)
    assert total(batch, length, 16) < total(batch, length, 32) < total(batch, length, None)


@given(st.integers(1, 64), st.integers(1, 512))
def test_checkpointing_trades_memory_for_time(batch: int, length: int) -> None:
    # with a reward model, whose highest moment is in the layers
    kept, again = (train_memory(SMOLLM, lora_rank=16, frozen_bytes=4, sequences=batch, length=length, head=False,
                                checkpointing=on).activations for on in (False, True))
    assert again < kept
    assert (train_flops(SMOLLM, 100, length, lora=True, checkpointing=True)
            > train_flops(SMOLLM, 100, length, lora=True))


def test_a_machine_has_rates() -> None:
    rates = measure_rates(0.05)
    assert 1e8 < rates.flops < 1e15
    assert 1e8 < rates.bandwidth < 1e13
