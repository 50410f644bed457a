"""The row types of the field (TRL's): messages, prompt-completion, preference, unpaired, prompt-only; ties; passages.

One `Record` class holds them all; `type` says which fields are filled. A row on disk is one JSON object per
line (`Record.to_json`), UTF-8, lines split on "\\n" only. Does not read foreign formats: importers.py does.

    type               prompt  completion  rejected  label
    messages             -         -          -        -     (messages filled)
    prompt-completion    x         x          -        -
    preference           x         x          x        -     (completion is the chosen one)
    unpaired             x         x          -        x
    prompt-only          x         -          -        -
    tie                  x         x          x        -     (neither answer is preferred; to evaluate judges by)
    passage              -         -          -        -     (a text to ask about, in meta.passage; nothing to learn)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

RecordType = Literal["messages", "prompt-completion", "preference", "unpaired", "prompt-only", "tie", "passage"]
Message = dict[str, Any]
"""One turn, as chat templates take it: {"role": "system" | "user" | "assistant" | "tool", "content": text}, and also:

    learn               False: an assistant's turn that is context only, where every turn is learned
    tool_calls          of an assistant: [{"type": "function", "function": {"name", "arguments": object}, "id"?}]
    name, tool_call_id  of a tool: which call it answers
    reasoning_content   of an assistant: what it thought before it spoke
    tools               of a conversation's first turn: definitions of what may be called, for all of it
"""


@dataclass(frozen=True)
class Record:
    """One row. `prompt` ends with a user (or tool) turn; `completion` and `rejected` are assistant text.

    Attributes:
        id: unique within a data set, stable between runs (importers make it from source name and row).
        prompt: the conversation up to the answer.
        completion: the answer to learn, or the chosen one of a preference, or the reference in evaluation; of a tie,
            the first answer.
        rejected: the worse answer of a preference; of a tie, the second answer.
        messages: a whole conversation, for type messages.
        label: for unpaired rows, whether the completion is wanted.
        meta: what functions and reports may need: group (rows that share a text), passage, question, kind, source,
            document (where a passage stands: file, page or row, characters), votes (of a pair: annotator -> the field
            that he prefers, completion or rejected, or tie).
    """

    id: str
    type: RecordType
    prompt: list[Message] = field(default_factory=list)
    completion: str | None = None
    rejected: str | None = None
    messages: list[Message] = field(default_factory=list)
    label: bool | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON without empty fields."""
        kept = {name: value for name in _FIELDS if (value := getattr(self, name)) not in (None, [], {})}
        return json.dumps(kept, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> Record:
        """Inverse of to_json; raises ValueError or TypeError on anything else."""
        return cls(**json.loads(line))

    def reference(self) -> str | None:
        """The text that the row says is a good answer to its prompt, if it has one."""
        if self.type != "messages":
            return None if self.label is False or self.type == "tie" else self.completion
        last = self.messages[-1] if self.messages else {"role": ""}
        wanted = last["role"] == "assistant" and last.get("learn", True) and "tool_calls" not in last
        return last["content"] if wanted else None

    def conversation(self) -> list[Message]:
        """All turns, the completion (chosen answer) last."""
        if self.type == "messages":
            return self.messages
        last = [] if self.completion is None else [{"role": "assistant", "content": self.completion}]
        return [*self.prompt, *last]


_FIELDS = tuple(item.name for item in fields(Record))


def bad_row(record: Record, reason: str) -> dict[str, Any]:
    """A row of bad.jsonl: the record as it came, and why it went no further."""
    return {"id": record.id, "reason": reason, "raw": json.loads(record.to_json())}


def reasons(bad: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Rows of bad.jsonl by their reason."""
    return Counter(row["reason"] for row in bad)
