"""What is refused of a teacher's answers: parts of a response as the parsers give them, and rows of bad.jsonl."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

RAW = 2000
"""Characters of a refused text that are kept."""


class Refused(NamedTuple):
    """A part of a response that is not kept."""

    reason: str
    text: str


@dataclass(frozen=True)
class Bad:
    """Something that was refused: a response, an instruction, or an example.

    Attributes:
        text: what was refused; of a request without an answer, what it asked.
        found: what was seen of an endpoint's failure.
    """

    id: str
    step: str
    reason: str
    text: str
    origin: dict[str, Any]
    found: str | None = None

    def line(self) -> dict[str, Any]:
        """A row of bad.jsonl."""
        made = {"id": self.id, "step": self.step, "reason": self.reason, "raw": self.text[:RAW], "origin": self.origin}
        return made if self.found is None else {**made, "found": self.found}
