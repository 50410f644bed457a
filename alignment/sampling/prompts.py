"""What is asked of a record: its prompt, and the reference it came with. Pure; draws nothing and runs no model."""

from __future__ import annotations

from dataclasses import replace

from alignment.records import Record


def as_prompt(record: Record) -> Record | None:
    """The record with a prompt to answer and, where it has one, its reference as `completion`; None without a prompt.

    A conversation is asked again at its last question. An answer that is unwanted, or a call, is no reference.
    """
    prompt = record.prompt
    if record.type == "messages":
        answered = bool(record.messages) and record.messages[-1]["role"] == "assistant"
        prompt = record.messages[:-1] if answered else record.messages
    record = replace(record, prompt=prompt, completion=record.reference())
    return record if record.prompt and record.prompt[-1]["role"] in ("user", "tool") else None
