"""Tokenizers for template tests: a small one with the special tokens of a family, and the makers' own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

QWEN_SPECIAL = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
MISTRAL = "mistral_instruct_tokenizer_240323.model.v3"
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FAMILIES: dict[str, tuple[list[str], str | None, str]] = {
    "chatml": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>"),
    "qwen": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>"),
    "smollm": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>"),
    "llama2": (["<unk>", "<s>", "</s>"], "<s>", "</s>"),
    "mistral": (["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], "<s>", "</s>"),
    "alpaca": (["<unk>", "<s>", "</s>"], "<s>", "</s>"),
    "llama3": (["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"], "<|begin_of_text|>",
               "<|eot_id|>"),
}
"""Template -> special tokens, BOS (the tokenizer adds it to plain text), end token."""


def small(name: str) -> Any:
    """Byte-level BPE with the family's special tokens, which merges newlines and blanks as Qwen's and Llama 3's do."""
    from transformers import PreTrainedTokenizerFast

    special, bos, eos = FAMILIES[name]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = "user\n\nassistant\n\n\n  two   lines.\n ### Response:\n\n### Instruction:\n yes no maybe \n\n\n\n"
    tokenizer.train_from_iterator([text] * 4, trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ))
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)


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


def mistral(folder: Path) -> Any:
    """A transformers tokenizer over Mistral's SentencePiece model v3."""
    pytest.importorskip("sentencepiece")
    import sentencepiece
    from transformers import LlamaTokenizer

    path = package_file("mistral_common", "data", MISTRAL)
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    (folder / "tokenizer.model").write_bytes(path.read_bytes())
    tokenizer = LlamaTokenizer.from_pretrained(folder, add_bos_token=True)  # as in its maker's config
    control = [model.id_to_piece(i) for i in range(model.vocab_size()) if model.is_control(i)]
    tokenizer.add_special_tokens({"extra_special_tokens": [t for t in control if t not in ("<s>", "</s>")]})
    assert len(tokenizer) == model.vocab_size(), "control tokens must keep their ids"
    return tokenizer
