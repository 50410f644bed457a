"""Tokenizers for template tests: a small one with the special tokens of a family, and the makers' own."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

QWEN_SPECIAL = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SENTENCEPIECE, _MISTRAL = "sentencepiece", ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
_CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
FAMILIES: dict[str, tuple[list[str], str | None, str, str]] = {
    "chatml": (_CHATML, None, "<|im_end|>", "byte-level"),
    "qwen": (_CHATML, None, "<|im_end|>", "byte-level"),
    "smollm": (_CHATML, None, "<|im_end|>", "byte-level"),
    "llama2": (["<unk>", "<s>", "</s>"], "<s>", "</s>", _SENTENCEPIECE),
    "mistral-v1": (["<unk>", "<s>", "</s>"], "<s>", "</s>", _SENTENCEPIECE),
    "mistral": (_MISTRAL, "<s>", "</s>", _SENTENCEPIECE),
    "mistral-tekken": (_MISTRAL, "<s>", "</s>", "byte-level"),
    "mistral-v7": ([*_MISTRAL, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"], "<s>", "</s>", _SENTENCEPIECE),
    "mistral-v7-tekken": ([*_MISTRAL, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"], "<s>", "</s>", "byte-level"),
    "alpaca": (["<unk>", "<s>", "</s>"], "<s>", "</s>", "byte-level"),
    "retrieval": (["<|endoftext|>", "<|bof|>", "<|eof|>", "<|eot|>"], None, "<|eot|>", "byte-level"),
    "llama3": (["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"], "<|begin_of_text|>",
               "<|eot_id|>", "byte-level"),
}
"""Shipped template -> special tokens, BOS (the tokenizer adds it to plain text), end token, how it treats blanks."""
_TEXT = "user\n\nassistant\n\n\n  two   lines.\n ### Response:\n\n### Instruction:\n yes no maybe \n\n\n\n"


def small(name: str) -> Any:
    """A tokenizer with a family's special tokens, byte-level (it merges newlines and blanks as Qwen's and Llama 3's
    do) or as SentencePiece's (a blank before a text, bytes for letters that it does not know)."""
    special, bos, eos, kind = FAMILIES[name]
    return made(special, bos, eos, kind)


def made(special: list[str], bos: str | None, eos: str, kind: str, plain: tuple[str, ...] = ()) -> Any:
    """A small tokenizer; `plain` are added tokens that are not special (Qwen3's <think>)."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = (_sentencepiece if kind == _SENTENCEPIECE else _byte_level)(special)
    tokenizer.add_tokens(list(plain))
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)


def _byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([_TEXT] * 4, trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ))
    return tokenizer


def _sentencepiece(special: list[str]) -> Tokenizer:
    """As transformers makes it of a SentencePiece model (`LlamaTokenizer`, legacy: false)."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator([_TEXT.replace("\n", " ")] * 4, trainers.BpeTrainer(
        vocab_size=120, initial_alphabet=[chr(code) for code in range(33, 127)], show_progress=False,
    ))
    learned = json.loads(trained.to_str())["model"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    tokenizer = Tokenizer(models.BPE(
        {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}, [tuple(m) for m in learned["merges"]],
        unk_token=special[0], byte_fallback=True, fuse_unk=True,
    ))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(special)
    return tokenizer


def package_file(package: str, *parts: str) -> Path:
    """A file that an installed package carries; skips the test where it is missing."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"package {package} is not installed")
    path = Path(next(iter(spec.submodule_search_locations))).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"package {package} does not carry {'/'.join(parts)}")
    return path


def qwen() -> Any:
    """A transformers tokenizer over the real Qwen vocabulary."""
    pytest.importorskip("tiktoken")
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    path = package_file("dashscope", "resources", "qwen.tiktoken")
    made = TikTokenConverter(str(path), pattern=QWEN_PATTERN, extra_special_tokens=list(QWEN_SPECIAL)).converted()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>")
