"""Models of random weights in published shapes, and rows of a given length, for both sides of a comparison alike."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

WORDS = ("harbour", "wind", "north", "child", "colour", "sail", "brown", "village", "teacher", "bridge", "river",
         "flood", "country", "city", "write", "reason", "cheap", "better", "bread", "lemons")


@dataclass(frozen=True)
class Shape:
    """A decoder, and how much of it a part runs.

    Attributes:
        config: of a LlamaConfig.
        lengths: tokens of a training row.
        rows: in one optimizer step, all in one forward pass.
        steps: timed ones; two more come before them.
        answers: prompts, answers to each, prompt and new tokens of sampling.
    """

    config: dict[str, Any]
    lengths: tuple[int, ...]
    rows: int
    steps: int
    answers: tuple[int, int, int, int]


SHAPES = {
    # meta-llama/Llama-3.1-8B's config.json
    "llama-8b": Shape(
        {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
         "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 500000.0},
        (2048, 4096), 4, 6, (16, 4, 512, 128)),
    # Qwen/Qwen2.5-1.5B's sizes
    "1.5b": Shape(
        {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
         "intermediate_size": 8960, "vocab_size": 151936, "max_position_embeddings": 32768,
         "tie_word_embeddings": True},
        (2048, 4096), 8, 6, (32, 4, 512, 128)),
    "tiny": Shape(
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 128, "vocab_size": 1024, "max_position_embeddings": 2048},
        (128,), 4, 4, (4, 2, 32, 8)),
}


def make_model(shape: Shape, tokenizer: Path, folder: Path, seed: int = 0) -> None:
    """Weights drawn from N(0, 0.02) in bfloat16, with the tokenizer of a model folder, which has fewer tokens."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = LlamaConfig(**shape.config, bos_token_id=1, eos_token_id=2, pad_token_id=0, dtype="bfloat16")
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device=device)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0) if "norm" in name else weight.normal_(0.0, config.initializer_range)
    model.tie_weights()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def write_rows(tokenizer: Path, file: Path, count: int, length: int, answer: int, *, pairs: bool) -> None:
    """Rows of `length` tokens or a few less as the chat template renders them, `answer` of them the assistant's.

    Args:
        pairs: preference rows, whose two answers are as long as each other; else prompt and completion.
    """
    encoder, chance = AutoTokenizer.from_pretrained(tokenizer), random.Random(length)

    def text(tokens: int) -> str:
        words: list[str] = []
        while len(encoder(" ".join(words))["input_ids"]) < tokens:
            words += chance.choices(WORDS, k=max(1, tokens // 16))
        while len(encoder(" ".join(words))["input_ids"]) > tokens:
            words.pop()
        return " ".join(words)

    around = len(encoder.apply_chat_template(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], return_dict=True)["input_ids"])
    rows = []
    for _ in range(count):
        prompt = [{"role": "user", "content": text(length - answer - around)}]
        answers = [[{"role": "assistant", "content": text(answer)}] for _ in range(2)]
        rows.append({"prompt": prompt, **({"chosen": answers[0], "rejected": answers[1]} if pairs else
                                          {"completion": answers[0]})})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
