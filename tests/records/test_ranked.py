"""Preference sets of their own formats: hh-rlhf transcripts, paired StackExchange answers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.records import Message, Record
from alignment.records.importers import FORMATS
from alignment.records.importers.ranked import (
    hh_transcript,
    join_transcript,
    split_transcript,
    stack_exchange_paired,
)
from tests.records.drawn import GOOD, assistant, quick, slug_of, texts, user, without, words

SPLIT = [
    ("\n\nHuman: Hi\n\nAssistant: Yes.", [user("Hi"), assistant("Yes.")]),
    ("Human: Hi\n\nAssistant: Yes.", [user("Hi"), assistant("Yes.")]),
    ("\n  \tHuman: Hi", [user("Hi")]),
    ("\n\nAssistant: Yes.", [assistant("Yes.")]),
    ("\n\nHuman:Hi\n\nAssistant:", [user("Hi"), assistant("")]),
    ("\n\nHuman: a\n\nb\nHuman: c\n\nAssistant: d", [user("a\n\nb\nHuman: c"), assistant("d")]),
    ("\n\nHuman: a \n\n\n\nAssistant:  b\n", [user("a"), assistant("b")]),
    ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", [user("a"), user("b"), assistant("c")]),
    ("\n\nHuman: Is Human: a name?\n\nAssistant: No: Human.", [user("Is Human: a name?"), assistant("No: Human.")]),
    ("\n\nHuman: 你好\u2028\n\nAssistant: x", [user("你好"), assistant("x")]),
]


@pytest.mark.parametrize(("transcript", "turns"), SPLIT)
def test_a_transcript_is_split_at_its_speakers(transcript: str, turns: list[Message]) -> None:
    assert split_transcript(transcript) == turns


@pytest.mark.parametrize("transcript", ["", " ", "Hello", "Hello\n\nHuman: Hi", "\n\nHello\n\nHuman: Hi", "human: Hi",
                                        "\n\nSystem: x"])  # fmt: skip
def test_a_transcript_begins_with_a_speaker(transcript: str) -> None:
    assert slug_of(lambda: split_transcript(transcript)) == "broken-transcript"


def test_turns_are_joined_as_bai_et_al_wrote_them() -> None:
    assert join_transcript([user("Hi"), assistant("Yes.")]) == "\n\nHuman: Hi\n\nAssistant: Yes."
    assert join_transcript([]) == ""


spoken = texts.map(str.strip).filter(lambda text: "Human:" not in text and "Assistant:" not in text)
turn_lists = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": spoken}), min_size=1, max_size=5
)


@quick
@given(turn_lists)
def test_splitting_undoes_joining(turns: list[Message]) -> None:
    assert split_transcript(join_transcript(turns)) == turns


@quick
@given(turn_lists, st.sampled_from(["", "\n", " \n\n"]))
def test_a_transcript_joined_again_is_a_fixed_point(turns: list[Message], tail: str) -> None:
    once = join_transcript(split_transcript(join_transcript(turns) + tail))
    assert join_transcript(split_transcript(once)) == once


def test_hh_rows_share_their_turns_but_the_last() -> None:
    head = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Sing.\n\nAssistant: "
    record = hh_transcript({"chosen": head + "La la.", "rejected": head + "No.\n", "id": 4, "group": "g"})
    assert record == Record("4", "preference", [user("Hi"), assistant("Yes?"), user("Sing.")], "La la.", "No.",
                            meta={"group": "g"})  # fmt: skip


HH_BAD = [
    ({"chosen": None}, "missing-field"),
    ({"rejected": 3}, "wrong-type"),
    ({"rejected": [user("Hi"), assistant("No.")]}, "wrong-type"),
    ({"chosen": "Yes."}, "broken-transcript"),
    ({"chosen": "\n\nHuman: Hi"}, "last-not-assistant"),
    ({"rejected": "\n\nHuman: Hi\n\nAssistant: No.\n\nHuman: Why?"}, "last-not-assistant"),
    ({"rejected": "\n\nHuman: Ho\n\nAssistant: No."}, "prompts-differ"),
    ({"rejected": "\n\nHuman: Hi\n\nAssistant: x\n\nHuman: y\n\nAssistant: No."}, "prompts-differ"),
]


@pytest.mark.parametrize(("change", "slug"), HH_BAD)
def test_an_hh_row_is_refused_with_its_reason(change: dict[str, Any], slug: str) -> None:
    assert slug_of(lambda: hh_transcript({**GOOD["hh-transcript"], **change})) == slug


@pytest.mark.parametrize(("more", "id", "group"), [
    ({}, "", None), ({"qid": 5}, "", "5"), ({"qid": 0}, "", "0"), ({"qid": 5, "group": "g", "id": 1}, "1", "g"),
    ({"qid": None}, "", None),
])  # fmt: skip
def test_pairs_of_one_question_are_one_group(more: dict[str, Any], id: str, group: str | None) -> None:
    record = stack_exchange_paired({"question": "How?", "response_j": "So.", "response_k": "Not so.", **more})
    meta = {} if group is None else {"group": group}
    assert record == Record(id, "preference", [user("How?")], "So.", "Not so.", meta=meta)


@pytest.mark.parametrize("field", ["question", "response_j", "response_k"])
def test_a_pair_has_a_question_and_two_answers(field: str) -> None:
    row = GOOD["stack-exchange-paired"]
    assert slug_of(lambda: stack_exchange_paired(without(row, field))) == "missing-field"
    assert slug_of(lambda: stack_exchange_paired({**row, field: ["x"]})) == "wrong-type"


@quick
@given(words, words, words)
def test_texts_of_a_pair_are_kept_to_the_letter(question: str, better: str, worse: str) -> None:
    record = stack_exchange_paired({"question": question, "response_j": better, "response_k": worse})
    assert (record.prompt, record.completion, record.rejected) == ([user(question)], better, worse)


PAIR = [user("Sing"), assistant("Now?"), user("Yes")]


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("tail", ["", " ", "\n"])
def test_a_prompt_beside_transcripts_or_answers_gives_the_same_pair(end: str, whole: bool, tail: str) -> None:
    """As hh-rlhf's pairs are given out in full: the prompt ends with `Assistant:`, the answers are what follows."""
    prompt = join_transcript(PAIR).replace("\n\n", end) + f"{end}Assistant:"
    sides = {"chosen": " La la.", "rejected": " No."}
    row = {"prompt": prompt + tail, **{side: prompt + said if whole else said for side, said in sides.items()}}
    record = hh_transcript(row)
    assert (record.prompt, record.completion, record.rejected) == (PAIR, "La la.", "No.")
    without = hh_transcript({side: prompt + said for side, said in sides.items()})
    assert record == without


@pytest.mark.parametrize("prompt", ["\n\nHuman: Dance\n\nAssistant:", "\n\nHuman: Sing"])
def test_a_prompt_that_the_transcripts_do_not_go_on_from_is_refused(prompt: str) -> None:
    head = join_transcript(PAIR) + "\n\nAssistant: "
    assert slug_of(lambda: hh_transcript({"prompt": prompt, "chosen": head + "a", "rejected": head + "b"})) == (
        "prompts-differ")


@pytest.mark.parametrize("format", ["preference", "prompt-completion", "unpaired", "prompt-only"])
def test_a_transcript_is_no_turn_of_the_user(format: str) -> None:
    base = {"prompt": "x", "completion": "y", "label": True} if format == "unpaired" else GOOD[format]
    row = {**base, "prompt": "\n\nHuman: Sing\n\nAssistant: Now?\n\nHuman: Yes\n\nAssistant:"}
    assert slug_of(lambda: FORMATS[format](row)) == "transcript"
    for text in ("Human: Sing", "What does Assistant: mean?", "Write a play.\n\nHuman: Sing\n\nAssistant: La"):
        assert slug_of(lambda text=text: FORMATS[format]({**row, "prompt": text})) == ""
