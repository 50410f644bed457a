"""Records: one line of JSON each, there and back, and the conversation that a record holds."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given

from alignment.records import Message, Record
from tests.records.drawn import assistant, quick, records, system, user

TURNS = [system("Be brief."), user("Hello"), assistant("Hi.")]
EACH_TYPE = [
    (Record("a", "messages", messages=TURNS), {"id": "a", "type": "messages", "messages": TURNS}, TURNS),
    (Record("b", "prompt-completion", TURNS[:2], "Hi."),
     {"id": "b", "type": "prompt-completion", "prompt": TURNS[:2], "completion": "Hi."}, TURNS),
    (Record("c", "preference", TURNS[:2], "Hi.", "No."),
     {"id": "c", "type": "preference", "prompt": TURNS[:2], "completion": "Hi.", "rejected": "No."}, TURNS),
    (Record("d", "unpaired", TURNS[:2], "Hi.", label=False),
     {"id": "d", "type": "unpaired", "prompt": TURNS[:2], "completion": "Hi.", "label": False}, TURNS),
    (Record("e", "prompt-only", TURNS[:2], meta={"group": "g"}),
     {"id": "e", "type": "prompt-only", "prompt": TURNS[:2], "meta": {"group": "g"}}, TURNS[:2]),
]  # fmt: skip
each_type = pytest.mark.parametrize(("record", "fields", "turns"), EACH_TYPE, ids=lambda v: getattr(v, "type", ""))


@each_type
def test_a_line_holds_the_fields_that_are_filled(record: Record, fields: dict[str, object], turns: object) -> None:
    assert json.loads(record.to_json()) == fields
    assert list(json.loads(record.to_json())) == list(fields)
    assert Record.from_json(record.to_json()) == record


@each_type
def test_a_conversation_ends_with_the_answer_to_learn(record: Record, fields: object, turns: list[Message]) -> None:
    assert record.conversation() == turns


def test_an_empty_answer_is_still_an_answer() -> None:
    record = Record("a", "prompt-completion", [user("Hello")], "")
    assert Record.from_json(record.to_json()).completion == ""
    assert record.conversation() == [user("Hello"), assistant("")]


@pytest.mark.parametrize("value", [0, False, "", 0.0, [], {}, None])
def test_meta_keeps_values_that_count_as_nothing(value: object) -> None:
    record = Record("a", "prompt-only", meta={"of": value})
    kept = Record.from_json(record.to_json()).meta["of"]
    assert (kept, type(kept)) == (value, type(value))


@pytest.mark.parametrize("text", [
    "two\nlines", "\r\n", "a\u2028b\u2029c\x85d", "\x00\x1f\x7f", '"\\', "数据 🙂", "\ufeff",
])  # fmt: skip
def test_any_text_stays_on_one_line_and_comes_back(text: str) -> None:
    line = Record("a", "prompt-only", [user(text)]).to_json()
    assert "\n" not in line
    assert "\r" not in line
    assert Record.from_json(line).prompt == [user(text)]


def test_letters_of_all_scripts_are_written_as_they_are() -> None:
    assert "数据 🙂" in Record("a", "prompt-only", [user("数据 🙂")]).to_json()


@pytest.mark.parametrize("line", [
    "", "{", '{"id": "a"}', '{"type": "messages"}', "[]", "null", "3", '"text"',
    '{"id": "a", "type": "messages", "colour": "red"}', '{"id": "a", "type": "messages"} {}',
])  # fmt: skip
def test_what_is_no_record_is_an_error(line: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        Record.from_json(line)


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Record("a", "prompt-only").id = "b"  # type: ignore[misc]


def test_records_share_no_lists() -> None:
    first, second = Record("a", "messages"), Record("b", "messages")
    first.messages.append(user("Hello"))
    first.meta["group"] = "g"
    assert (second.messages, second.meta) == ([], {})


@quick
@given(records)
def test_json_keeps_a_record(record: Record) -> None:
    line = record.to_json()
    assert "\n" not in line
    assert Record.from_json(line) == record
