"""A conversation of ours as OpenAI's chat interface takes it. Pure.

What is ours alone is left out (`learn`; thoughts of earlier turns, which chat templates leave out too), definitions of
tools go beside the messages, and calls get the ids and the JSON text that the interface asks for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from alignment.records import Message

_SENT = ("role", "content", "name")


def to_openai(prompt: Sequence[Message]) -> dict[str, Any]:
    """{"messages": [...]}, and "tools" where the conversation has any. Results without an id answer the calls before
    them in order."""
    made: list[dict[str, Any]] = []
    waiting: list[str] = []
    for index, message in enumerate(prompt):
        turn = {key: message[key] for key in _SENT if key in message}
        if message.get("tool_calls"):
            turn["tool_calls"] = calls = [_call(call, f"call-{index}-{place}")
                                          for place, call in enumerate(message["tool_calls"])]
            waiting = [call["id"] for call in calls]
        if message["role"] == "tool":
            given = message.get("tool_call_id") or (waiting[0] if waiting else f"call-{index}")
            waiting = [call for call in waiting if call != given]
            turn["tool_call_id"] = given
        made.append(turn)
    tools = prompt[0].get("tools") if prompt else None
    return {"messages": made} | ({"tools": tools} if tools else {})


def _call(call: dict[str, Any], id_: str) -> dict[str, Any]:
    function = call["function"]
    arguments = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": call.get("id") or id_, "type": "function",
            "function": {"name": function["name"], "arguments": text}}
