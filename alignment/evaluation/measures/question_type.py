"""Accuracy of the kind of question that an answer names."""

from __future__ import annotations

from collections.abc import Collection

from alignment.evaluation.measures.base import SHARE, Measure, Reply, Rules
from alignment.words import words


def named(text: str, kinds: Collection[str]) -> set[str]:
    """Which of the kinds a text names, as whole words (`multi_hop` is `multi hop`); of two that share words the longer
    (`not bridge` where that is a kind beside `bridge`)."""
    said = _apart(text)
    found: set[str] = set()
    place = 0
    ordered = sorted(((_apart(kind), kind) for kind in kinds), key=lambda one: -len(one[0]))
    while place < len(said):
        name, kind = next((one for one in ordered if one[0] and said[place:place + len(one[0])] == one[0]), ([], None))
        found |= set() if kind is None else {kind}
        place += len(name) or 1
    return found


def _apart(text: str) -> list[str]:
    return words(text.replace("_", " "))


def lacks(reply: Reply, rules: Rules) -> str | None:
    return None if reply.kind is not None else "no kind"


def number(reply: Reply, rules: Rules) -> float:
    """1.0 where the compared part of the answer names the row's kind and no other kind of these rows."""
    return float(named(rules.part(reply.text), rules.kinds) == {reply.kind})


MEASURE = Measure(
    title="Question type",
    text="Share of rows whose answer names the row's kind (meta.kind), and no other kind that these rows have. "
         "answer_pattern says in which part.",
    source="ours", span=SHARE, better="higher", number=number, lacks=lacks, needs="rows have a kind")
