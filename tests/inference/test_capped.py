"""Gemma 2's scores are capped wherever it computes: transformers' default attention leaves its cap out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact, Store
from tests.models import published
from tests.training.families import family
from tests.training.made import FULL, context, preferred, published_rows


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("capped")
    return family("gemma2", Store(str(folder / "store")), folder / "made", tie_word_embeddings=False,
                  initializer_range=0.5)


def loaded(artifact: Artifact, attention: str | None = None) -> Any:
    import torch

    from alignment.inference.loading import load_policy

    model = load_policy(artifact, dtype=torch.float32, device="cpu")
    if attention is not None:
        model.set_attn_implementation(attention)
    return model


def batch() -> dict[str, Any]:
    """Rows of 30, 19 and 7 tokens, padded on the left, where windows are 16."""
    import torch

    ids = torch.randint(5, 384, (3, 30), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(30)[None] >= torch.tensor([0, 11, 23])[:, None]
    return {"input_ids": ids, "attention_mask": mask.long(), "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


@pytest.mark.parametrize("block", [7, 256])
def test_logits_and_gradients_are_those_of_eager_attention(
    gemma: Artifact, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from alignment.inference import capped

    monkeypatch.setattr(capped, "BLOCK", block)
    given, found = batch(), {}
    for name in (None, "eager", "sdpa"):
        model = loaded(gemma, name).requires_grad_(True).train()
        logits = model(**given, use_cache=False).logits[given["attention_mask"].bool()]
        logits.square().mean().backward()
        found[name] = [logits.detach(), *(parameter.grad for parameter in model.parameters())]
    assert loaded(gemma).config._attn_implementation == capped.CAPPED
    for own, eager in zip(found[None], found["eager"], strict=True):
        assert torch.allclose(own, eager, atol=1e-5 * float(eager.abs().max()))
    assert (found[None][0] - found["sdpa"][0]).abs().max() > 0.1, "what would be computed without a word"


def test_it_keeps_no_scores_for_the_backward_pass(gemma: Artifact) -> None:
    import torch

    model = loaded(gemma).requires_grad_(True).train()
    kept: list[torch.Size] = []
    ids = torch.randint(5, 384, (1, 96), generator=torch.Generator().manual_seed(3))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        model(input_ids=ids, use_cache=False)
    assert kept
    assert not [shape for shape in kept if tuple(shape[-2:]) == (96, 96) and shape[-3] > 1]


def test_answers_of_a_batch_are_those_of_eager_attention_alone(gemma: Artifact) -> None:
    """The engine's cache, padding and selections beside transformers' own generation."""
    import torch

    from alignment.inference.engine import Engine
    from alignment.inference.loading import load_tokenizer
    from alignment.inference.requests import Draw, Request
    from alignment.templates import encode_prompt

    tokenizer = load_tokenizer(gemma.path() / "model", side="left")
    engine, prompts = Engine(loaded(gemma), tokenizer), ["Say how many boats there are in the harbour.", "Hm?", "Why?"]
    messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
    draw = Draw(temperature=0.0, top_p=1.0, top_k=0, repetition_penalty=1.0, max_new_tokens=12, seed=0)
    found = engine.generate([Request(text, asked, (draw,)) for text, asked in zip(prompts, messages, strict=True)])

    def generated(attention: str) -> list[list[int]]:
        model, answers = loaded(gemma, attention), []
        for asked in messages:
            ids = torch.tensor([encode_prompt(tokenizer, asked)])
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12,
                                 eos_token_id=sorted(engine.stops), pad_token_id=tokenizer.pad_token_id)
            answers.append([one for one in out[0, ids.shape[1]:].tolist() if one not in engine.stops])
        return answers

    assert [own[0].ids for own in found] == generated("eager")
    assert generated("eager") != generated("sdpa")


def test_a_model_that_was_trained_whole_says_nothing_of_it_in_its_config(gemma: Artifact, tmp_path: Path) -> None:
    from alignment.inference.capped import CAPPED
    from alignment.training.fit import fit

    store = Store(gemma.store.url)
    rows = published_rows(store, tmp_path / "rows", "data-333333333333",
                          train=[preferred(f"p{index}", "How many?", "two", "nine") for index in range(4)])
    for method in ("sft", "reward"):
        of = context(store, tmp_path / method, gemma, rows, method, batch_size=4, micro_batch_size=4, strategy=FULL,
                     learning_rate=1e-3, trl={"max_steps": 1})
        fit(of)
        config = json.loads((of.out / "model" / "config.json").read_text(encoding="utf-8"))
        assert CAPPED not in json.dumps(config)
        assert config["attn_logit_softcapping"] == 1.0
        if method == "sft":
            assert loaded(published(store, of.key, of.out)).config._attn_implementation == CAPPED
