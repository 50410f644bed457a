"""What is asked of a record: its prompt, and the reference it came with. Pure; draws nothing and runs no model."""

from __future__ import annotations

from alignment.data.projections import to_prompt
from alignment.records import Record

NO_PROMPT = "no prompt that ends with a question"
TOO_LONG = "prompt longer than max_prompt_tokens"
"""Why a row is not asked."""


def as_prompt(record: Record) -> Record | None:
    """The record with a prompt to answer and, where it has one, its reference as `completion`; None without a prompt.

    A conversation is asked again at its last question. An answer that is unwanted, or a call, is no reference.
    """
    made = to_prompt(record)
    return None if isinstance(made, str) else made
