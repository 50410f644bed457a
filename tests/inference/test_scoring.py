"""Batched, prefix-sharing scores against one plain forward pass per item."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerBase

from alignment.inference.loading import load_tokenizer
from alignment.inference.requests import Item
from alignment.inference.scoring import RewardScorer, log_probs
from alignment.templates import encode_completion


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny_model_dir, side="right")


def model_of(folder: Path, kind: Any) -> Any:
    torch.manual_seed(2)
    config = AutoConfig.from_pretrained(folder)
    config.update({"num_key_value_heads": 2, "initializer_range": 0.2, "num_labels": 1})
    return kind(config).eval()


@pytest.fixture(scope="module")
def items() -> list[Item]:
    """Some prompts come several times, not always one after the other; lengths differ; one completion is empty."""
    chance = random.Random(4)
    prompts = ["Hi", "What colour is the boat?", "Say which lamp is lit, and why it is lit at this hour."]
    made: list[Item] = [
        ([{"role": "user", "content": chance.choice(prompts)}], " ".join(["red", "lamp"] * chance.randrange(1, 9)))
        for _ in range(14)
    ]
    return [*made, ([{"role": "user", "content": "Hi"}], "")]


@pytest.mark.parametrize("batch_tokens", [1, 200, 100_000])
def test_log_probs_equal_a_plain_forward(
    tiny_model_dir: Path, tokenizer: PreTrainedTokenizerBase, items: list[Item], batch_tokens: int
) -> None:
    model = model_of(tiny_model_dir, LlamaForCausalLM)
    got = log_probs(model, tokenizer, items, batch_tokens)
    for (prompt, completion), (total, count) in zip(items, got, strict=True):
        before, said = encode_completion(tokenizer, prompt, completion)
        with torch.inference_mode():
            logits = model(torch.tensor([[*before, *said]])).logits[0, len(before) - 1 : -1]
        wanted = logits.log_softmax(-1)[range(len(said)), said].sum()
        assert count == len(said)
        assert total == pytest.approx(float(wanted), abs=1e-3)


@pytest.mark.parametrize("batch_tokens", [1, 200, 100_000])
def test_rewards_stand_at_the_last_real_token(
    tiny_model_dir: Path, tokenizer: PreTrainedTokenizerBase, items: list[Item], batch_tokens: int
) -> None:
    model = model_of(tiny_model_dir, LlamaForSequenceClassification)
    got = RewardScorer(model, tokenizer).score(items, batch_tokens)
    for (prompt, completion), score in zip(items, got, strict=True):
        before, said = encode_completion(tokenizer, prompt, completion)
        with torch.inference_mode():
            states = model.model(torch.tensor([[*before, *said]])).last_hidden_state
            wanted = model.score(states[0, -1])
            library = model(torch.tensor([[*before, *said]])).logits[0, 0]  # without padding it reads the same place
        assert score == pytest.approx(float(wanted), abs=1e-4)
        assert score == pytest.approx(float(library), abs=1e-4)
    assert len({round(score, 3) for score in got}) > 5


def test_shares_prompts_and_keeps_to_the_budget(
    tiny_model_dir: Path, tokenizer: PreTrainedTokenizerBase, items: list[Item]
) -> None:
    model = model_of(tiny_model_dir, LlamaForSequenceClassification)
    shapes: list[tuple[int, ...]] = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        RewardScorer(model, tokenizer).score(items, 100_000)
        assert [rows for rows, _ in shapes] == [3, 15]
        shapes.clear()
        RewardScorer(model, tokenizer).score(items, 300)
    finally:
        hook.remove()
    prefills, rests = shapes[::2], shapes[1::2]
    assert len(rests) > 1
    assert sum(rows for rows, _ in rests) == 15
    for (_, before), (rows, own) in zip(prefills, rests, strict=True):
        assert rows == 1 or rows * (own + before) <= 300


def test_nan_scores_come_back_as_nan(
    tiny_model_dir: Path, tokenizer: PreTrainedTokenizerBase, items: list[Item]
) -> None:
    model = model_of(tiny_model_dir, LlamaForSequenceClassification)
    model.score.weight.data[0, 0] = float("nan")
    assert all(math.isnan(score) for score in RewardScorer(model, tokenizer).score(items))
    assert RewardScorer(model, tokenizer).score([]) == []


def test_what_is_over_the_context_length_has_no_score_and_leaves_the_others_theirs(
    tiny_model_dir: Path, tokenizer: PreTrainedTokenizerBase, items: list[Item]
) -> None:
    lengths = [len(before) + len(said) for before, said in (encode_completion(tokenizer, *item) for item in items)]
    limit = sorted(lengths)[len(items) // 2]
    model = model_of(tiny_model_dir, LlamaForCausalLM)
    whole, cut = log_probs(model, tokenizer, items), log_probs(model, tokenizer, items, context_length=limit)
    judge = model_of(tiny_model_dir, LlamaForSequenceClassification)
    scores = RewardScorer(judge, tokenizer, limit).score(items)
    assert 0 < sum(length > limit for length in lengths) < len(items)
    for length, (total, tokens), (kept, same), score in zip(lengths, whole, cut, scores, strict=True):
        assert tokens == same
        assert math.isnan(kept) is math.isnan(score) is (length > limit)
        assert length > limit or kept == pytest.approx(total, abs=1e-3)
