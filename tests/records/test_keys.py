"""The keys of a row: honoured, refused by name, or counted; never dropped unsaid."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import DataError
from alignment.records import Record
from alignment.records.importers import FORMATS, Options, Row, import_rows, read_source
from alignment.records.importers.keys import READ
from tests.records.drawn import GOOD, assistant, bad, good, system, user, without

HELLO, HI = user("Hello"), assistant("Hi.")
TOLD = system("Answer in rhyme.")


def unread(format: str, *rows: dict[str, Any], options: Options | None = None) -> dict[str, int]:
    """The keys that are counted; every row must be a good one."""
    found: Counter[str] = Counter()
    numbered = [Row(n, row) for n, row in enumerate(rows, 1)]
    made = list(import_rows(numbered, format, "s", options or Options(), unread=found))
    assert all(isinstance(row, Record) for row in made), made
    return dict(found)


# a system message beside the conversation


@pytest.mark.parametrize("format", FORMATS)
def test_a_system_message_beside_any_row_is_its_first_turn(format: str) -> None:
    row = without(GOOD[format], "system")
    plain, told = good(format, row), good(format, {**row, "system": TOLD["content"]})
    assert told.conversation() == [TOLD, *plain.conversation()]
    assert (told.id, told.meta, told.completion, told.rejected) == (
        plain.id, plain.meta, plain.completion, plain.rejected)
    assert good(format, {**row, "system": "Sing."}, Options(system="Stay calm.")).conversation()[0] == system("Sing.")
    for nothing in (None, "", " \n", float("nan")):
        assert good(format, {**row, "system": nothing}) == plain
    assert bad(format, {**row, "system": ["x"]}).slug == "wrong-type"
    assert unread(format, {**row, "system": "Sing."}) == unread(format, row)


OWN = [
    ("messages", {"messages": [TOLD, HELLO, HI]}),
    ("prompt-completion", {"prompt": [TOLD, HELLO], "completion": "Hi."}),
    ("prompt-completion", {"prompt": "Hello", "completion": [TOLD, HELLO, HI]}),
    ("preference", {"chosen": [TOLD, HELLO, HI], "rejected": [TOLD, HELLO, assistant("No.")]}),
    ("unpaired", {"messages": [TOLD, HELLO, HI], "label": True}),
    ("prompt-only", {"prompt": [TOLD, HELLO]}),
    ("sharegpt", {"conversations": [{"from": "system", "value": TOLD["content"]}, {"from": "human", "value": "Hello"},
                                    {"from": "gpt", "value": "Hi."}]}),
]


@pytest.mark.parametrize(("format", "row"), OWN)
def test_the_same_system_message_twice_is_one_and_two_are_refused_with_both(format: str, row: dict[str, Any]) -> None:
    plain = good(format, row)
    assert plain.conversation()[0] == TOLD
    assert good(format, {**row, "system": " Answer in rhyme.\n"}) == plain
    made = bad(format, {**row, "system": "Answer in prose."})
    assert made.slug == "system-differs"
    assert "'Answer in prose.'" in made.reason
    assert "'Answer in rhyme.'" in made.reason


# keys that would change what is learned

MEANT = [("functions", [{"name": "f"}]), ("function_call", {"name": "f"}), ("images", ["a.png"]),
         ("image", {"bytes": "x"}), ("audio", "a.wav"), ("videos", ["v"]),
         ("chat_template_kwargs", {"enable_thinking": False})]  # fmt: skip
OF_A_ROW = [("weight", 0.5), ("weight", 0), ("loss_mask", [0, 1]), ("sample_weight", 0.1), ("margin", 2), ("margin", 0),
            ("system_prompt", "Sing."), ("system_message", "Sing."), ("tool_calls", [{"name": "f"}]),
            ("reasoning_content", "So"), ("documents", [{"text": "x"}])]  # fmt: skip
CHAT = {"messages", "prompt-completion", "preference", "unpaired", "prompt-only", "alpaca", "sharegpt",
        "sharegpt-preference"}  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("key", "value"), MEANT + OF_A_ROW)
def test_what_would_change_the_meaning_of_a_row_is_refused_by_name(format: str, key: str, value: Any) -> None:
    made = bad(format, {**GOOD[format], key: value})
    assert made.slug == "unsupported-field"
    assert made.reason.startswith(f"unsupported-field: {key} is ")


@pytest.mark.parametrize(("format", "key"), [
    (format, key) for format in sorted(set(FORMATS) - {"unpaired"}) for key in ("label", "kto_tag")
    if (format, key) != ("auto-j", "label")])
def test_an_unwanted_answer_is_not_learned_by_a_format_that_knows_no_labels(format: str, key: str) -> None:
    assert bad(format, {**GOOD[format], key: False}).slug == "unsupported-field"
    for value in (True, 0, "entailment"):
        assert unread(format, {**GOOD[format], key: value}) == {key: 1}


@pytest.mark.parametrize("format", sorted(set(FORMATS) - CHAT))
def test_tools_of_a_row_that_is_no_conversation_are_refused(format: str) -> None:
    assert bad(format, {**GOOD[format], "tools": [{"name": "f"}]}).slug == "unsupported-field"


@pytest.mark.parametrize("format", sorted(set(FORMATS) - {"alpaca"}))
def test_a_history_that_is_not_read_is_refused(format: str) -> None:
    assert bad(format, {**GOOD[format], "history": [["a", "b"]]}).slug == "unsupported-field"


@pytest.mark.parametrize("key", [*dict(MEANT + OF_A_ROW), "history", "anything"])
@pytest.mark.parametrize("nothing", [None, "", " ", [], {}, "[]", "{}", "null", float("nan")])
def test_a_key_without_content_is_no_key(key: str, nothing: Any) -> None:
    assert unread("prompt-completion", {**GOOD["prompt-completion"], key: nothing}) == {}


def talk(turn: dict[str, Any], at: int) -> list[dict[str, Any]]:
    """Two turns, of which one has more keys."""
    return [{**made, **turn} if index == at else dict(made) for index, made in enumerate([HELLO, HI])]


PLACES = [("messages", lambda turns: {"messages": turns}, "messages[]"),
          ("prompt-completion", lambda turns: {"completion": turns}, "completion[]"),
          ("preference", lambda turns: {"chosen": turns, "rejected": [HELLO, assistant("No.")]}, "chosen[]"),
          ("preference", lambda turns: {"rejected": turns, "chosen": [HELLO, assistant("Yes.")]}, "rejected[]"),
          ("unpaired", lambda turns: {"messages": turns, "label": False}, "messages[]"),
          ("prompt-completion", lambda turns: {"prompt": turns[:1], "completion": turns[1:]}, ""),
          ("sharegpt", lambda turns: {"conversations": [
              {"from": turn.pop("role"), "value": turn.pop("content"), **turn} for turn in turns]}, "conversations[]"),
          ]  # fmt: skip
LEARNED = ("messages", "sharegpt")
"""Formats of which every turn may be learned, so that flags may leave one out."""


@pytest.mark.parametrize(("format", "row", "path"), PLACES, ids=[f"{f}-{n}" for n, (f, _, _) in enumerate(PLACES)])
@pytest.mark.parametrize(("at", "key", "value"), [
    *((1, key, value) for key, value in MEANT), (1, "reasoning", "So"), (1, "thinking", "So"), (1, "refusal", "No."),
    (1, "tools", [{"name": "f"}]), (0, "tool_calls", [{"name": "f"}]), (0, "reasoning_content", "So"),
    (1, "weight", 0.5), (1, "loss_weight", 2), (1, "train_detail", [{"train": False}]),
    (0, "train", True), (0, "loss", True), (0, "loss_mask", 1), (0, "weight", 2), (1, "weight", "1"),
])  # fmt: skip
def test_what_would_change_the_meaning_of_a_turn_is_refused_by_name(
    format: str, row: Any, path: str, at: int, key: str, value: Any
) -> None:
    made = bad(format, row(talk({key: value}, at)))
    assert made.slug == "unsupported-field"
    assert f"{path}.{key} is " in re.sub(r"\[\d]", "[]", made.reason)


@pytest.mark.parametrize(("format", "row", "path"), PLACES, ids=[f"{f}-{n}" for n, (f, _, _) in enumerate(PLACES)])
@pytest.mark.parametrize(("key", "value"), [
    ("weight", 0), ("weight", 0.0), ("learn", False), ("train", False), ("training", False), ("loss", False),
    ("loss_mask", 0)])
def test_a_turn_may_be_left_out_of_what_is_learned_where_more_than_one_is(
    format: str, row: Any, path: str, key: str, value: Any
) -> None:
    if format in LEARNED:
        assert good(format, row(talk({key: value}, 1))).messages == [HELLO, {**HI, "learn": False}]
        assert unread(format, row(talk({key: value}, 1))) == {}
    else:
        made = bad(format, row(talk({key: value}, 1)))
        assert made.slug == "unsupported-field"
        assert f"{path}.{key} is " in made.reason


@pytest.mark.parametrize("flags", [{"weight": 1, "train": False}, {"weight": 0, "loss": True}])
def test_flags_that_contradict_each_other_are_refused(flags: dict[str, Any]) -> None:
    assert bad("messages", {"messages": [HELLO, {**HI, **flags}]}).slug == "flags-differ"


def test_rows_that_differ_in_what_is_learned_are_two() -> None:
    turns = [HELLO, HI, user("Bye"), assistant("Ciao.")]
    rows = [{"messages": [{**turn, "weight": int(at == learned)} for at, turn in enumerate(turns)]}
            for learned in (1, 3)]
    made = list(import_rows([Row(n, row) for n, row in enumerate(rows, 1)], "messages", "s"))
    assert [[turn.get("learn", True) for turn in row.messages] for row in made if isinstance(row, Record)] == [
        [True, True, True, False], [True, False, True, True]]


@pytest.mark.parametrize(("format", "row", "path"), PLACES, ids=[f"{f}-{n}" for n, (f, _, _) in enumerate(PLACES)])
@pytest.mark.parametrize(("at", "key", "value"), [
    (1, "weight", 1), (1, "weight", 1.0), (0, "weight", 1), (0, "weight", 0), (1, "train", True), (0, "train", False),
    (1, "loss", True), (0, "loss", False), (1, "loss_mask", 1), (0, "loss_mask", 0), (1, "tool_calls", []),
    (1, "reasoning_content", None), (1, "train", None),
])  # fmt: skip
def test_flags_that_say_what_is_done_anyway_are_no_matter(
    format: str, row: Any, path: str, at: int, key: str, value: Any
) -> None:
    assert unread(format, row(talk({key: value}, at))) == {}


@pytest.mark.parametrize("kind", ["image", "image_url", "audio", "input_audio", "video", "refusal"])
def test_a_part_that_is_no_text_is_refused_by_its_type(kind: str) -> None:
    made = bad("messages", {"messages": [{"role": "user", "content": [
        {"type": "text", "text": "Look:"}, {"type": kind, kind: "x"}]}, HI]})
    assert made.slug == "unsupported-field"
    assert kind in made.reason


# keys that are counted


def test_keys_that_nothing_reads_are_named_with_their_rows_wherever_they_stand() -> None:
    first = {"messages": [{**HELLO, "name": "Ann", "id": 1}, {**HI, "name": "Bo"}], "score": 0, "ok": False}
    second = {"messages": [user("Bye"), {**HI, "weight": 1}], "score": 3, "nested": {"a": {"b": 1}}, "id": "x"}
    assert unread("messages", first, second) == {
        "messages[].name": 1, "messages[].id": 1, "score": 2, "ok": 1, "nested": 1}


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_counts_what_it_does_not_read_and_the_split_field_is_read(format: str) -> None:
    options = Options(split_field="part", splits=("a",))
    row = {**GOOD[format], "part": "a", "colour": "red", "group": "g", "kind": "k", "meta": {"any": {"thing": 1}}}
    assert unread(format, row, options=options) == {"colour": 1}
    assert unread(format, row) == {"colour": 1, "part": 1}


@pytest.mark.parametrize(("format", "row", "key"), [
    ("squad", {**GOOD["squad"], "answers": [{"text": "Ann", "answer_start": 3}]}, "answers[].answer_start"),
    ("musique", {**GOOD["musique"], "paragraphs": [{"title": "A", "paragraph_text": "b", "is_supporting": True}]},
     "paragraphs[].is_supporting"),
    ("drop", {**GOOD["drop"], "answer": {"number": "3", "unit": "m"}}, "answer.unit"),
    ("prompt-completion", {"prompt": "x", "response": "y", "completion": "z"}, "response"),
    ("preference", {**GOOD["preference"], "score_chosen": 9.5}, "score_chosen"),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache": 1}]}, HI]},
     "messages[].content[].cache"),
])  # fmt: skip
def test_a_key_within_a_value_is_named_with_its_place(format: str, row: dict[str, Any], key: str) -> None:
    assert unread(format, row) == {key: 1}


def test_bad_rows_are_counted_by_their_reason_alone() -> None:
    found: Counter[str] = Counter()
    list(import_rows([Row(1, {"prompt": "x", "other": 1})], "prompt-completion", "s", unread=found))
    assert not found


def test_columns_that_nobody_asked_for_are_counted(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("q,a,why,empty\nx,y,z,\nu,v,,\n")
    found: Counter[str] = Counter()
    columns = {"prompt": "q", "completion": "a"}
    assert len(list(read_source(str(tmp_path / "t.csv"), "columns", "s", columns=columns, unread=found))) == 2
    assert found == {"why": 1}


def test_every_format_has_its_keys() -> None:
    assert set(READ) == set(FORMATS)


def test_a_file_of_no_use_stays_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        read_source(str(tmp_path / "none"), "messages", "s", unread=Counter())
