"""An answer that grows: its pieces are the whole answer, whatever its tokens are, and none begins within a letter."""

from __future__ import annotations

import functools
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment import templates
from alignment.templates import Growing, decode_answer
from alignment.words import last_letter
from tests.templates.tokenizers import FAMILIES, made, small

SCRIPTS = "ab yes\n\r\n  .é東你好\u0301नमस्ते ខ្មែរ น้ำ 👩\u200d👩\u200d👧🏽🇩🇪🇫🇷\ufffd"
TEXT = st.text(st.sampled_from(SCRIPTS), max_size=24)
NAMES = [*templates.names(), "thinking"]


@functools.cache
def ready(name: str) -> Any:
    if name == "thinking":
        tokenizer = made(FAMILIES["qwen"][0], None, "<|im_end|>", "byte-level", ("<think>", "</think>"))
        tokenizer.chat_template = templates.source("chatml").replace(
            "{%- generation %}", "{%- generation %}{{- '<think>\\n\\n</think>\\n\\n' }}")
        return tokenizer
    tokenizer = small(name)
    tokenizer.chat_template = templates.fitted(name, tokenizer)
    return tokenizer


def grown(tokenizer: Any, ids: list[int], finished: bool) -> list[str]:
    growing = Growing(tokenizer)
    return [*(growing.add(token) for token in ids), growing.end(finished=finished)]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(text=TEXT, finished=st.booleans(), lead=st.sampled_from(["", " ", "<think>\n\n</think>\n\n", "<think>", "\n"]))
def test_pieces_of_an_answer_are_the_whole_answer_and_cut_no_letter(
    name: str, text: str, finished: bool, lead: str
) -> None:
    tokenizer = ready(name)
    ids = tokenizer(lead + text, add_special_tokens=False)["input_ids"]
    pieces = grown(tokenizer, ids, finished)
    assert "".join(pieces) == decode_answer(tokenizer, ids, finished=finished)
    said = "".join(pieces)
    place = 0
    for piece in pieces:
        if piece and place:
            assert last_letter(said[: place + 1]) == place, (pieces, place)
        place += len(piece)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(data=st.data(), finished=st.booleans())
def test_any_tokens_in_any_order_grow_to_what_they_are_together(name: str, data: st.DataObject, finished: bool) -> None:
    tokenizer = ready(name)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=20))
    assert "".join(grown(tokenizer, ids, finished)) == decode_answer(tokenizer, ids, finished=finished)


def test_an_empty_block_of_reasoning_is_never_given_out() -> None:
    tokenizer = ready("thinking")
    pieces = grown(tokenizer, tokenizer("<think>\n\n</think>\n\nNine metres.")["input_ids"], True)
    assert "".join(pieces) == "Nine metres."
    assert sum(bool(piece) for piece in pieces) > 3


def test_plain_words_come_as_they_are_said() -> None:
    tokenizer = ready("chatml")
    ids = tokenizer("Nine metres deep")["input_ids"]
    pieces = grown(tokenizer, ids, True)
    for place in range(1, len(ids)):  # a letter behind, as its mark may follow
        assert "".join(pieces[:place]) == tokenizer.decode(ids[:place])[:-1]


@pytest.mark.parametrize(("text", "begin"), [
    ("", 0), ("a", 0), ("ab", 1), ("ae\u0301", 1), ("a\r\n", 1), ("क्षि", 2), ("x👩\u200d👧", 1), ("x👍🏽", 1),
    ("x🇩🇪", 1), ("xខ្មែ", 1), ("xน้ำ", 1), ("a ", 1),
])
def test_where_the_last_letter_begins(text: str, begin: int) -> None:
    assert last_letter(text) == begin
    assert not text or unicodedata.category(text[begin]) not in ("Mn", "Mc")
