"""Calls in what a model said: the inverse of how its chat template writes an assistant's turn with one call.

Which tokens stand around a call, the template itself shows, by writing one: `<|bof|>` and `<|eof|>` of `retrieval`,
`<tool_call>` and `</tool_call>` of Qwen's. They are looked for among the ids, so that a text which spells them is no
call. What looks like a call and cannot be read is said to be that, and is no answer. Runs no model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from alignment.errors import DataError, ModelError
from alignment.records import Message
from alignment.records.importers.retrieval import RETRIEVE
from alignment.templates.encode import decode_answer, encode_completion
from alignment.templates.library import template_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CUT, UNREADABLE, UNMARKED = "call-cut", "call-unreadable", "call-without-marks"
SEVERAL, MORE = "several-calls", "text-after-call"
PROBLEMS = {
    CUT: "a call that max_new_tokens cut",
    UNREADABLE: "no function's name and JSON object between the call's two marks, or other marks than these two",
    UNMARKED: "a call's text without the tokens around it",
    SEVERAL: "more calls than one",
    MORE: "text between a call and the turn's end",
}
"""Why something that looks like a call is none, in words."""
_ASKED: list[Message] = [{"role": "user", "content": "x"}]
_SAID, _VALUE = "Kubealign", "probe"


@dataclass(frozen=True)
class Spoken:
    """What a model said, as a turn.

    Attributes:
        text: the answer, or what stands beside a call; with a problem all that was said, its marks as they are written.
        name: of the function that is called; None of an answer.
        arguments: of the call.
        problem: a key of PROBLEMS; then it is neither a call nor an answer.
    """

    text: str
    name: str | None = None
    arguments: dict[str, Any] | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Marks:
    """The tokens around a call, and how the text between them begins, without blanks."""

    begin: int
    end: int
    lead: str


def call_marks(tokenizer: PreTrainedTokenizerBase) -> Marks:
    """How the tokenizer's template writes a call of `retrieve`.

    Raises:
        ModelError: it writes none, or one that cannot be read back.
    """
    return _marks(tokenizer, str(tokenizer.get_chat_template()))


def read_turn(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, finished: bool) -> Spoken:
    """The turn that a model said.

    Args:
        ids: what was generated, without the stop token.
        finished: whether one was.

    Raises:
        ModelError: as `call_marks`.
    """
    return _read(tokenizer, call_marks(tokenizer), list(ids), finished)


def read_call(text: str) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments of a call's text: `name:` and an object, or one object with both. None where it is neither."""
    text = text.strip()
    try:
        if text.startswith("{"):
            whole = json.loads(text)
            name, arguments = whole.get("name"), whole.get("arguments", whole.get("parameters"))
        else:
            name, _, rest = text.partition(":")
            name, arguments = name.strip(), json.loads(rest)
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        json.dumps(arguments, ensure_ascii=False).encode()  # half a letter, as JSON may spell it, is no text
    except (ValueError, RecursionError):
        return None
    return (name, arguments) if isinstance(name, str) and name and isinstance(arguments, dict) else None


def unmarked(text: str, lead: str) -> bool:
    """Whether a text has a call that lost its marks."""
    return lead in "".join(text.split())


def _read(tokenizer: PreTrainedTokenizerBase, marks: Marks, ids: list[int], finished: bool) -> Spoken:
    begins = [place for place, token in enumerate(ids) if token == marks.begin]
    ends = [place for place, token in enumerate(ids) if token == marks.end]
    if not begins and not ends:
        text = decode_answer(tokenizer, ids, finished=finished)
        return Spoken(text, problem=UNMARKED if unmarked(text, marks.lead) else None)
    whole = _plain(tokenizer, ids)
    if begins and not ends and not finished:
        return Spoken(whole, problem=CUT)
    if len(begins) > 1:
        return Spoken(whole, problem=SEVERAL)
    if len(begins) != 1 or len(ends) != 1 or ends[0] < begins[0]:
        return Spoken(whole, problem=UNREADABLE)
    if _plain(tokenizer, ids[ends[0] + 1:]).strip():
        return Spoken(whole, problem=MORE)
    call = read_call(_plain(tokenizer, ids[begins[0] + 1: ends[0]]))
    if call is None:
        return Spoken(whole, problem=UNREADABLE)
    return Spoken(decode_answer(tokenizer, ids[: begins[0]], finished=False).strip(), *call)


def _plain(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """With special tokens as they are written: one within a call is no part of JSON, and must not vanish."""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@lru_cache(maxsize=16)
def _marks(tokenizer: PreTrainedTokenizerBase, template: str) -> Marks:
    where = f"chat template {template_hash(template)} of {tokenizer.name_or_path or 'the tokenizer'}"
    expected = "a template that writes one call between two tokens of its own, such as `template: retrieval`"
    call = {"type": "function", "function": {"name": RETRIEVE, "arguments": {"query": _VALUE}}}
    try:
        told = {said: encode_completion(tokenizer, _ASKED, {"role": "assistant", "content": said, "tool_calls": [call]}
                                        )[1][:-1] for said in ("", _SAID)}
    except DataError as error:
        raise ModelError(f"the chat template has no calls: {error.problem}", where=where, expected=expected) from error
    added = set(tokenizer.get_added_vocab().values())
    around = [token for token in told[""] if token in added]
    if len(around) != 2 or around[0] == around[1]:
        raise ModelError("the chat template's calls do not stand between two tokens", where=where,
                         found=tokenizer.decode(told[""]), expected=expected)
    begin, end = around
    body = _plain(tokenizer, told[""][told[""].index(begin) + 1: told[""].index(end)])
    marks = Marks(begin, end, "".join(body.partition(json.dumps(_VALUE))[0].split()))
    for said, ids in told.items():
        read = _read(tokenizer, marks, ids, True)
        if read != Spoken(said, RETRIEVE, {"query": _VALUE}):
            raise ModelError("calls that the chat template writes cannot be read back", where=where,
                             found=tokenizer.decode(ids), expected=expected)
    return marks
