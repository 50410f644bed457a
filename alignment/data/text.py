"""When two texts are the same: one normal form, and the units (`alignment.words`) that overlap is counted in."""

from __future__ import annotations

import unicodedata

from alignment.records import Message, Record
from alignment.words import words


def normalise(text: str) -> str:
    """NFKC, case folded, every run of white space one blank."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def units(text: str) -> list[str]:
    """Words in normal form without punctuation; in scripts without blanks, characters. A name_of_code is one word."""
    return words(normalise(text), joined="_")


def prompt_of(record: Record) -> list[Message]:
    """The conversation up to the answer, for every record type."""
    return record.messages[:-1] if record.type == "messages" else record.prompt


def prompt_text(record: Record) -> str:
    """Normal form of the whole prompt but for the system message."""
    return normalise("\n".join(turn["content"] for turn in prompt_of(record) if turn["role"] != "system"))


def system_text(record: Record) -> str:
    """Normal form of the system message before the prompt, "" for rows without one."""
    return normalise("\n".join(turn["content"] for turn in prompt_of(record) if turn["role"] == "system"))


def passage_text(record: Record) -> str:
    """Normal form of meta.passage, "" for rows without one."""
    passage = record.meta.get("passage")
    return normalise(passage) if isinstance(passage, str) else ""
