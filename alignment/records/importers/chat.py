"""Conversations: our own (TRL's) field names, Alpaca, ShareGPT.

One function per format, raw row -> Record; raises RowError. Ids, sources and the common checks are added by the
caller. A `prompt` may be text or a list of messages; `completion`, `chosen`, `rejected` text or a list of messages
whose last turn is the assistant's (the turns before it belong to the prompt).
"""

from __future__ import annotations

from typing import Any

from alignment.records.importers.rows import RowError, expect, extras, get, optional_text, row_id, text
from alignment.records.types import Message, Record

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "model": "assistant", "function_call": "assistant", "system": "system", "observation": "tool", "tool": "tool",
}


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def turns(value: Any, field: str) -> list[Message]:
    """A list of {"role", "content"} objects, other keys left out. Raises wrong-type, missing-field, unknown-role."""
    messages = []
    for index, item in enumerate(expect(value, list, field)):
        message = expect(item, dict, f"{field}[{index}]")
        role, content = text(message, "role"), text(message, "content")
        if role not in ROLES:
            raise RowError("unknown-role", f"{field}[{index}] has role {role!r}, expected one of {', '.join(ROLES)}")
        messages.append({"role": role, "content": content})
    return messages


def messages(row: dict[str, Any]) -> Record:
    """{messages: [{role, content}]}"""
    return Record(row_id(row), "messages", messages=turns(get(row, "messages"), "messages"), meta=extras(row))


def prompt_completion(row: dict[str, Any]) -> Record:
    """{prompt, completion}"""
    lead, completion = _answer(get(row, "completion"), "completion")
    return Record(row_id(row), "prompt-completion", _prompt(row, lead), completion, meta=extras(row))


def preference(row: dict[str, Any]) -> Record:
    """{prompt, chosen, rejected}; without prompt when chosen and rejected are whole conversations."""
    chosen_field = "chosen" if row.get("chosen") is not None or "completion" not in row else "completion"
    chosen_lead, chosen = _answer(get(row, chosen_field), chosen_field)
    rejected_lead, rejected = _answer(get(row, "rejected"), "rejected")
    prompt = _prompt(row, chosen_lead)
    if prompt != _prompt(row, rejected_lead):
        raise RowError("prompts-differ", "chosen and rejected do not answer the same conversation")
    return Record(row_id(row), "preference", prompt, chosen, rejected, meta=extras(row))


def unpaired(row: dict[str, Any]) -> Record:
    """{prompt, completion, label} or {messages, label}; label says whether the answer is wanted."""
    label = expect(get(row, "label"), bool, "label")
    if row.get("messages") is not None:
        prompt, completion = _answer(row["messages"], "messages")
    else:
        lead, completion = _answer(get(row, "completion"), "completion")
        prompt = _prompt(row, lead)
    return Record(row_id(row), "unpaired", prompt, completion, label=label, meta=extras(row))


def prompt_only(row: dict[str, Any]) -> Record:
    """{prompt}"""
    get(row, "prompt")
    return Record(row_id(row), "prompt-only", _prompt(row, []), meta=extras(row))


def instruction(row: dict[str, Any]) -> list[Message]:
    """The user message of Alpaca-like rows: instruction, blank line, input (if there is one)."""
    parts = (text(row, "instruction"), optional_text(row, "input"))
    return [user("\n\n".join(part for part in parts if part.strip()))]


def alpaca(row: dict[str, Any]) -> Record:
    """{instruction, input, output}, input may be empty; `system` is honoured."""
    return Record(row_id(row), "prompt-completion", _system(row) + instruction(row), text(row, "output"),
                  meta=extras(row))


def sharegpt(row: dict[str, Any]) -> Record:
    """{conversations: [{from, value}]}; `system` is honoured."""
    return Record(row_id(row), "messages", messages=_system(row) + _sharegpt_turns(row), meta=extras(row))


def sharegpt_preference(row: dict[str, Any]) -> Record:
    """{conversations, chosen: {from, value}, rejected: {from, value}}"""
    chosen, rejected = (_sharegpt_turn(get(row, field), field) for field in ("chosen", "rejected"))
    for turn in (chosen, rejected):
        if turn["role"] != "assistant":
            raise RowError("last-not-assistant", f"an answer is a turn of the {turn['role']}")
    return Record(row_id(row), "preference", _system(row) + _sharegpt_turns(row), chosen["content"],
                  rejected["content"], meta=extras(row))


def _prompt(row: dict[str, Any], lead: list[Message]) -> list[Message]:
    """The row's prompt and the turns that an answer brings along; a prompt that the answer repeats stands once."""
    if row.get("prompt") is None:
        if not lead:
            get(row, "prompt")
        return lead
    value = row["prompt"]
    prompt = [user(value)] if isinstance(value, str) else turns(value, "prompt")
    if lead[: len(prompt)] == prompt:
        return lead
    return prompt if prompt[len(prompt) - len(lead):] == lead else prompt + lead


def _answer(value: Any, field: str) -> tuple[list[Message], str]:
    """(turns before the answer, answer)"""
    if isinstance(value, str):
        return [], value
    conversation = turns(value, field)
    if not conversation:
        raise RowError("empty-answer", f"{field} has no messages")
    if conversation[-1]["role"] != "assistant":
        raise RowError("last-not-assistant", f"{field} ends with a turn of the {conversation[-1]['role']}")
    return conversation[:-1], conversation[-1]["content"]


def _system(row: dict[str, Any]) -> list[Message]:
    content = optional_text(row, "system")
    return [{"role": "system", "content": content}] if content.strip() else []


def _sharegpt_turns(row: dict[str, Any]) -> list[Message]:
    value = expect(get(row, "conversations"), list, "conversations")
    return [_sharegpt_turn(item, f"conversations[{index}]") for index, item in enumerate(value)]


def _sharegpt_turn(value: Any, field: str) -> Message:
    turn = expect(value, dict, field)
    speaker = text(turn, "from")
    if speaker not in SHAREGPT_ROLES:
        raise RowError("unknown-role", f"{field} is from {speaker!r}, expected one of {', '.join(SHAREGPT_ROLES)}")
    return {"role": SHAREGPT_ROLES[speaker], "content": text(turn, "value")}
