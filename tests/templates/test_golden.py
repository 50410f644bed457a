"""Ids that the makers' own tools give, against ours."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from alignment import templates
from tests.templates.tokenizers import MISTRAL, QWEN_PATTERN, QWEN_SPECIAL, mistral, package_file, qwen

SYSTEM = {"role": "system", "content": "You are a careful translator."}
TURNS = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of 日本?\n\nBriefly, please."},
]


@pytest.fixture(scope="module")
def qwen_tokenizer():
    tokenizer = qwen()
    tokenizer.chat_template = templates.source("qwen")
    return tokenizer


@pytest.fixture(scope="module")
def qwen_tiktoken():
    tiktoken = pytest.importorskip("tiktoken")
    lines = package_file("dashscope", "resources", "qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    return tiktoken.Encoding("qwen", pat_str=QWEN_PATTERN, mergeable_ranks=ranks, special_tokens=QWEN_SPECIAL)


def test_qwen_prefix_is_the_published_one(qwen_tokenizer) -> None:
    ids = templates.encode_prompt(qwen_tokenizer, [{"role": "user", "content": "hi"}])
    head = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198]
    assert ids[: len(head)] == head
    assert ids[-5:] == [151645, 198, 151644, 77091, 198]


@pytest.mark.parametrize("messages", [TURNS[:1], TURNS, [SYSTEM, *TURNS]])
def test_qwen_ids_are_tiktokens(qwen_tokenizer, qwen_tiktoken, messages) -> None:
    given = messages if messages[0]["role"] == "system" else [
        {"role": "system", "content": "You are a helpful assistant."}, *messages
    ]
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in given) + "<|im_start|>assistant\n"
    wanted = qwen_tiktoken.encode(text, allowed_special="all")
    prompt, answer = templates.encode_completion(qwen_tokenizer, messages, "Tokyo, 東京.")
    assert prompt == templates.encode_prompt(qwen_tokenizer, messages) == wanted
    assert answer == [*qwen_tiktoken.encode("Tokyo, 東京."), 151645]


def test_qwen_stops_on_its_three_special_tokens(qwen_tokenizer) -> None:
    assert templates.stop_ids(qwen_tokenizer) == [151643, 151644, 151645]


def test_an_answer_that_begins_with_a_newline_keeps_the_prompt_whole(qwen_tokenizer, qwen_tiktoken) -> None:
    """Tokenized as one text, the header's newline and the answer's would be one token that no prompt ends with."""
    prompt, answer = templates.encode_completion(qwen_tokenizer, TURNS[:1], "\nParis")
    assert prompt == templates.encode_prompt(qwen_tokenizer, TURNS[:1])
    assert answer == [*qwen_tiktoken.encode("\nParis"), 151645]
    assert qwen_tiktoken.encode("assistant\n\nParis")[1] not in (*prompt, *answer)


@pytest.fixture(scope="module")
def mistral_tokenizer(tmp_path_factory: pytest.TempPathFactory):
    tokenizer = mistral(tmp_path_factory.mktemp("mistral"))
    tokenizer.chat_template = templates.fitted("mistral", tokenizer)
    return tokenizer


@pytest.mark.parametrize("system", [[], [SYSTEM]], ids=["plain", "system"])
@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("last", ["Paris.", "  Two\nlines, ünïcode 東京 🙂 \n", "trailing blanks  "])
def test_mistral_ids_are_mistral_commons(mistral_tokenizer, system, count: int, last: str) -> None:
    pytest.importorskip("mistral_common")
    from mistral_common.protocol.instruct import messages as m
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.protocol.instruct.validator import ValidationMode
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    path = package_file("mistral_common", "data", MISTRAL)
    serving, tuning = (MistralTokenizer.from_file(path, mode) for mode in (ValidationMode.test,
                                                                           ValidationMode.finetuning))
    turns = [*system, *[*TURNS, TURNS[1], TURNS[2]][:count]]
    kinds = {"system": m.SystemMessage, "user": m.UserMessage, "assistant": m.AssistantMessage}

    def wanted(oracle, conversation) -> list[int]:
        made = [kinds[turn["role"]](content=turn["content"]) for turn in conversation]
        return list(oracle.encode_chat_completion(ChatCompletionRequest(messages=made)).tokens)

    prompt, answer = templates.encode_completion(mistral_tokenizer, turns, last)
    assert templates.encode_prompt(mistral_tokenizer, turns) == wanted(serving, turns)
    assert prompt + answer == wanted(tuning, [*turns, {"role": "assistant", "content": last}])
    assert prompt.count(1) == 1
    assert answer[-1] == 2


def test_llama3_renders_as_the_makers_template() -> None:
    path = package_file("trl", "chat_templates", "llama3.jinja")
    from tests.templates.tokenizers import small

    own = Path(path).read_text(encoding="utf-8")
    assert templates.same_rendering(small("llama3"), own, templates.source("llama3"))
    assert not templates.same_rendering(small("llama3"), own, templates.source("chatml"))
