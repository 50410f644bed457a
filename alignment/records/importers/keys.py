"""The keys of a row: which each format reads, and what becomes of the others.

A key that is not read is named and counted, so that nothing is dropped unsaid. A key that would change what is
learned, and that nothing here honours, makes a bad row: `unsupported-field`. Keys without content (null, blank, an
empty list) are no keys. Knows no values but flags; importers read those.
"""

from __future__ import annotations

import json
import math
from typing import Any

from alignment.records.importers.flags import FLAGS, SPEAKERS, default
from alignment.records.importers.rows import IDS, RowError

COMMON = (*IDS, "group", "kind", "meta", "system")
"""Read of every row."""


def _turns(*fields: str) -> tuple[str, ...]:
    """A conversation, and everything that is read of its turns."""
    inner = ("role", "content", "content[].type", "content[].text", "tool_calls", "reasoning_content", "name",
             "tool_call_id")
    return tuple(name for field in fields for name in (field, *(f"{field}[].{key}" for key in inner)))


def _turn(field: str) -> tuple[str, ...]:
    """One turn, and everything that is read of it."""
    return (field, *(f"{field}.{key}" for key in ("role", "content", "content[].type", "content[].text")))


def _speech(field: str) -> tuple[str, ...]:
    return tuple(f"{field}.{key}" for key in ("from", "value", "value[].type", "value[].text"))


def _learned(field: str) -> tuple[str, ...]:
    """Of conversations of which every turn may be learned; elsewhere the last alone is, whatever flags say."""
    return tuple(f"{field}[].{key}" for key in FLAGS)


_DROP = ("number", "spans", "date", "date.day", "date.month", "date.year")

READ: dict[str, tuple[str, ...]] = {
    "messages": (*_turns("messages"), *_learned("messages"), "tools", "parallel_tool_calls"),
    "prompt-completion": (*_turns("prompt", "completion"), "tools"),
    "preference": (*_turns("prompt", "chosen", "rejected", "completion"), "tools"),
    "unpaired": (*_turns("prompt", "completion", "messages"), "label", "tools"),
    "prompt-only": (*_turns("prompt"), "tools"),
    "alpaca": ("instruction", "input", "output", "history", "tools"),
    "self-instruct": ("instruction", "instances", "instances[].input", "instances[].output", "is_classification"),
    "sharegpt": ("conversations", *_speech("conversations[]"), *_learned("conversations"), "tools"),
    "sharegpt-preference": ("conversations", *_speech("conversations[]"), "chosen", *_speech("chosen"), "rejected",
                            *_speech("rejected"), "tools"),
    "hh-transcript": ("prompt", "chosen", "rejected"),
    "pandalm": ("instruction", "input", "response1", "response2", "annotator1", "annotator2", "annotator3"),
    "auto-j": ("prompt", "response 1", "response 2", "label", "scenario"),
    "reward-bench": (*_turns("prompt", "chosen", "rejected"), "chosen_model", "rejected_model", "subset"),
    "ultrafeedback-binarized": (*_turns("prompt", "chosen", "rejected"), "prompt_id", "score_chosen", "score_rejected"),
    "stack-exchange-paired": ("question", "response_j", "response_k", "qid"),
    "votes": (*_turns("messages"), *_turn("chosen"), *_turn("rejected"), "models", "models.a", "models.b", "vote",
              "time"),
    "passage-qa": ("passage", "question", "answer", "rejected", "type"),
    "squad": ("context", "question", "answers", "answers[].text", "answers.text", "is_impossible"),
    "boolq": ("passage", "question", "answer"),
    "drop": ("passage", "question", "answer", *(f"answer.{key}" for key in _DROP), "validated_answers",
             *(f"validated_answers[].{key}" for key in _DROP)),
    "hotpotqa": ("context", "context.title", "context.sentences", "question", "answer", "type"),
    "musique": ("paragraphs", "paragraphs[].title", "paragraphs[].paragraph_text", "question", "answer",
                "answer_aliases", "answerable"),
    "multihop": ("src", "question", "final_answer", "answer", "multihop", "meta_info", "tag", "sub_questions",
                 *(f"sub_questions[].{key}" for key in ("question", "answer", "long_answer", "paragraph",
                                                        "unanswerable"))),
}
"""Format -> the keys that are read beside COMMON: `a.b` is the key b of the object a, `a[].b` of each of a's items."""

_UNSUPPORTED = {
    "tools": "tools stand beside a conversation",
    "tool_calls": "only a turn of the assistant calls",
    **dict.fromkeys(("functions", "function_call"), "write `tools` and `tool_calls`, which took their place"),
    "reasoning_content": "only a turn of the assistant is thought about",
    **dict.fromkeys(("image", "images", "image_url", "audio", "audios", "input_audio", "video", "videos"),
                    "only text is read"),
    "chat_template_kwargs": "every row is rendered alike",
}
"""Key at any depth -> why a row that has it cannot be used as it is meant."""
_OF_ROWS = {
    "history": "only alpaca has a history; write its turns into the prompt",
    **dict.fromkeys(("system_prompt", "system_message"), "a system message stands under `system`"),
    "margin": "no margin is learned",
    "documents": "no template is given documents",
}
"""Likewise, for keys of a row itself."""
_OF_TURNS = {
    **dict.fromkeys(("reasoning", "thinking"), "what is thought stands under `reasoning_content`"),
    **dict.fromkeys(("train_detail", "training_detail"), "a turn is learned as a whole or not at all"),
    "refusal": "what is said stands under `content`",
}
"""Likewise, for keys of a turn."""
_ROLE_OF = {"tool_calls": "assistant", "reasoning_content": "assistant", "name": "tool", "tool_call_id": "tool"}
"""Keys of a turn that are read of one role alone."""
_WHOLE = ("meta", "tools", "tool_calls", "meta_info", "tag")
"""Objects and lists that are taken as they are."""
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
        if key in known or empty(value):
            continue
        if key in _OF_ROWS or _weighs(key, value):
            raise _refused(str(key), value, _OF_ROWS.get(key, "every row counts alike"))
        if key in ("label", "kto_tag") and value is False:
            raise _refused(str(key), value, "an answer that is not wanted would be learned; format unpaired, or "
                                            "columns, reads `label`")
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
    turn = bool(path) and spoken is not None
    for key, value in node.items():
        where = f"{path}.{key}" if path else str(key)
        if where in known and not (turn and _ROLE_OF.get(key, spoken) != spoken):
            if key in _WHOLE:
                continue
            if isinstance(value, dict):
                _walk(value, where, known, found)
            for item in value if isinstance(value, list | tuple) else ():
                if isinstance(item, dict):
                    _walk(item, where + "[]", known, found)
        elif not empty(value):
            if why := _UNSUPPORTED.get(key) or (_OF_TURNS.get(key) if turn else None):
                raise _refused(where, value, why)
            if turn and key in FLAGS:
                _check_flag(str(key), where, value, str(spoken))
            else:
                found[where] = None


def _check_flag(key: str, where: str, value: Any, role: str) -> None:
    """What every method here does anyway may be said."""
    if not default(key, value, role):
        raise _refused(where, value, "of this row the last answer alone is learned, and all of it; rows of `messages` "
                                     "may say more" if role in SPEAKERS else "only what the assistant says is learned")


def _weighs(key: Any, value: Any) -> bool:
    return key in ("weight", "loss_weight", "sample_weight", "loss_mask") and value != 1


def _refused(where: str, value: Any, why: str) -> RowError:
    return RowError("unsupported-field", f"{where} is {json.dumps(value, ensure_ascii=False, default=str)[:80]}: {why}")
