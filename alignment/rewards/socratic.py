"""How well a question is a Socratic one of the type that was asked for, by plain rules: `socratic_type`.

The five types are those of SocratiQ (Ang et al. 2023, Socratic Question Generation, EACL): a row names its own in
meta.kind. A type is told by the words such questions are usually asked with, so it is a floor and no judge: a question
that asks for reasons in other words gets nothing for its type, and one that only borrows the words gets it. Where a
model judges, put it behind an endpoint (docs/online.md).
"""

from __future__ import annotations

import re

from alignment.errors import DataError
from alignment.records import Record
from alignment.words import form, pieces, words

TYPES: dict[str, re.Pattern[str]] = {
    "clarity": re.compile(
        r"\bwhat (?:exactly|precisely)\b|\bwhat (?:do|does|did|would) .{0,40}\bmean\b|\b(?:explain|clarify|define)\b"
        r"|\bgive (?:me |us )?an example\b|\bin other words\b|\b(?:put|say) (?:that|it|this) (?:in )?an?other way\b"),
    "assumptions": re.compile(
        r"\bassum(?:e|es|ed|ing|ption|ptions)\b|\b(?:take|takes|taking|taken) (?:it )?for granted\b|\bpresuppos\w+"),
    "reasons_evidence": re.compile(
        r"\bevidence\b|\bproof\b|\breasons?\b.{0,12}\b(?:do|have|to|is|are)\b|\bhow (?:do|can|could) (?:you|we) know\b"
        r"|\bwhy do you (?:think|believe|say)\b|\bwhat makes you\b|\bwhat led you\b"),
    "implication_consequences": re.compile(
        r"\bconsequences?\b|\beffects?\b|\bwhat (?:would|will|could|might) happen\b|\bwhat happens\b"
        r"|\bwhat (?:would |will )?follows?\b|\bimpl(?:y|ies|ication|ications)\b|\blead to\b"),
    "alternate_viewpoints_perspectives": re.compile(
        r"\b(?:an)?other (?:way|reason|view|side|explanation)\b|\balternatives?\b|\bperspective\b|\bpoint of view\b"
        r"|\bhow (?:would|might|could) .+\b(?:see|view|look|describe|answer|understand)\b"
        r"|\bwhat (?:would|might|could) .+\bsay\b|\bin another way\b"),
}
"""Type -> words by which a question of it is known, in lower case."""
WORDS = range(4, 31)
_LONG = 5
"""Letters from which a word tells what a text is about."""


def socratic_type(record: Record, answer: str) -> float:
    """One question of the type that the row asks for, about what it says: 0 to 1.

    Nothing but one question of 4 to 30 words, in one line, gives anything: 0.2. The words of the type that was asked
    for give 0.6, half of it where those of another type stand there too: a question that asks everything asks nothing.
    A word of five letters or more that the context has too gives 0.2; the context is what follows `### Input:` in the
    row's last question, or all of it.

    Raises:
        DataError: meta.kind names no type.
    """
    kind = record.meta.get("kind")
    if kind not in TYPES:
        raise DataError("socratic_type needs rows that name the type of question", where=f"row {record.id}",
                        found=kind, expected=f"meta.kind, one of {', '.join(TYPES)}",
                        hint="format columns: `kind: Type`")
    said = answer.strip()
    if not said.endswith("?") or said.count("?") > 1 or "\n" in said or len(pieces(said)) not in WORDS:
        return 0.0
    found = {name for name, words in TYPES.items() if words.search(said.lower())}
    score = 0.2 + (0.0 if kind not in found else 0.6 if len(found) == 1 else 0.3)
    asked = str(record.prompt[-1]["content"]) if record.prompt else ""
    return score + (0.2 if _long(said) & _long(asked.partition("### Input:\n")[2] or asked) else 0.0)


def _long(text: str) -> set[str]:
    return {word for word in words(form(text)) if len(word) >= _LONG}
