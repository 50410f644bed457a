"""Tools and calls: one form, however they are written; what is no call is refused."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given

from alignment.records import Message, Record
from alignment.records.importers import Row, import_rows
from tests.records.drawn import GOOD, assistant, bad, good, json_objects, quick, system, user

HELLO, HI = user("How warm is it?"), assistant("Nine degrees.")
RESULT = {"role": "tool", "content": "9"}
FUNCTION = {"name": "warmth", "description": "Of a place", "parameters": {"type": "object", "properties": {
    "image": {"type": "string"}, "weight": {"type": "number"}}}}
TOOL = {"type": "function", "function": FUNCTION}
CHAT = ["messages", "prompt-completion", "preference", "unpaired", "prompt-only", "alpaca", "sharegpt",
        "sharegpt-preference"]  # fmt: skip


def called(function: Any, **more: Any) -> Message:
    return {"role": "assistant", "content": "", **more, "tool_calls": function}


def talk(*calls: Any) -> dict[str, Any]:
    return {"messages": [HELLO, called(list(calls)), RESULT, HI]}


@pytest.mark.parametrize("format", CHAT)
@pytest.mark.parametrize("written", [[TOOL], [FUNCTION], json.dumps([TOOL]), json.dumps(FUNCTION), [json.dumps(TOOL)]])
def test_tools_however_written_stand_at_the_conversations_first_turn(format: str, written: Any) -> None:
    plain = good(format, GOOD[format])
    told = good(format, {**GOOD[format], "tools": written})
    first, *rest = told.prompt or told.messages
    assert first == {**(plain.prompt or plain.messages)[0], "tools": [TOOL]}
    assert rest == (plain.prompt or plain.messages)[1:]
    told = good(format, {**GOOD[format], "tools": written, "system": "Be brief."})
    assert (told.prompt or told.messages)[0] == {**system("Be brief."), "tools": [TOOL]}


@pytest.mark.parametrize("nothing", [None, "", [], "[]", "null", {}, float("nan")])
def test_no_tools_are_none(nothing: Any) -> None:
    assert good("messages", {**GOOD["messages"], "tools": nothing}) == good("messages", GOOD["messages"])


@pytest.mark.parametrize(("tools", "slug"), [
    ("warmth(place)", "broken-tools"), ([{"type": "function"}], "missing-field"), (["warmth"], "broken-tools"),
    (7, "wrong-type"), ([{"function": {"description": "x"}}], "missing-field"),
    ([{"function": "warmth"}], "wrong-type"),
])  # fmt: skip
def test_what_is_no_tool_is_refused(tools: Any, slug: str) -> None:
    assert bad("messages", {**GOOD["messages"], "tools": tools}).slug == slug


def test_tools_that_the_system_message_describes_already_are_refused() -> None:
    told = system(f"You may call: <tools>{json.dumps([FUNCTION])}</tools>")
    assert bad("messages", {"messages": [told, HELLO, HI], "tools": [TOOL]}).slug == "tools-twice"
    assert good("messages", {"messages": [system("Speak of warmth."), HELLO, HI], "tools": [TOOL]})


@pytest.mark.parametrize("written", [
    {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}},
    {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
    {"name": "f", "arguments": {"a": 1}},
    '{"name": "f", "arguments": {"a": 1}}',
])  # fmt: skip
def test_a_call_however_written_is_one(written: Any) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    wanted = [HELLO, {**assistant(""), "tool_calls": [call]}, RESULT, HI]
    assert good("messages", talk(written)).messages == wanted
    row = {"conversations": [{"from": "human", "value": HELLO["content"]},
                             {"from": "function_call", "value": json.dumps(written)},
                             {"from": "observation", "value": "9"}, {"from": "gpt", "value": HI["content"]}]}
    assert good("sharegpt", row).messages == wanted


def test_nulls_are_what_parquet_adds_to_objects_and_are_meant_in_json_text() -> None:
    def arguments(call: Any) -> Any:
        return good("messages", talk(call)).messages[1]["tool_calls"][0]["function"]["arguments"]

    assert arguments({"name": "f", "arguments": {"a": {"b": None, "c": 1}, "d": None}}) == {"a": {"c": 1}}
    assert arguments({"name": "f", "arguments": '{"a": {"b": null, "c": 1}}'}) == {"a": {"b": None, "c": 1}}
    assert arguments('{"name": "f", "arguments": {"a": null}}') == {"a": None}


@pytest.mark.parametrize("content", [{"content": None}, {"content": ""}, {"content": []}, {}])
def test_a_turn_that_is_all_call_needs_no_text(content: dict[str, Any]) -> None:
    turn = {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "f"}}], **content}
    result = {**RESULT, "tool_call_id": "c1", "name": "f"}
    made = good("messages", {"messages": [HELLO, turn, result, HI]}).messages
    call = {"type": "function", "id": "c1", "function": {"name": "f", "arguments": {}}}
    assert made == [HELLO, called([call]), result, HI]
    assert good("messages", {"messages": [HELLO, turn]}).messages[-1] == made[1]


@pytest.mark.parametrize(("call", "slug"), [
    ({"id": "1"}, "missing-field"), ({"id": 1, "name": "f"}, "wrong-type"), ("f()", "broken-call"),
    ({"name": "f", "arguments": "a=1"}, "broken-call"), ({"name": "f", "arguments": [1]}, "broken-call"),
    ({"name": " "}, "missing-field"), ({"function": "f"}, "wrong-type"), (7, "wrong-type"),
])  # fmt: skip
def test_what_is_no_call_is_refused(call: Any, slug: str) -> None:
    assert bad("messages", talk(call)).slug == slug


@pytest.mark.parametrize("row", [
    {"prompt": "x", "completion": [called([{"name": "f"}])]},
    {"prompt": "x", "completion": [{**HI, "reasoning_content": "So"}]},
])  # fmt: skip
def test_an_answer_that_is_a_call_needs_whole_messages(row: dict[str, Any]) -> None:
    assert bad("prompt-completion", row).slug == "unsupported-field"
    assert bad("preference", {"prompt": "x", "chosen": row["completion"], "rejected": "y"}).slug == "unsupported-field"
    assert good("messages", {"messages": [user("x"), *row["completion"]]})


def test_calls_on_both_sides_of_a_seam_must_agree() -> None:
    lead = [HELLO, called([{"name": "f"}]), RESULT]
    made = good("prompt-completion", {"prompt": lead, "completion": [*lead, HI]}).prompt
    assert made == good("prompt-completion", {"prompt": lead, "completion": "Nine degrees."}).prompt
    other = [HELLO, called([{"name": "g"}]), RESULT]
    assert bad("prompt-completion", {"prompt": lead, "completion": [*other, HI]}).slug == "prompts-differ"


def test_rows_that_differ_in_their_tools_or_calls_are_two() -> None:
    rows = [talk({"name": "f"}), talk({"name": "g"}), {**talk({"name": "g"}), "tools": [TOOL]}, talk({"name": "g"})]
    made = list(import_rows([Row(n, row) for n, row in enumerate(rows, 1)], "messages", "s"))
    assert [getattr(row, "slug", "good") for row in made] == ["good", "good", "good", "duplicate-row"]


@quick
@given(json_objects, json_objects)
def test_nothing_in_a_tool_or_a_call_is_taken_for_a_key_of_ours(parameters: Any, arguments: Any) -> None:
    row = {**talk({"name": "f", "arguments": arguments}), "tools": [{"name": "f", "parameters": parameters}]}
    assert good("messages", row).messages[1]["tool_calls"][0]["function"]["name"] == "f"


@pytest.mark.parametrize("said", [True, None])
def test_that_calls_may_be_parallel_changes_nothing(said: bool | None) -> None:
    row = talk({"name": "warmth", "arguments": {}}, {"name": "warmth", "arguments": {"place": "Haven"}})
    unread: Counter[str] = Counter()
    row |= {"tools": [TOOL], "parallel_tool_calls": said}
    [made] = import_rows([Row(1, row)], "messages", "s", unread=unread)
    assert isinstance(made, Record)
    assert [call["function"]["arguments"] for call in made.messages[1]["tool_calls"]] == [{}, {"place": "Haven"}]
    assert not unread


def test_a_row_that_forbids_parallel_calls_and_has_them_is_refused() -> None:
    one = {"name": "warmth", "arguments": {}}
    assert bad("messages", {**talk(one, one), "parallel_tool_calls": False}).slug == "calls-differ"
    assert good("messages", {**talk(one), "parallel_tool_calls": False}).messages[1]["tool_calls"]
    assert bad("messages", {**talk(one), "parallel_tool_calls": "false"}).slug == "wrong-type"
