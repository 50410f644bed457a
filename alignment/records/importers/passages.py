"""Questions about a passage: our own passage-qa rows, SQuAD, BoolQ, DROP, HotpotQA, MuSiQue.

One function per format, raw row -> Record without a prompt: the user message is built from meta.passage and
meta.question by `fill`. Nested files are flattened first (`squad_rows`, `drop_rows`). meta holds group, passage,
question, kind, and references: every accepted answer (the completion is the first).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from alignment.errors import DataError
from alignment.records.importers.keys import empty
from alignment.records.importers.rows import (
    RowError,
    blank,
    expect,
    extras,
    flag,
    get,
    given,
    name_of,
    optional_text,
    row_id,
    text,
)
from alignment.records.types import Record

UNANSWERABLE = "unanswerable"
"""Kind of a question that its passage does not answer."""


def fill(template: str, passage: str, question: str) -> str:
    """Put both texts into `template`; only {passage} and {question} count, braces elsewhere stay as they are."""
    # One split per field, joined at the end: a passage that holds "{question}" is not filled in turn.
    parts = (part.split("{question}") for part in template.split("{passage}"))
    return passage.join(question.join(part) for part in parts)


def passage_group(passage: str) -> str:
    """Name of a passage that has none: a digest of its words."""
    return hashlib.sha256(" ".join(passage.split()).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def passage_qa(row: dict[str, Any]) -> Record:
    """{id?, group?, passage, question, answer, rejected?, type?}; with `rejected` a preference."""
    kind = optional_text(row, "type") or name_of(row, "kind") or "qa"
    rejected = optional_text(row, "rejected") or None
    return _record(row, text(row, "passage"), text(row, "question"), [text(row, "answer")], kind, rejected)


def boolq(row: dict[str, Any]) -> Record:
    """{question, passage, answer: true|false} (Clark et al. 2019, arXiv:1905.10044)"""
    answer = "Yes" if expect(get(row, "answer"), bool, "answer") else "No"
    return _record(row, text(row, "passage"), text(row, "question"), [answer], "yes-no")


def squad_rows(document: Any, path: str) -> Iterator[Any]:
    """{data: [{paragraphs: [{context, qas: [...]}]}]} -> one object per question; what is broken stays as it is."""
    if not isinstance(document, dict) or not isinstance(document.get("data"), list):
        raise DataError("the top level is the wrong shape", where=path, found=_shape(document),
                        expected="{data: [{paragraphs: [{context, qas}]}]}")
    for article in document["data"]:
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        for paragraph in paragraphs if isinstance(paragraphs, list) else [article]:
            questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
            for question in questions if isinstance(questions, list) else [None]:
                if isinstance(question, dict):
                    yield {"context": paragraph.get("context"), **question}
                else:
                    yield paragraph if question is None else question


def squad_above(document: Any) -> Iterator[str]:
    """Keys of the document, its articles and paragraphs that `squad_rows` does not read (version, title, ...)."""
    yield from _others([document], "", "data")
    yield from _others(articles := document["data"], "data[].", "paragraphs", "context", "qas")
    inner = (article["paragraphs"] for article in articles
             if isinstance(article, dict) and isinstance(article.get("paragraphs"), list))
    yield from _others([paragraph for paragraphs in inner for paragraph in paragraphs], "data[].paragraphs[].",
                       "context", "qas")


def _others(nodes: Iterable[Any], path: str, *known: str) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, dict):
            yield from (path + str(key) for key, value in node.items() if key not in known and not empty(value))


def squad(row: dict[str, Any]) -> Record:
    """One question of SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250). An impossible one has no answer: prompt-only.

    The hub's columnar form, {text: [...]}, says that a question is impossible by an empty list alone.
    """
    answers = get(row, "answers")
    if columnar := isinstance(answers, dict):
        references = [expect(said, str, "answers.text") for said in expect(get(answers, "text"), list, "answers.text")]
    else:
        references = [text(expect(answer, dict, "answers"), "text") for answer in expect(answers, list, "answers")]
    if flag(row, "is_impossible") or (columnar and not references and given(row, "is_impossible") is None):
        if any(reference.strip() for reference in references):
            raise RowError("answers-differ", f"is_impossible is true, and answers has {references[0][:200]!r}")
        return _record(row, text(row, "context"), text(row, "question"), [], UNANSWERABLE)
    if not references:
        raise RowError("empty-answer", "answers is empty and the question is not marked is_impossible")
    return _record(row, text(row, "context"), text(row, "question"), references, "extractive")


def drop_rows(document: Any, path: str) -> Iterator[Any]:
    """{passage id: {passage, qa_pairs: [...]}} -> one object per question; what is broken stays as it is."""
    entries = list(document.values()) if isinstance(document, dict) else []
    if not entries or not any(isinstance(entry, dict) and "qa_pairs" in entry for entry in entries):
        raise DataError("the top level is the wrong shape", where=path, found=_shape(document),
                        expected="{passage id: {passage, qa_pairs}}")
    for group, entry in document.items():
        pairs = entry.get("qa_pairs") if isinstance(entry, dict) else None
        for pair in pairs if isinstance(pairs, list) else [entry]:
            yield {"group": group, "passage": entry.get("passage"), **pair} if isinstance(pair, dict) else pair


def drop_above(document: Any) -> Iterator[str]:
    """Keys of the entries that `drop_rows` does not read (wiki_url, ...)."""
    yield from _others(document.values(), "", "passage", "qa_pairs")


def drop(row: dict[str, Any]) -> Record:
    """One question of DROP (Dua et al. 2019, arXiv:1903.00161): the answer is a number, spans or a date."""
    others = expect(given(row, "validated_answers") or [], list, "validated_answers")
    answer, kind = _drop_answer(expect(get(row, "answer"), dict, "answer"))
    references = [answer, *(_drop_answer(expect(other, dict, "validated_answers"))[0] for other in others)]
    return _record(row, text(row, "passage"), text(row, "question"), references, kind)


def hotpotqa(row: dict[str, Any]) -> Record:
    """{_id, question, answer, context: [[title, sentences]], type} (Yang et al. 2018, arXiv:1809.09600)

    The passage is every paragraph of the context, distractors too, as "title: text".
    """
    paragraphs = [titled(title, "".join(told).strip()) for title, told in hotpot_context(row)]
    kind = optional_text(row, "type") or "multi-hop"
    return _record(row, "\n\n".join(paragraphs), text(row, "question"), [text(row, "answer")], kind)


def hotpot_context(row: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(title, sentences) of every paragraph of a HotpotQA row. Raises RowError wrong-type, missing-field."""
    context = get(row, "context")
    if isinstance(context, dict):  # the hub's columnar form of the same thing
        titles, sentences = (expect(get(context, field), list, f"context.{field}") for field in ("title", "sentences"))
        if len(titles) != len(sentences):
            raise RowError("wrong-type", f"context has {len(titles)} titles and {len(sentences)} lists of sentences")
        context = list(zip(titles, sentences, strict=True))
    made = []
    for entry in expect(context, list, "context"):
        if not (isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[1], list)):
            raise RowError("wrong-type", "context is not a list of [title, sentences]")
        title, *told = (expect(part, str, "a title or sentence of context") for part in (entry[0], *entry[1]))
        made.append((title, told))
    return made


