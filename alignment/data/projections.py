"""Which record can serve which method, and what the method gets of it. No tokenizing: training and sampling do.

    to_sft         messages, prompt-completion, preference (the chosen side), unpaired with label true
    to_preference  preference
    to_unpaired    unpaired, preference (two answers)
    to_prompt      whatever ends with a question, or did before its answer

Each gives the projection, or, for a row that cannot serve, the reason as text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from alignment.config import Stage
from alignment.config.stages.online import Online
from alignment.config.stages.train import Distill, Dpo, Kto, Orpo, Reward, Sft
from alignment.records import Message, Record
from alignment.records.importers.checks import same

Preference = tuple[list[Message], str, str]
"""(prompt, chosen, rejected)"""


def to_sft(record: Record) -> list[Message] | str:
    """The whole conversation, the answer to learn last (always the assistant's); or why not."""
    if record.type == "unpaired" and record.label is not True:
        return "unpaired with an unwanted answer"
    if record.type in ("prompt-only", "tie") or not (conversation := record.conversation()):
        return f"{record.type} has no answer to learn"
    if conversation[-1]["role"] != "assistant":
        return "the last turn is not the assistant's"
    return list(conversation)


def to_preference(record: Record) -> Preference | str:
    """(prompt, chosen, rejected); or why not."""
    if record.type != "preference":
        return f"{record.type} is no preference"
    if record.completion is None or record.rejected is None:
        return f"preference without a {'chosen' if record.completion is None else 'rejected'} answer"
    if same(record.completion, record.rejected):
        return "chosen equals rejected"
    return list(record.prompt), record.completion, record.rejected


def to_unpaired(record: Record) -> list[tuple[list[Message], str, bool]] | str:
    """(prompt, answer, whether it is wanted) of each answer: one, or both of a preference; or why not."""
    if record.type == "preference":
        pair = to_preference(record)
        return pair if isinstance(pair, str) else [(pair[0], pair[1], True), (pair[0], pair[2], False)]
    if record.type != "unpaired" or record.completion is None or record.label is None:
        return f"{record.type} has no label"
    return [(list(record.prompt), record.completion, record.label)]


def to_prompt(record: Record) -> Record | str:
    """The record with a prompt to answer and, where it has one, its reference as `completion`; or why it has no prompt.

    A conversation is asked again at its last question. An answer that is unwanted, or a call, is no reference.
    """
    prompt = record.prompt
    if record.type == "messages":
        answered = bool(record.messages) and record.messages[-1]["role"] == "assistant"
        prompt = record.messages[:-1] if answered else record.messages
    if not prompt or prompt[-1]["role"] not in ("user", "tool"):
        return f"{record.type} has no prompt that ends with a question"
    return replace(record, prompt=prompt, completion=record.reference())


PROJECTIONS: dict[type[Stage], Callable[[Record], object]] = {
    Sft: to_sft, Reward: to_preference, Dpo: to_preference, Kto: to_unpaired,
    Orpo: to_preference, Distill: to_sft, Online: to_prompt,
}
"""Training method -> what it takes of a record: the projection, or the reason (text) why the record cannot serve."""
