"""Conversations: our own (TRL's) field names, Alpaca, Self-Instruct, ShareGPT.

One function per format, raw row -> Record; raises RowError. Ids, sources, the key `system` and the common checks are
added by the caller. How a prompt and an answer that brings turns along are put together stands in `turns`.
"""

from __future__ import annotations

from typing import Any

from alignment.records.importers.calls import calls
from alignment.records.importers.checks import same
from alignment.records.importers.flags import learned
from alignment.records.importers.rows import RowError, expect, extras, flag, get, given, optional_text, row_id, text
from alignment.records.importers.turns import agree, answer, asked, assistant, content, joined, shown, turns, user
from alignment.records.types import Message, Record

SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "model": "assistant", "function_call": "assistant", "system": "system", "observation": "tool", "tool": "tool",
}


def messages(row: dict[str, Any]) -> Record:
    """{messages: [{role, content}]}; OpenAI's parallel_tool_calls says of the row what its turns must keep to."""
    said = turns(get(row, "messages"), "messages")
    if flag(row, "parallel_tool_calls") is False and any(len(turn.get("tool_calls", ())) > 1 for turn in said):
        raise RowError("calls-differ", "parallel_tool_calls is false, and a turn calls several tools at once")
    return Record(row_id(row), "messages", messages=said, meta=extras(row))


def prompt_completion(row: dict[str, Any]) -> Record:
    """{prompt, completion}"""
    lead, completion = answer(get(row, "completion"), "completion")
    return Record(row_id(row), "prompt-completion", _prompt(row, lead), completion, meta=extras(row))


def preference(row: dict[str, Any]) -> Record:
    """{prompt, chosen, rejected}; without prompt when chosen and rejected are whole conversations."""
    field = "chosen" if given(row, "chosen") is not None or "completion" not in row else "completion"
    chosen_lead, chosen = answer(get(row, field), field)
    if field == "chosen" and given(row, "completion") is not None:
        _one_answer(answer(row["completion"], "completion")[1], chosen, "completion", "chosen")
    rejected_lead, rejected = answer(get(row, "rejected"), "rejected")
    prompt, other = _prompt(row, chosen_lead), _prompt(row, rejected_lead)
    if not agree(prompt, other):
        raise RowError("prompts-differ", f"chosen and rejected do not answer the same conversation: {shown(prompt)} "
                                         f"and {shown(other)}")
    return Record(row_id(row), "preference", prompt, chosen, rejected, meta=extras(row))


def unpaired(row: dict[str, Any]) -> Record:
    """{prompt, completion, label} or {messages, label}; label says whether the answer is wanted."""
    label = expect(get(row, "label"), bool, "label")
    whole = "messages" if given(row, "messages") is not None else "completion"
    lead, completion = answer(get(row, whole), whole)
    if whole == "messages" and given(row, "completion") is not None:
        _one_answer(answer(row["completion"], "completion")[1], completion, "completion", "messages")
    return Record(row_id(row), "unpaired", _prompt(row, lead), completion, label=label, meta=extras(row))


def prompt_only(row: dict[str, Any]) -> Record:
    """{prompt}"""
    get(row, "prompt")
    return Record(row_id(row), "prompt-only", _prompt(row, []), meta=extras(row))


def instruction(row: dict[str, Any]) -> list[Message]:
    """The user message of Alpaca-like rows: instruction, blank line, input (if there is one)."""
    parts = (text(row, "instruction"), optional_text(row, "input"))
    return [user("\n\n".join(part for part in parts if part.strip()))]


def alpaca(row: dict[str, Any]) -> Record:
    """{instruction, input, output}, input may be empty; `history` is a list of [instruction, response] before it."""
    before: list[Message] = []
    for index, pair in enumerate(expect(given(row, "history") or [], list, "history")):
        if len(expect(pair, list, f"history[{index}]")) != 2:
            raise RowError("wrong-type", f"history[{index}] has {len(pair)} texts, expected [instruction, response]")
        question, said = (expect(item, str, f"history[{index}]") for item in pair)
        before += [user(question), assistant(said)]
    return Record(row_id(row), "prompt-completion", before + instruction(row), text(row, "output"), meta=extras(row))


def self_instruct(row: dict[str, Any]) -> Record:
    """{instruction, instances: [{input, output}], is_classification}: the first example is learned, as Alpaca's rows
    are; meta.task keeps all of them, for a stage of kind generate."""
    said = text(row, "instruction")
    instances = []
    for index, value in enumerate(expect(get(row, "instances"), list, "instances")):
        one = expect(value, dict, f"instances[{index}]")
        instances.append({"input": optional_text(one, "input"), "output": text(one, "output")})
    if not instances:
        raise RowError("missing-field", "instances is an empty list")
    task = {"instruction": said, "instances": instances, "is_classification": bool(flag(row, "is_classification"))}
    prompt = instruction({"instruction": said, "input": instances[0]["input"]})
    return Record(row_id(row), "prompt-completion", prompt, instances[0]["output"], meta={**extras(row), "task": task})


def sharegpt(row: dict[str, Any]) -> Record:
    """{conversations: [{from, value}]}"""
    return Record(row_id(row), "messages", messages=_sharegpt_turns(row), meta=extras(row))


def sharegpt_preference(row: dict[str, Any]) -> Record:
    """{conversations, chosen: {from, value}, rejected: {from, value}}"""
    chosen, rejected = (_sharegpt_turn(get(row, field), field) for field in ("chosen", "rejected"))
    for turn in (chosen, rejected):
        if turn["role"] != "assistant":
            raise RowError("last-not-assistant", f"an answer is a turn of the {turn['role']}")
        if "tool_calls" in turn:
            raise RowError("unsupported-field", "an answer is a call, and of preferences answers are text alone")
    return Record(row_id(row), "preference", _sharegpt_turns(row), chosen["content"], rejected["content"],
                  meta=extras(row))


def _prompt(row: dict[str, Any], lead: list[Message]) -> list[Message]:
    """The row's prompt, with the turns that an answer brings along."""
    value = row.get("prompt")
    if lead and given(row, "prompt") in (None, []):
        return lead
    value = get(row, "prompt")
    return joined(asked(value, "prompt"), lead)


def _one_answer(one: str, other: str, field: str, beside: str) -> None:
    if not same(one, other):
        raise RowError("answers-differ", f"{field} says {one[:200]!r}, {beside} {other[:200]!r}")


def _sharegpt_turns(row: dict[str, Any]) -> list[Message]:
    value = expect(get(row, "conversations"), list, "conversations")
    return [_sharegpt_turn(item, f"conversations[{index}]") for index, item in enumerate(value)]


def _sharegpt_turn(value: Any, field: str) -> Message:
    turn = expect(value, dict, field)
    speaker = text(turn, "from")
    if speaker not in SHAREGPT_ROLES:
        raise RowError("unknown-role", f"{field} is from {speaker!r}, expected one of {', '.join(SHAREGPT_ROLES)}")
    role = SHAREGPT_ROLES[speaker]
    said: Message = {"role": role, "content": "", "tool_calls": calls(get(turn, "value"), f"{field}.value")} if (
        speaker == "function_call") else {"role": role, "content": content(turn, "value", field)}
    return said if learned(turn, speaker, field) else {**said, "learn": False}
