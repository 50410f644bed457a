"""What is asked of a record: its prompt, and the reference it came with. Pure; draws nothing and runs no model."""

from __future__ import annotations

from dataclasses import replace

from alignment.records import Record


def as_prompt(record: Record) -> Record | None:
    """The record with a prompt to answer and, where it has one, its reference as `completion`; None without a prompt.

    A conversation is asked again at its last question. The unwanted completion of an unpaired row is no reference.
    """
    if record.type == "messages":
        turns, last = record.messages, None
        if turns and turns[-1]["role"] == "assistant":
            turns, last = turns[:-1], turns[-1]["content"]
        record = replace(record, prompt=turns, completion=last)
    elif record.label is False:
        record = replace(record, completion=None)
    return record if record.prompt and record.prompt[-1]["role"] in ("user", "tool") else None
