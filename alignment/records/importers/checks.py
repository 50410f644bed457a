"""Checks that every row passes, whatever file it comes from. Each failure has a reason of its own."""

from __future__ import annotations

import hashlib
import json

from alignment.records.importers.rows import RowError, blank
from alignment.records.types import Message, Record


def same(one: str, other: str) -> bool:
    """Whether two texts are the same here: equal but for blanks and line ends around them.

    What stands within counts: code that differs in its indentation, or lines that are broken elsewhere, are two texts.
    """
    return one.strip() == other.strip()


def check(record: Record) -> None:
    """Raises RowError: empty-prompt, empty-message, empty-answer, last-not-assistant, prompt-not-from-user,
    misplaced-system, chosen-equals-rejected or broken-text."""
    prompt, answers = record.prompt, [record.completion, record.rejected]
    if record.type == "messages":
        if not record.messages:
            raise RowError("empty-prompt", "there are no messages")
        if record.messages[-1]["role"] != "assistant":
            raise RowError("last-not-assistant", f"the last turn is the {record.messages[-1]['role']}'s")
        # A turn that is all call has no text, and is an answer all the same.
        prompt, last = record.messages[:-1], record.messages[-1]
        answers = [None if "tool_calls" in last else last["content"]]
    _check_prompt(prompt)
    for answer in answers:
        if answer is not None and blank(answer):
            raise RowError("empty-answer", "an answer has no text")
    if record.completion is not None and record.rejected is not None and same(record.completion, record.rejected):
        raise RowError("chosen-equals-rejected", "both answers are the same text")
    _check_encodable(record)


def _check_prompt(prompt: list[Message]) -> None:
    spoken = [message for message in prompt if message["role"] != "system"]
    if all(blank(message["content"]) for message in spoken):
        raise RowError("empty-prompt", "there is nothing to answer")
    if prompt[-1]["role"] not in ("user", "tool"):
        raise RowError("prompt-not-from-user", f"the turn before the answer is the {prompt[-1]['role']}'s")
    if blank(prompt[-1]["content"]):
        raise RowError("empty-prompt", "the turn to answer has no text")
    if any(blank(message["content"]) and "tool_calls" not in message for message in prompt):
        raise RowError("empty-message", "a turn of the conversation has no text")
    if any(message["role"] == "system" for message in prompt[1:]):
        raise RowError("misplaced-system", "a system message stands after the first turn")


def _check_encodable(record: Record) -> None:
    try:
        record.to_json().encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError("broken-text", f"half of a surrogate pair: {error.object[error.start]!r}") from error


class Seen:
    """Ids and texts of the rows so far; one object for all sources of a stage."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._texts: dict[bytes, str] = {}

    def add(self, record: Record) -> None:
        """Raises RowError duplicate-row or duplicate-id; only rows that pass are remembered."""
        turns = [{**message, "content": message["content"].strip()} for message in record.conversation()]
        content = json.dumps([turns, (record.rejected or "").strip(), record.label])
        digest = hashlib.sha256(content.encode()).digest()[:16]
        if digest in self._texts:
            raise RowError("duplicate-row", f"same text as row {self._texts[digest]}")
        if record.id in self._ids:
            raise RowError("duplicate-id", f"{record.id} is the id of another row")
        self._ids.add(record.id)
        self._texts[digest] = record.id
