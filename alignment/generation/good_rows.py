"""Which rows a contrastive pair can be made of: a prompt, a good answer, and a kind where another one is asked for."""

from __future__ import annotations

from dataclasses import replace

from alignment.data.projections import to_prompt
from alignment.records import Record

NO_PROMPT, NO_ANSWER, TWICE = "no prompt that ends with a question", "no good answer", "id of an earlier row"
NO_KIND = "no kind that its prompt names"


def good_row(record: Record, *, kinds: bool) -> Record | str:
    """The row with a prompt to answer and its answer as `completion`, or why it cannot serve.

    Args:
        kinds: whether its prompt has to name its kind, meta.kind.
    """
    made = to_prompt(record)
    if isinstance(made, str):
        return NO_PROMPT
    if not (made.completion or "").strip():
        return NO_ANSWER
    if kinds and not _names(made):
        return NO_KIND
    return replace(made, rejected=None)


def _names(record: Record) -> bool:
    kind = record.meta.get("kind")
    return isinstance(kind, str) and bool(kind) and any(kind in str(turn["content"]) for turn in record.prompt)
