"""Tokens that an import adds: rows in the model, one id in the tokenizer, and a training that learns them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.config import parse_run
from alignment.errors import ConfigErrors, ModelError
from tests.models import imported

TOKENS = ("<|bof|>", "<|eof|>", "<|eot|>")
TINY = {"source": "tiny", "hidden_size": 16, "layers": 1, "heads": 2, "vocab_size": 320}


def test_each_token_is_one_id_with_the_mean_of_the_embeddings(tmp_path: Path) -> None:
    imported(tmp_path / "plain", TINY)
    outcome = imported(tmp_path / "more", TINY, template="retrieval", new_tokens=TOKENS)
    assert outcome.facts["new_tokens"] == list(TOKENS)
    folder = tmp_path / "more" / "out" / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "plain" / "out" / "model")
    ids = tokenizer("".join(TOKENS), add_special_tokens=False)["input_ids"]
    assert ids == [tokenizer.convert_tokens_to_ids(token) for token in TOKENS]
    assert min(ids) >= before.config.vocab_size
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    for name in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(before, name)().weight, getattr(model, name)().weight
        assert torch.equal(new[: len(old)], old)
        assert torch.allclose(new[ids], old.mean(dim=0).expand(3, -1), atol=1e-6)
    assert tokenizer.eos_token == "<|eot|>"
    assert model.generation_config.eos_token_id[-1] == ids[-1]


def test_tokens_that_are_there_already_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tokens of this name already") as error:
        imported(tmp_path, TINY, new_tokens=("<|im_end|>", "<|eot|>"))
    assert error.value.found == ["<|im_end|>"]


@pytest.mark.parametrize(("base", "expected"), [
    ({"new_tokens": []}, "new_tokens"), ({"new_tokens": ["a", "a"]}, "one twice"), ({"new_tokens": [" "]}, "empty"),
])
def test_texts_that_make_no_tokens_are_refused(base: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigErrors, match=expected):
        parse_run(json.dumps({"name": "t", "stages": [{"name": "base", "kind": "import", "model": TINY, **base}]}))
