"""Which rows a contrastive pair can be made of: a prompt, a good answer, and a kind where that is asked with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from alignment.config import Contrastive
from alignment.data.projections import to_prompt
from alignment.records import Record

NO_PROMPT, NO_ANSWER, TWICE = "no prompt that ends with a question", "no good answer", "id of an earlier row"
NO_KIND, UNNAMED = "no kind (meta.kind)", "no kind that its prompt names"
ONE_KIND = "all rows are of one kind, so there is no other to ask for"


class Needs(NamedTuple):
    """What rows must have beside a prompt and an answer: a kind, one that the prompt names, another one among them."""

    kind: bool
    named: bool
    others: bool

    @classmethod
    def of(cls, stage: Contrastive, prompt: str) -> Needs:
        """Those of a stage whose prompt file has this text; it is of no matter where rows ask by themselves."""
        if stage.ask == "other_kind":
            return cls(kind=True, named=True, others=True)
        return cls(kind="{kind}" in prompt or "{other}" in prompt, named=False, others="{other}" in prompt)

    def met(self, rows: Iterable[Record]) -> bool:
        """Whether there is another kind to ask for, where one is."""
        return not self.others or len({row.meta.get("kind") for row in rows}) > 1


def good_row(record: Record, needs: Needs) -> Record | str:
    """The row with a prompt to answer and its answer as `completion`, or why it cannot serve."""
    made = to_prompt(record)
    if isinstance(made, str):
        return NO_PROMPT
    if not (made.completion or "").strip():
        return NO_ANSWER
    kind = made.meta.get("kind")
    if needs.kind and not (isinstance(kind, str) and kind.strip()):
        return NO_KIND
    if needs.named and not any(str(kind) in str(turn["content"]) for turn in made.prompt):
        return UNNAMED
    return replace(made, rejected=None)
