"""When two texts are the same: one normal form, and the units (words, CJK characters) that overlap is counted in."""

from __future__ import annotations

import re
import unicodedata

from alignment.records import Message, Record

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNIT = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")


def normalise(text: str) -> str:
    """NFKC, case folded, every run of white space one blank."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def units(text: str) -> list[str]:
    """Words in normal form without punctuation; in Chinese and Japanese, characters."""
    return _UNIT.findall(normalise(text))


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
