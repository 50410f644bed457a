"""Which record can serve which method, and what the method gets of it. No tokenizing: training and sampling do.

    to_sft         messages, prompt-completion, preference (the chosen side), unpaired with label true
    to_preference  preference
    to_prompt      everything with a prompt

Each gives the projection, or, for a row that cannot serve, the reason as text; `project` does a whole set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

from alignment.data.text import prompt_of
from alignment.errors import DataError
from alignment.records import Message, Record

Preference = tuple[list[Message], str, str]
"""(prompt, chosen, rejected)"""
Prompt = tuple[list[Message], str | None]
"""(prompt, reference answer or None)"""
T = TypeVar("T", list[Message], Preference, Prompt)

SERVES = {
    "sft": "messages, prompt-completion, preference, or unpaired with label true",
    "reward": "preference",
    "dpo": "preference",
    "sample": "any row with a prompt",
    "evaluate": "any row with a prompt",
}
"""Method or stage kind -> the record types it can use, in words."""


def to_sft(record: Record) -> list[Message] | str:
    """The whole conversation, the answer to learn last (always the assistant's); or why not."""
    if record.type == "unpaired" and record.label is not True:
        return "unpaired with an unwanted answer"
    if record.type == "prompt-only" or not (conversation := record.conversation()):
        return f"{record.type} has no answer to learn"
    if conversation[-1]["role"] != "assistant":
        return "the last turn is not the assistant's"
    return list(conversation)


def to_preference(record: Record) -> Preference | str:
    """(prompt, chosen, rejected); or why not."""
    if record.type != "preference" or record.completion is None or record.rejected is None:
        return f"{record.type} is no preference"
    if record.completion.split() == record.rejected.split():
        return "chosen equals rejected"
    return list(record.prompt), record.completion, record.rejected


def to_prompt(record: Record) -> Prompt | str:
    """(prompt, reference): of messages all but the last assistant turn, and that turn; or why not.

    The reference of a preference is the chosen answer; an unwanted unpaired answer is none.
    """
    if record.type == "messages" and (not record.messages or record.messages[-1]["role"] != "assistant"):
        return "the last turn is not the assistant's"
    prompt = list(prompt_of(record))
    if not any(turn["role"] != "system" for turn in prompt):
        return f"{record.type} has no prompt"
    if record.type == "messages":
        return prompt, record.messages[-1]["content"]
    return prompt, None if record.label is False else record.completion


def project(
    records: Iterable[Record], projection: Callable[[Record], T | str], method: str, where: str
) -> tuple[list[tuple[Record, T]], list[tuple[Record, str]]]:
    """(rows that can serve with their projection, rows that cannot with the reason).

    Args:
        method: sft, reward, dpo, sample or evaluate: names the need in errors.
        where: names the rows in errors, for example `stage sft, rows seed/train`.

    Raises:
        DataError: not one row can serve.
    """
    fit: list[tuple[Record, T]] = []
    unfit: list[tuple[Record, str]] = []
    for record in records:
        made = projection(record)
        if isinstance(made, str):
            unfit.append((record, made))
        else:
            fit.append((record, made))
    if not fit:
        types = dict(Counter(record.type for record, _ in unfit))
        reasons = dict(Counter(reason for _, reason in unfit))
        raise DataError(f"no row can be used for {method}", where=where, found=f"rows of types {types}: {reasons}",
                        expected=SERVES[method], hint="choose other rows, or import them with another format")
    return fit, unfit