def titled(title: str, told: str) -> str:
    """A paragraph as it is read and retrieved: its title in front."""
    return f"{title}: {told}"


def musique(row: dict[str, Any]) -> Record:
    """{id, question, answer, answer_aliases, paragraphs: [{title, paragraph_text}], answerable}

    (Trivedi et al. 2022, arXiv:2108.00573.) An unanswerable one has no answer: prompt-only.
    """
    entries = [expect(entry, dict, "paragraphs") for entry in expect(get(row, "paragraphs"), list, "paragraphs")]
    passage = "\n\n".join(titled(text(entry, "title"), text(entry, "paragraph_text")) for entry in entries)
    if flag(row, "answerable") is False:
        return _record(row, passage, text(row, "question"), [], UNANSWERABLE)
    aliases = expect(given(row, "answer_aliases") or [], list, "answer_aliases")
    references = [text(row, "answer"), *(expect(alias, str, "answer_aliases") for alias in aliases)]
    hops, marker, _ = row_id(row).partition("__")
    return _record(row, passage, text(row, "question"), references, hops if marker else "multi-hop")


def answered(record: Record, answer: str) -> Record:
    """A question that its passage does not answer, with what is said then as its answer; any other as it is."""
    if record.type != "prompt-only" or record.meta.get("kind") != UNANSWERABLE:
        return record
    return replace(record, type="prompt-completion", completion=answer, meta={**record.meta, "references": [answer]})


def _record(
    row: dict[str, Any], passage: str, question: str, references: list[str], kind: str, rejected: str | None = None
) -> Record:
    """A record whose prompt is still to be filled. No references: a question without an answer."""
    if blank(passage):
        raise RowError("empty-prompt", "the passage is empty")
    if blank(question):
        raise RowError("empty-prompt", "the question is empty")
    meta = {"group": passage_group(passage), **extras(row), "passage": passage, "question": question, "kind": kind,
            "references": list(dict.fromkeys(references))}
    if not references:
        return Record(row_id(row), "prompt-only", meta=meta)
    return Record(row_id(row), "prompt-completion" if rejected is None else "preference", completion=references[0],
                  rejected=rejected, meta=meta)


def _drop_answer(answer: dict[str, Any]) -> tuple[str, str]:
    """(text, kind); number first, then spans, then date, as in DROP's own evaluation."""
    number, spans, date = (given(answer, field) for field in ("number", "spans", "date"))
    if number is not None:
        return _plain(number, "answer.number"), "number"
    if spans := expect(spans or [], list, "answer.spans"):
        return ", ".join(expect(span, str, "answer.spans") for span in spans), "span" if len(spans) == 1 else "spans"
    date = expect(date or {}, dict, "answer.date")
    parts = [_plain(given(date, part) or "", f"answer.date.{part}") for part in ("day", "month", "year")]
    if not any(parts):
        raise RowError("empty-answer", "answer has no number, no spans and no date")
    return " ".join(part for part in parts if part), "date"


def _plain(value: Any, field: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError("wrong-type", f"{field} is {type(value).__name__}, expected a number or text")
    return str(value)


def _shape(value: Any) -> str:
    return f"an object with {', '.join(list(map(str, value))[:5])}" if isinstance(value, dict) else type(value).__name__
