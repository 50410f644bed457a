"""Turns of a conversation: read, compared, and put together so that what is written twice stands once.

    prompt              the answer brings            the record's prompt
    a                   -                            a
    -                   a x b                        a x b
    a, or b             a x b                        a x b     the prompt begins or ends the conversation
    a x b               b                            a x b     the conversation goes on from the prompt's end
    a                   x b                          a x b     it goes on after the prompt
    c                   a x b                        refused: prompts-differ, with both texts

Turns are the same when they are equal but for blanks around them. A system turn may stand on either side, or on both
when it is the same. Does not know rows or formats.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from alignment.records.importers.calls import calls
from alignment.records.importers.checks import same
from alignment.records.importers.flags import learned
from alignment.records.importers.keys import empty
from alignment.records.importers.rows import RowError, expect, get, given, optional_text, text
from alignment.records.types import Message, Record

ROLES = ("system", "user", "assistant", "tool")
ALIASES = {"developer": "system"}
"""OpenAI's newer models are told by the developer what the others are told by the system."""
_TRANSCRIPT = re.compile(r"\s*Human:.*\n\s*Assistant:\s*$", re.DOTALL)
"""hh-rlhf's notation of a prompt."""
_SHOWN = 200
"""Characters of a text that a reason shows."""


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def system(content: str) -> Message:
    return {"role": "system", "content": content}


def content(turn: dict[str, Any], field: str, where: str) -> str:
    """What a turn says: text, or a list of {"type": "text", "text"} parts, which are joined as they are.

    Raises RowError unsupported-field, naming the type, for parts that are not text; missing-field, wrong-type.
    """
    value = get(turn, field)
    if not isinstance(value, list):
        return text(turn, field)
    parts = []
    for part in value:
        kind = text(expect(part, dict, f"{where}.{field}"), "type")
        if kind != "text":
            raise RowError("unsupported-field", f"{where}.{field} has a part of type {kind}; only text is read")
        parts.append(text(part, "text"))
    return "".join(parts)


def turns(value: Any, field: str) -> list[Message]:
    """A list of {"role", "content"} objects, with what `alignment.records.Message` names beside these.

    Raises RowError wrong-type, missing-field, unknown-role, broken-call, flags-differ, unsupported-field.
    """
    messages = []
    for index, item in enumerate(expect(value, list, field)):
        where = f"{field}[{index}]"
        turn = expect(item, dict, where)
        role = ALIASES.get(text(turn, "role"), turn["role"])
        if role not in ROLES:
            raise RowError("unknown-role", f"{where} has role {role!r}, expected one of {', '.join(ROLES)}")
        more = _more(turn, role, where)
        # A turn that is all call says nothing, and is written with null, with a blank, or without the key.
        said = "" if "tool_calls" in more and given(turn, "content") is None else content(turn, "content", where)
        messages.append({"role": role, "content": said, **more})
    return messages


def _more(turn: dict[str, Any], role: str, where: str) -> Message:
    """What a turn has beside role and content."""
    more: Message = {}
    if role == "assistant":
        if not empty(turn.get("tool_calls")):
            more["tool_calls"] = calls(turn["tool_calls"], f"{where}.tool_calls")
        if thought := optional_text(turn, "reasoning_content"):
            more["reasoning_content"] = thought
    elif role == "tool":
        more.update({key: named for key in ("name", "tool_call_id") if (named := optional_text(turn, key))})
    return more if learned(turn, role, where) else {**more, "learn": False}


def answer(value: Any, field: str) -> tuple[list[Message], str]:
    """(turns before the answer, answer) of a text, or of turns of which the assistant's is the last."""
    if isinstance(value, str):
        return [], value
    conversation = turns(_text_or_turns(value, field), field)
    if not conversation:
        raise RowError("empty-answer", f"{field} has no messages")
    if conversation[-1]["role"] != "assistant":
        raise RowError("last-not-assistant", f"{field} ends with a turn of the {conversation[-1]['role']}")
    *lead, last = conversation
    if more := [key for key in last if key not in ("role", "content")]:
        raise RowError("unsupported-field", f"{field} ends with a turn that has {more[0]}, and an answer is text "
                                            "alone; rows of `messages` may end so")
    return lead, last["content"]


def _text_or_turns(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise RowError("wrong-type", f"{field} is {type(value).__name__}, expected text or a list of turns")
    return value


def asked(value: Any, field: str) -> list[Message]:
    """The turns of a prompt: a text is what the user says."""
    if isinstance(value, str):
        if _TRANSCRIPT.match(value):
            raise RowError("transcript", f"{field} is a transcript ('Human: ... Assistant:') and would be one turn of "
                                         "the user; format hh-transcript reads it")
        return [user(value)]
    return turns(_text_or_turns(value, field), field)


def agree(one: list[Message], other: list[Message]) -> bool:
    """Whether two conversations are the same, but for blanks around their turns."""
    return len(one) == len(other) and all(
        same(a["content"], b["content"]) and {**a, "content": ""} == {**b, "content": ""}
        for a, b in zip(one, other, strict=True))


def joined(prompt: list[Message], lead: list[Message]) -> list[Message]:
    """A prompt and the turns that its answer brings along, as one conversation; see the table above.

    Where both write a turn, the longer conversation's spelling is kept. Raises RowError prompts-differ.
    """
    (told, asked), (lead_told, brought) = _parted(prompt), _parted(lead)
    if told and lead_told and not agree(told, lead_told):
        raise _differ(prompt, lead)
    told = lead_told or told
    if not asked or agree(brought[:len(asked)], asked) or agree(brought[-len(asked):], asked):
        return told + brought if brought else told + asked
    # The most turns that stand on both sides of the seam.
    for shared in range(min(len(asked), len(brought)), 0, -1):
        if agree(asked[-shared:], brought[:shared]):
            return told + asked + brought[shared:]
    if brought and (lead_told or (asked[-1]["role"] == "assistant") == (brought[0]["role"] == "assistant")):
        raise _differ(prompt, lead)
    return told + asked + brought


def with_system(record: Record, content: str | None, differs: bool) -> Record:
    """A record with a system message before its conversation; no text, no message.

    Args:
        differs: what becomes of a row with another system message: refused (RowError system-differs) or left alone.
    """
    return record if content is None else replace(
        record, prompt=_told(record.prompt, content, differs), messages=_told(record.messages, content, differs))


def _told(conversation: list[Message], content: str, differs: bool) -> list[Message]:
    told, _ = _parted(conversation)
    if differs and told and not same(told[0]["content"], content):
        raise RowError("system-differs", f"`system` is {content[:_SHOWN]!r}, the conversation's own message "
                                         f"{told[0]['content'][:_SHOWN]!r}")
    return conversation if told or not conversation else [system(content), *conversation]


def shown(conversation: list[Message]) -> str:
    """A conversation for a reason, in short."""
    return repr(" | ".join(f"{turn['role']}: {turn['content']}" for turn in conversation)[:_SHOWN])


def _parted(conversation: list[Message]) -> tuple[list[Message], list[Message]]:
    """(the system turn that it begins with, the rest)"""
    cut = int(bool(conversation) and conversation[0]["role"] == "system")
    return conversation[:cut], conversation[cut:]


def _differ(prompt: list[Message], lead: list[Message]) -> RowError:
    return RowError("prompts-differ", f"the prompt is {shown(prompt)}, the answer's conversation {shown(lead)}")
