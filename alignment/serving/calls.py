"""Calls of a request's tools in an answer: read back as stages read them, told in OpenAI's shape.

What is said before a call is told as it comes. From the token that begins one, all is held back until the answer ends,
and is then a call of one of the tools that the request told of, or text as any other.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alignment.errors import DataError
from alignment.inference.live.opened import LiveModel
from alignment.records import Message
from alignment.records.importers.retrieval import RETRIEVE
from alignment.serving.growing import Text
from alignment.templates import Spoken, encode_prompt, read_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Calling:
    """Another text, whose end may be a call.

    Attributes:
        call: once it has ended, if it is one.
    """

    def __init__(self, text: Text, tokenizer: PreTrainedTokenizerBase, begin: int, names: frozenset[str]) -> None:
        self._text, self._tokenizer, self._begin, self._names = text, tokenizer, begin, names
        self._ids, self._held, self._blank = list[int](), list[int](), ""
        self.call: Spoken | None = None

    def add(self, token: int) -> str:
        self._ids.append(token)
        if self._held or token == self._begin:
            self._held.append(token)
            return ""
        said = self._blank + self._text.add(token)  # blanks at its end may be what stands between a text and a call
        kept = said.rstrip()
        self._blank = said[len(kept):]
        return kept

    def end(self, *, finished: bool) -> str:
        spoken = read_turn(self._tokenizer, self._ids, finished=finished) if self._held else Spoken("")
        if spoken.name in self._names:
            self.call = spoken
            return (self._blank + self._text.end(finished=False)).rstrip()
        return self._blank + "".join(map(self._text.add, self._held)) + self._text.end(finished=finished)


def calling(text: Text, model: LiveModel, tools: Sequence[Mapping[str, Any]] | None) -> Text:
    """A text in which calls of these tools are read, where the model's template writes calls that can be."""
    names = frozenset(filter(None, map(_name, tools or ())))
    return Calling(text, model.speaker, model.marks.begin, names) if names and model.marks else text


def told(call: Spoken) -> dict[str, Any]:
    """A call as OpenAI has it."""
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}}


def encode_told(model: LiveModel, prompt: list[Message]) -> list[int]:
    """Ids of a conversation and its tools. `retrieve` is not told to a model whose template writes calls and takes no
    tools (`template: retrieval`): it knows it from its training, and is asked as there. Raises as `encode_prompt`."""
    try:
        return encode_prompt(model.tokenizer, prompt)
    except DataError:
        if {_name(tool) for tool in prompt[0].get("tools") or ()} != {RETRIEVE} or model.marks is None:
            raise
        return encode_prompt(model.tokenizer, [{key: value for key, value in prompt[0].items() if key != "tools"},
                                               *prompt[1:]])


def _name(tool: Mapping[str, Any]) -> str | None:
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None
