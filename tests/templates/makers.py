"""The makers' own encoders of chats, and transformers tokenizers over the same vocabularies: what ids are held to."""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from alignment.templates import fitted
from tests.templates.tokenizers import QWEN_PATTERN, QWEN_SPECIAL, package_file

MISTRAL = {
    "mistral-v1": "tokenizer.model.v1", "mistral": "mistral_instruct_tokenizer_240323.model.v3",
    "mistral-v7": "mistral_instruct_tokenizer_241114.model.v7", "mistral-tekken": "tekken_240718.json",
    "mistral-v7-tekken": "tekken_240718.json",
}
"""Shipped template -> the vocabulary of its version that mistral-common carries."""


@cache
def tekken_file(version: str, folder: Path) -> Path:
    """Mistral's Tekken vocabulary as of v3, or as v7 names its special tokens (mistral-common's own list)."""
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    path = package_file("mistral_common", "data", MISTRAL["mistral-tekken"])
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["config"]["version"] = version
    marks = [{**token, "token_str": str(getattr(token["token_str"], "value", token["token_str"]))}
             for token in Tekkenizer.DEPRECATED_SPECIAL_TOKENS]
    raw["special_tokens"] = marks if version == "v7" else [
        token for token in marks if token["rank"] < 17]
    file = folder / version / "tekken.json"
    file.parent.mkdir()
    file.write_text(json.dumps(raw), encoding="utf-8")
    return file


def mistral_tokenizer(name: str, folder: Path) -> Any:
    """A transformers tokenizer for a shipped Mistral template, made as an import makes it, with the template on it."""
    pytest.importorskip("sentencepiece")
    import sentencepiece
    from transformers import LlamaTokenizer
    from transformers.integrations.mistral.tokenizer import convert_tekken_tokenizer

    from alignment.inference.bare_tokenizer import as_sentencepiece

    if name.endswith("tekken"):
        tokenizer = convert_tekken_tokenizer(str(tekken_file("v7" if "v7" in name else "v3", folder)), "{{ messages }}")
        from tokenizers import processors

        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    else:
        path = package_file("mistral_common", "data", MISTRAL[name])
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        (folder / "tokenizer.model").write_bytes(path.read_bytes())
        tokenizer = LlamaTokenizer.from_pretrained(folder, add_bos_token=True)  # as in its maker's config
        control = [model.id_to_piece(i) for i in range(model.vocab_size()) if model.is_control(i)]
        tokenizer.add_special_tokens({"extra_special_tokens": [t for t in control if t not in ("<s>", "</s>")]})
        assert len(tokenizer) == model.vocab_size(), "control tokens must keep their ids"
        as_sentencepiece(tokenizer, path, str(folder))
    tokenizer.chat_template = fitted(name, tokenizer)
    return tokenizer


def mistral_ids(name: str, folder: Path, messages: list[dict[str, str]], *, answered: bool) -> list[int]:
    """mistral-common's ids of a conversation, which ends with the assistant's answer or waits for it."""
    pytest.importorskip("mistral_common")
    from mistral_common.protocol.instruct import messages as m
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.protocol.instruct.validator import ValidationMode
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    path = (tekken_file("v7" if "v7" in name else "v3", folder) if name.endswith("tekken")
            else package_file("mistral_common", "data", MISTRAL[name]))
    mode = ValidationMode.finetuning if answered else ValidationMode.test
    kinds = {"system": m.SystemMessage, "user": m.UserMessage, "assistant": m.AssistantMessage}
    made = [kinds[message["role"]](content=message["content"]) for message in messages]
    oracle = _oracle(MistralTokenizer, path, mode)
    return list(oracle.encode_chat_completion(ChatCompletionRequest(messages=made)).tokens)


@cache
def _oracle(kind: Any, path: Path, mode: Any) -> Any:
    return kind.from_file(str(path), mode)


@cache
def qwen_tiktoken() -> Any:
    """Qwen's own vocabulary in tiktoken, as its maker's `tokenization_qwen.py` builds it."""
    tiktoken = pytest.importorskip("tiktoken")
    lines = package_file("dashscope", "resources", "qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    return tiktoken.Encoding("qwen", pat_str=QWEN_PATTERN, mergeable_ranks=ranks, special_tokens=QWEN_SPECIAL)


def qwen_ids(messages: list[dict[str, str]], *, answered: bool) -> list[int]:
    """Ids as `make_context` of Qwen's qwen_generation_utils.py makes them (github.com/QwenLM/Qwen): role and text are
    encoded apart, with no special token allowed in either."""
    oracle = qwen_tiktoken()

    def turn(role: str, content: str) -> list[int]:
        text = [*oracle.encode_ordinary(role), *oracle.encode_ordinary("\n"), *oracle.encode_ordinary(content)]
        return [151644, *text, 151645]

    turns = [turn(message["role"], message["content"]) for message in messages]
    newline = oracle.encode_ordinary("\n")
    ids = [index for made in turns for index in [*made, *newline]]
    return ids[:-1] if answered else [*ids, 151644, *oracle.encode_ordinary("assistant"), *newline]
