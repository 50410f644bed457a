"""Passages that are asked about, from rows that hold one; and seed questions, from rows that hold a question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from alignment.config.stages.generate.document_qa import Branch
from alignment.data.text import normalise
from alignment.records import Record
from alignment.records.importers.passages import passage_group


@dataclass(frozen=True)
class Passage:
    """A passage.

    Attributes:
        id: of the first row that holds it.
        group: rows of one group are about texts that belong together (a document), so that splits keep them together.
        document: where it stands, of a passage that comes from a document.
    """

    id: str
    text: str
    group: str
    document: dict[str, Any] = field(default_factory=dict)


def passages_of(records: Iterable[Record]) -> tuple[list[Passage], Counter[str]]:
    """(each passage once, in the order of the rows, why other rows have none)."""
    found: dict[str, Passage] = {}
    unfit: Counter[str] = Counter()
    for record in records:
        text = record.meta.get("passage")
        if not isinstance(text, str) or not text.strip():
            unfit["row without a passage"] += 1
            continue
        document = record.meta.get("document")
        found.setdefault(normalise(text), Passage(
            record.id, text.strip(), str(record.meta.get("group") or passage_group(text)),
            document if isinstance(document, dict) else {}))
    return list(found.values()), unfit


def seed_question(record: Record) -> tuple[Branch, str] | str:
    """The question of a row and its branch, or why it has none. What begins with yes or no answers a judgmental one."""
    question = record.meta.get("question")
    if not isinstance(question, str):
        asked = [turn for turn in record.prompt if turn["role"] == "user"]
        question = str(asked[-1]["content"]) if len(asked) == 1 else ""
    if not question.strip():
        return "no single question"
    answer = (record.reference() or "").strip().lower()
    kind = str(record.meta.get("kind", ""))
    judged = kind in ("yes-no", "judgmental") or answer.startswith(("yes", "no.", "no,", "是", "否", "不是")) or (
        answer == "no")
    return "judgmental" if judged else "open", " ".join(question.split())


def seed_questions(records: Iterable[Record] | None, texts: Mapping[str, str]) -> tuple[dict[Branch, list[str]],
                                                                                        Counter[str]]:
    """(branch -> its questions, each once, why rows have none).

    Args:
        records: None: those of `texts`, prompt files by step: a question a line.
    """
    made: dict[Branch, list[str]] = {"judgmental": [], "open": []}
    unfit: Counter[str] = Counter()
    if records is None:
        for branch, questions in made.items():
            questions += (line.strip() for line in texts.get(f"{branch}_seeds", "").splitlines() if line.strip())
    for record in records or ():
        if isinstance(found := seed_question(record), str):
            unfit[f"seed: {found}"] += 1
        else:
            made[found[0]].append(found[1])
    return {branch: list(dict.fromkeys(questions)) for branch, questions in made.items()}, unfit
