"""Rows of the passage formats as questions that are answered over calls of `retrieve` (retrieval.py).

SQuAD, BoolQ, DROP and passage-qa: one call, whose query is the question; the answer is the data set's own, in its few
words. MuSiQue: a call for each question of its decomposition. HotpotQA has none: one call that finds all supporting
paragraphs. Reasons, thoughts and whole sentences for answers are a teacher's (recipe multihop).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from alignment.records.importers.passages import hotpot_context, titled
from alignment.records.importers.retrieval import (
    NO_ANSWER,
    Paragraph,
    Retrieval,
    SubQuestion,
    record_of,
    with_paragraphs,
)
from alignment.records.importers.rows import RowError, expect, get, given, text
from alignment.records.types import Record
from alignment.words import words

READ = {
    "musique": ("question_decomposition", *(f"question_decomposition[].{key}" for key in (
        "question", "answer", "paragraph_support_idx")), "paragraphs[].idx"),
    "hotpotqa": ("supporting_facts", "supporting_facts.title", "supporting_facts.sent_id"),
}
"""Format -> the keys that are read beside those of a passage."""
Made = tuple[Retrieval, list[Paragraph]]
"""A row, and what can be retrieved for it where that is more than its conversation shows."""
_EARLIER = re.compile(r"#(\d+)")
"""MuSiQue's `#1` in a question: the answer to its first."""


def retrieved(record: Record, row: dict[str, Any], format: str) -> Record:
    """The conversation of a row that a passage format has read.

    Args:
        record: what the format made of `row`, its prompt still empty.

    Raises:
        RowError: broken-decomposition, malformed-sub-question (MuSiQue's "a >> b", which is no question),
            missing-field, wrong-type, unsupported-field (an answer to reject).
    """
    if record.rejected is not None:
        raise RowError("unsupported-field", "rejected: a conversation with calls has one answer")
    made, paragraphs = _MADE.get(format, _single)(record, row)
    kept = replace(record_of(made, record.id, record.meta), type="messages")
    return with_paragraphs(kept, paragraphs) if paragraphs else kept


def _single(record: Record, row: dict[str, Any]) -> Made:
    return _one_call(record, record.meta["passage"]), []


def _one_call(record: Record, paragraph: str) -> Retrieval:
    question, short = record.meta["question"], record.completion
    said = NO_ANSWER if short is None else short
    return Retrieval(f"{record.meta['kind']}.json", question, said, short,
                     (SubQuestion(question, short, said, paragraph, short is None),))


def _hotpotqa(record: Record, row: dict[str, Any]) -> Made:
    facts: dict[str, list[int]] = {}
    for title, sentence in _facts(get(row, "supporting_facts")):
        facts.setdefault(title, []).append(sentence)
    paragraphs = [Paragraph(titled(title, "".join(told).strip()), title, title in facts,
                            tuple(sorted(set(facts.get(title, ())))))
                  for title, told in hotpot_context(row)]
    found = [one for one in paragraphs if one.gold]
    # An answer that rests on a text which is not there would be learned without it.
    if lacking := sorted(facts.keys() - {one.title for one in found}):
        raise RowError("missing-field", f"supporting_facts: {', '.join(lacking[:4])} not in context")
    if not found:
        raise RowError("missing-field", "supporting_facts is empty")
    return replace(_one_call(record, "\n\n".join(one.text for one in found)), src="hotpotqa.json"), paragraphs


def _facts(value: Any) -> list[tuple[str, int]]:
    """(title, sentence) of HotpotQA's supporting facts, in its own form or the hub's columnar one."""
    if isinstance(value, dict):
        titles = expect(get(value, "title"), list, "supporting_facts.title")
        sentences = expect(given(value, "sent_id") or [0] * len(titles), list, "supporting_facts.sent_id")
        if len(titles) != len(sentences):
            raise RowError("wrong-type", f"supporting_facts has {len(titles)} titles and {len(sentences)} sent_id")
        value = list(zip(titles, sentences, strict=True))
    made = []
    for fact in expect(value, list, "supporting_facts"):
        if not (isinstance(fact, list | tuple) and len(fact) == 2):
            raise RowError("wrong-type", "supporting_facts is not a list of [title, sentence]")
        made.append((expect(fact[0], str, "a title of supporting_facts"),
                     expect(fact[1], int, "a sentence of supporting_facts")))
    return made


def _musique(record: Record, row: dict[str, Any]) -> Made:
    steps = [expect(step, dict, "question_decomposition")
             for step in expect(get(row, "question_decomposition"), list, "question_decomposition")]
    entries = {_number(entry, "idx", place): entry for place, entry in enumerate(row["paragraphs"])}
    paragraphs = {number: titled(text(entry, "title"), text(entry, "paragraph_text"))
                  for number, entry in entries.items()}
    answers = [text(step, "answer") for step in steps]
    supports = [given(step, "paragraph_support_idx") for step in steps]
    subs: list[SubQuestion] = []
    for step, short, support in zip(steps, answers, supports, strict=True):
        question = _asked(text(step, "question"), answers)
        if support is not None and support not in paragraphs:
            raise RowError("broken-decomposition", f"there is no paragraph {support!r}")
        if support is None:  # nothing answers it: what a retriever would find, and no question after it
            others = [one for number, one in paragraphs.items() if number not in supports]
            subs.append(SubQuestion(question, None, NO_ANSWER, _nearest(question, others), unanswerable=True))
            break
        subs.append(SubQuestion(question, short, short, paragraphs[support]))
    if not subs or (record.completion is None) != subs[-1].unanswerable:
        raise RowError("broken-decomposition", "`answerable` and the paragraphs of its questions disagree")
    final = NO_ANSWER if record.completion is None else record.completion
    gold = {one.paragraph for one in subs if not one.unanswerable}
    return (Retrieval("musique.json", record.meta["question"], final, record.completion, tuple(subs), multihop=True),
            [Paragraph(told, text(entries[number], "title"), told in gold) for number, told in paragraphs.items()])


def _asked(question: str, answers: Sequence[str]) -> str:
    if ">>" in question:
        raise RowError("malformed-sub-question", question[:200])

    def earlier(match: re.Match[str]) -> str:
        number = int(match[1])
        if not 1 <= number <= len(answers):
            raise RowError("broken-decomposition", f"{match[0]} in {question[:200]!r}, of {len(answers)} questions")
        return answers[number - 1]

    return _EARLIER.sub(earlier, question)


def _nearest(question: str, paragraphs: Sequence[str]) -> str:
    if not paragraphs:
        raise RowError("broken-decomposition", "every paragraph supports a question, and one has none")
    asked = set(words(question))
    return max(paragraphs, key=lambda one: len(asked & set(words(one))))


def _number(entry: dict[str, Any], field: str, place: int) -> int:
    value = given(entry, field)
    return place if value is None else expect(value, int, field)


_MADE: dict[str, Callable[[Record, dict[str, Any]], Made]] = {"hotpotqa": _hotpotqa, "musique": _musique}
