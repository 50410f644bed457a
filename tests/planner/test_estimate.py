"""The formulae: against numbers worked out by hand, and how they must move when something grows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.planner.estimate import (
    Rates,
    forward_flops,
    generate_memory,
    generate_seconds,
    measure_rates,
    train_flops,
    train_memory,
)
from alignment.planner.sharing import beside, held
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
    made = held(1000, 0, 8, sharding=sharding, workers=4, bucket=10)
    assert (made.weights, made.gradients, made.optimizer, made.buffers) == (weights, gradients, optimizer, buffers)
    assert (made.host > 0) is (sharding == "zero3-offload")


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
