"""Calls are read back from what a model said: as they are written, and with a reason where they are none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings

from alignment import templates
from alignment.errors import ModelError
from alignment.records.importers.retrieval import call_turn
from alignment.templates.calls import CUT, MORE, SEVERAL, UNMARKED, UNREADABLE, Spoken, read_call
from tests.templates.test_retrieval import TEXT, tokenizer
from tests.templates.tokenizers import made, small

QUESTION = [{"role": "user", "content": "How deep is it?"}]
QWEN = ("{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}{%- if m.role == 'assistant' %}"
        "{%- generation %}{{- m.content }}{%- for c in m.tool_calls or [] %}{{- '\\n<tool_call>\\n{\"name\": \"' + "
        "c.function.name + '\", \"arguments\": ' + (c.function.arguments | tojson) + '}\\n</tool_call>' }}{%- endfor %}"
        "{{- '<|im_end|>' }}{%- endgeneration %}{%- else %}{{- m.content + '<|im_end|>' }}{%- endif %}{{- '\\n' }}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}")


def spoken(tok: Any, text: str, finished: bool = True) -> Spoken:
    """What a model said by these tokens; marks are tokens, as they are written."""
    return templates.read_turn(tok, tok(text, add_special_tokens=False)["input_ids"], finished=finished)


@settings(max_examples=40, deadline=None)
@given(said=TEXT, query=TEXT)
@pytest.mark.parametrize("kind", ["small", "byte-level"])
def test_what_a_template_writes_is_read_back(kind: str, said: str, query: str) -> None:
    tok = tokenizer(kind)
    for beside in ("", said.strip()):
        _, ids = templates.encode_completion(tok, QUESTION, call_turn(beside, query))
        assert templates.read_turn(tok, ids[:-1], finished=True) == Spoken(beside, "retrieve", {"query": query})


def test_calls_of_another_template_are_read_by_the_marks_that_it_writes() -> None:
    tok = made(["<|im_start|>", "<|im_end|>"], None, "<|im_end|>", "byte-level", ("<tool_call>", "</tool_call>"))
    tok.chat_template = QWEN
    _, ids = templates.encode_completion(tok, QUESTION, call_turn("Wait.", "How deep?"))
    assert templates.read_turn(tok, ids[:-1], finished=True) == Spoken("Wait.", "retrieve", {"query": "How deep?"})


CALL = '<|bof|>retrieve:\n{"query": "x"}<|eof|>'


@pytest.mark.parametrize(("text", "finished", "problem"), [
    ('<|bof|>retrieve:\n{"query": "x', False, CUT),
    ('<|bof|>retrieve:\n{"query": "x"}', True, UNREADABLE),
    ('retrieve:\n{"query": "x"}<|eof|>', True, UNREADABLE),
    (f'<|eof|>{CALL.removesuffix("<|eof|>")}', True, UNREADABLE),
    ("<|bof|>retrieve:\n{'query': 'x'}<|eof|>", True, UNREADABLE),
    ('<|bof|>retrieve:\n["x"]<|eof|>', True, UNREADABLE),
    ('<|bof|>{"query": "x"}<|eof|>', True, UNREADABLE),
    ('<|bof|>retrieve:\n{"query": "\\ud83d"}<|eof|>', True, UNREADABLE),
    (f'<|bof|>retrieve:\n{"[" * 3000}<|eof|>', True, UNREADABLE),
    (CALL + CALL, True, SEVERAL),
    (f"<|eof|>{CALL.removeprefix('<|bof|>')}", True, UNREADABLE),
    (f"{CALL}<|eof|>", True, UNREADABLE),
    (f"{CALL} It is deep.", True, MORE),
    ('It is.\nretrieve:\n{"query": "x"}', True, UNMARKED),
])
def test_what_looks_like_a_call_and_is_none_is_no_answer(text: str, finished: bool, problem: str) -> None:
    read = spoken(tokenizer(), text, finished)
    assert (read.problem, read.name) == (problem, None)
    assert read.text.strip() == text.strip(), "what was said, marks and all"


def test_a_cut_answer_and_a_text_about_calls_stay_answers() -> None:
    tok = tokenizer()
    for text, finished in (("Nine met", False), ("They call it retrieve: a pity.", True), ("", True)):
        assert spoken(tok, text, finished) == Spoken(text)
    assert spoken(tok, f"Nine. {CALL}", False) == Spoken("Nine.", "retrieve", {"query": "x"}), "a whole call is not cut"


@pytest.mark.parametrize("text", ['{"name": "a", "arguments": {"query": "x"}}', 'a: {"query": "x"}',
                                  '{"name": "a", "parameters": {"query": "x"}}',
                                  json.dumps({"name": "a", "arguments": '{"query": "x"}'})])
def test_a_calls_text_is_read_in_each_of_its_forms(text: str) -> None:
    assert read_call(text) == ("a", {"query": "x"})


@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_a_template_without_calls_is_refused(name: str) -> None:
    tok = small(name)
    tok.chat_template = templates.fitted(name, tok)
    with pytest.raises(ModelError, match="the chat template has no calls") as error:
        templates.call_marks(tok)
    assert "template: retrieval" in str(error.value.expected)


def test_a_template_whose_calls_have_no_marks_is_refused() -> None:
    tok = made(["<|im_start|>", "<|im_end|>"], None, "<|im_end|>", "byte-level")
    tok.chat_template = QWEN
    with pytest.raises(ModelError, match="do not stand between two tokens"):
        templates.call_marks(tok)
