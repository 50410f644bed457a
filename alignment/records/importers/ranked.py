"""Preference sets in formats of their own: hh-rlhf transcripts, paired StackExchange answers.

One function per format, raw row -> Record of type preference; raises RowError.
"""

from __future__ import annotations

import re
from typing import Any

from alignment.records.importers.rows import RowError, extras, name_of, optional_text, row_id, text
from alignment.records.importers.turns import assistant, shown, user
from alignment.records.types import Message, Record

_TURN = re.compile(r"\r?\n\r?\n(Human|Assistant):")
_WHOLE = re.compile(r"\s*(Human|Assistant):")
"""How a text begins that is a transcript, and no answer alone."""


def split_transcript(transcript: str) -> list[Message]:
    """hh-rlhf text -> turns, outer blanks of each turn removed. Inverse of `join_transcript`.

    Raises RowError broken-transcript when it does not begin with a turn.
    """
    head, *parts = _TURN.split("\n\n" + transcript.lstrip())
    if head.strip() or not parts:
        raise RowError("broken-transcript", r"it does not begin with '\n\nHuman: ' or '\n\nAssistant: '")
    return [
        (user if speaker == "Human" else assistant)(content.strip())
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def join_transcript(messages: list[Message]) -> str:
    """Turns -> hh-rlhf text (Bai et al. 2022, arXiv:2204.05862)."""
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[message['role']]}: {message['content']}" for message in messages)


def hh_transcript(row: dict[str, Any]) -> Record:
    """{chosen, rejected}: two whole transcripts that differ in the last assistant turn only.

    Or {prompt, chosen, rejected}: a transcript that ends with "Assistant:", and what is said then.
    """
    sides, prompt = [], optional_text(row, "prompt")
    lead = split_transcript(prompt)[:-1] if prompt else None
    for field in ("chosen", "rejected"):
        said = text(row, field)
        conversation = split_transcript(said if lead is None or _WHOLE.match(said) else f"{prompt.rstrip()} {said}")
        if lead is not None and conversation[:-1] != lead:
            raise RowError("prompts-differ", f"prompt is {shown(lead)}, before {field} stands "
                                             f"{shown(conversation[:-1])}")
        if conversation[-1]["role"] != "assistant":
            raise RowError("last-not-assistant", f"{field} ends with a Human turn")
        sides.append(conversation)
    chosen, rejected = sides
    if chosen[:-1] != rejected[:-1]:
        raise RowError("prompts-differ", f"chosen has {len(chosen)} turns, rejected {len(rejected)}, "
                                         "and they differ before the last one")
    return Record(row_id(row), "preference", chosen[:-1], chosen[-1]["content"], rejected[-1]["content"],
                  meta=extras(row))


def stack_exchange_paired(row: dict[str, Any]) -> Record:
    """{question, response_j, response_k, qid?}: j has more votes than k; rows of one qid are one group."""
    meta = extras(row)
    if qid := name_of(row, "qid"):
        meta.setdefault("group", qid)
    return Record(row_id(row), "preference", [user(text(row, "question"))], text(row, "response_j"),
                  text(row, "response_k"), meta=meta)
