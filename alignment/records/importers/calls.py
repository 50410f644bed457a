"""Tools and calls of them, in the one form that chat templates take: transformers', which is OpenAI's with objects.

Read are definitions and calls with and without their `function` around them, as objects or as JSON text (of a whole
list, of one call's arguments, as in ShareGPT's `function_call`). Keys that are null go, but in JSON text: Parquet gives
every object all keys that any other has (TRL leaves them out, too). Whether a template renders calls is not known here:
`alignment.templates` refuses a conversation of which it says nothing.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from alignment.records.importers.keys import empty
from alignment.records.importers.rows import RowError, expect, given, optional_text, text
from alignment.records.types import Message, Record


def tools(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Definitions of what a row's assistant may call, none where there is no `tools`. Raises RowError broken-tools."""
    made: list[dict[str, Any]] = []
    if empty(given(row, "tools")):
        return made
    for index, item in enumerate(_listed(row["tools"], "tools", "broken-tools")):
        where = f"tools[{index}]"
        tool = expect(_parsed(item, where, "broken-tools"), dict, where)
        if "function" not in tool:
            # input_schema is Anthropic's name for the same thing.
            tool = {"type": "function", "function": {"parameters" if key == "input_schema" else key: said
                                                     for key, said in tool.items()}}
        _name(expect(tool["function"], dict, f"{where}.function"), where)
        made.append(tool)
    return made


def calls(value: Any, where: str) -> list[dict[str, Any]]:
    """The calls of a turn, one or a list of them. Raises RowError broken-call."""
    made = []
    for index, item in enumerate(_listed(value, where, "broken-call")):
        place = f"{where}[{index}]"
        call = expect(_parsed(item, place, "broken-call"), dict, place)
        function = expect(call.get("function", call), dict, f"{place}.function")
        arguments = _parsed(given(function, "arguments"), f"{place}.arguments", "broken-call")
        if not isinstance(arguments, dict | None):
            raise RowError("broken-call", f"{place} has arguments that are {type(arguments).__name__}, expected an "
                                          "object")
        named = {} if given(call, "id") is None else {"id": text(call, "id")}
        made.append({"type": "function", **named,
                     "function": {"name": _name(function, place), "arguments": arguments or {}}})
    return made


def with_tools(record: Record, defined: list[dict[str, Any]]) -> Record:
    """A record whose conversation may call these tools.

    Raises RowError tools-twice where the system message describes them already, as of rows that were rendered before.
    """
    if not defined:
        return record
    return replace(record, prompt=_told(record.prompt, defined), messages=_told(record.messages, defined))


def _told(conversation: list[Message], defined: list[dict[str, Any]]) -> list[Message]:
    if not conversation:
        return conversation
    first, *rest = conversation
    told = first["content"] if first["role"] == "system" else ""
    if "parameters" in told and all(tool["function"]["name"] in told for tool in defined):
        raise RowError("tools-twice", "the system message describes what stands in `tools`, too; remove one of them")
    return [{**first, "tools": defined}, *rest]


def _name(function: dict[str, Any], where: str) -> str:
    if not (name := optional_text(function, "name")):
        raise RowError("missing-field", f"name of {where}, which has {', '.join(map(str, function)) or 'no fields'}")
    return name


def _listed(value: Any, where: str, slug: str) -> list[Any]:
    """One or several, as objects or as text."""
    value = _parsed(_filled(value), where, slug)
    return value if isinstance(value, list) else [value]


def _parsed(value: Any, where: str, slug: str) -> Any:
    """What JSON text holds; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError(slug, f"{where} is {value[:80]!r}, which is no JSON: {error}") from error


def _filled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item) for key, item in value.items() if item is not None}
    return [_filled(item) for item in value] if isinstance(value, list) else value
