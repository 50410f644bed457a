"""The keys of a row: which each format reads, and what becomes of the others.

A key that is not read is named and counted, so that nothing is dropped unsaid. A key that would change what is
learned, and that nothing here honours, makes a bad row: `unsupported-field`. Keys without content (null, blank, an
empty list) are no keys. Knows no values but flags; importers read those.
"""

from __future__ import annotations

import json
import math
from typing import Any

from alignment.records.importers.rows import IDS, RowError

COMMON = (*IDS, "group", "kind", "meta", "system")
"""Read of every row."""


def _turns(*fields: str) -> tuple[str, ...]:
    """A conversation, and everything that is read of its turns."""
    inner = ("role", "content", "content[].type", "content[].text")
    return tuple(name for field in fields for name in (field, *(f"{field}[].{key}" for key in inner)))


def _speech(field: str) -> tuple[str, ...]:
    return tuple(f"{field}.{key}" for key in ("from", "value", "value[].type", "value[].text"))


_DROP = ("number", "spans", "date", "date.day", "date.month", "date.year")

READ: dict[str, tuple[str, ...]] = {
    "messages": _turns("messages"),
    "prompt-completion": _turns("prompt", "completion"),
    "preference": _turns("prompt", "chosen", "rejected", "completion"),
    "unpaired": (*_turns("prompt", "completion", "messages"), "label"),
    "prompt-only": _turns("prompt"),
    "alpaca": ("instruction", "input", "output", "history"),
    "sharegpt": ("conversations", *_speech("conversations[]")),
    "sharegpt-preference": ("conversations", *_speech("conversations[]"), "chosen", *_speech("chosen"), "rejected",
                            *_speech("rejected")),
    "hh-transcript": ("chosen", "rejected"),
    "pandalm": ("instruction", "input", "response1", "response2", "annotator1", "annotator2", "annotator3"),
    "stack-exchange-paired": ("question", "response_j", "response_k", "qid"),
    "passage-qa": ("passage", "question", "answer", "rejected", "type"),
    "squad": ("context", "question", "answers", "answers[].text", "is_impossible"),
    "boolq": ("passage", "question", "answer"),
    "drop": ("passage", "question", "answer", *(f"answer.{key}" for key in _DROP), "validated_answers",
             *(f"validated_answers[].{key}" for key in _DROP)),
    "hotpotqa": ("context", "context.title", "context.sentences", "question", "answer", "type"),
    "musique": ("paragraphs", "paragraphs[].title", "paragraphs[].paragraph_text", "question", "answer",
                "answer_aliases", "answerable"),
}
"""Format -> the keys that are read beside COMMON: `a.b` is the key b of the object a, `a[].b` of each of a's items."""

_UNSUPPORTED = {
    **dict.fromkeys(("tools", "functions", "tool_calls", "function_call"), "no template is given tools"),
    "reasoning_content": "only what is said is learned",
    **dict.fromkeys(("image", "images", "image_url", "audio", "audios", "input_audio", "video", "videos"),
                    "only text is read"),
    "chat_template_kwargs": "every row is rendered alike",
}
"""Key at any depth -> why a row that has it cannot be used as it is meant."""
_OF_ROWS = {
    "history": "only alpaca has a history; write its turns into the prompt",
    **dict.fromkeys(("system_prompt", "system_message"), "a system message stands under `system`"),
    "margin": "no margin is learned",
}
"""Likewise, for keys of a row itself."""
_OF_TURNS = dict.fromkeys(("reasoning", "thinking"), "only what is said is learned")
"""Likewise, for keys of a turn."""
_FLAGS = ("weight", "loss_mask", "train", "loss")
"""Keys of a turn that say whether it is learned, or how much."""
_EMPTY_TEXT = frozenset({"", "[]", "{}", "null", "None"})


def check_keys(row: dict[str, Any], format: str, also: tuple[str, ...] = ()) -> list[str]:
    """The keys of a row that its format does not read, in the row's order, each once; `a[].b` as in READ.

    Args:
        also: keys that are read for another reason (the split field).

    Raises:
        RowError: unsupported-field, naming the key and what it holds.
    """
    known = frozenset((*COMMON, *also, *READ[format]))
    found: dict[str, None] = {}
    for key, value in row.items():
        if key not in known and not empty(value) and (key in _OF_ROWS or _weighs(key, value)):
            raise _refused(str(key), value, _OF_ROWS.get(key, "every row counts alike"))
    _walk(row, "", known, found)
    return list(found)


def empty(value: Any) -> bool:
    """Whether a value says nothing. False and 0 say something."""
    if isinstance(value, str):
        return value.strip() in _EMPTY_TEXT
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, list | dict | tuple) and not value)


def _walk(node: dict[Any, Any], path: str, known: frozenset[str], found: dict[str, None]) -> None:
    spoken = node.get("role", node.get("from"))
    for key, value in node.items():
        where = f"{path}.{key}" if path else str(key)
        if where in known:
            if isinstance(value, dict) and where != "meta":
                _walk(value, where, known, found)
            for item in value if isinstance(value, list | tuple) else ():
                if isinstance(item, dict):
                    _walk(item, where + "[]", known, found)
        elif not empty(value):
            turn = bool(path) and spoken is not None
            if why := _UNSUPPORTED.get(key) or (_OF_TURNS.get(key) if turn else None):
                raise _refused(where, value, why)
            if turn and key in _FLAGS:
                _check_flag(str(key), where, value, str(spoken))
            else:
                found[where] = None


def _check_flag(key: str, where: str, value: Any, role: str) -> None:
    """What every method here does anyway may be said: assistants' turns are learned, others are not."""
    spoken = role in ("assistant", "gpt", "chatgpt", "model", "function_call")
    if value not in ((1,) if spoken else (0, 1) if key == "weight" else (0,)):
        raise _refused(where, value, "which turns are learned says `loss` of a stage, for all rows alike")


def _weighs(key: Any, value: Any) -> bool:
    return key in ("weight", "loss_mask") and value != 1


def _refused(where: str, value: Any, why: str) -> RowError:
    return RowError("unsupported-field", f"{where} is {json.dumps(value, ensure_ascii=False, default=str)[:80]}: {why}")
