"""A question that is answered over calls of `retrieve`: the row of qa_expert (github.com/khaimt/qa_expert), and the
conversation that it teaches.

    user        question
    assistant   calls retrieve(first sub-question)
    tool        its paragraph
    assistant   long answer to it, and calls retrieve(next sub-question)
    tool        its paragraph
    assistant   long answer to it, a line break, "Summary: " and the final answer

A question that needs no second paragraph is its own query, and its final answer is the last turn. Which texts stand
around turns and calls is the chat template's (`template: retrieval`). Asks nobody and reads no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from typing import Any

from alignment.records.importers.passages import UNANSWERABLE
from alignment.records.importers.rows import (
    RowError,
    blank,
    expect,
    extras,
    flag,
    get,
    given,
    optional_text,
    plain,
    row_id,
    text,
)
from alignment.records.types import Message, Record

RETRIEVE = "retrieve"
"""Name of the function that is called; its one argument is `query`."""
SUMMARY = "Summary: "
NO_ANSWER = "The retrieved text does not answer this question."
"""The answer to a question whose paragraph does not answer it, where rows bring none of their own."""


TOOL: dict[str, Any] = {"type": "function", "function": {
    "name": RETRIEVE, "description": "Gives the text that fits a query best.",
    "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}}}
"""The function as those have to be told of it who do not know it from their training: models of an endpoint."""


@dataclass(frozen=True)
class Paragraph:
    """A text that can be retrieved for a row.

    Attributes:
        text: as it is shown, its title in front where the data set has one.
        gold: whether the row's answer rests on it.
        facts: its sentences that the answer rests on, counted from 0, where the data set names them (HotpotQA).
    """

    text: str
    title: str | None = None
    gold: bool = False
    facts: tuple[int, ...] = ()


@dataclass(frozen=True)
class SubQuestion:
    """One question that one paragraph answers.

    Attributes:
        answer: in a few words, as data sets have it; None where it is not known.
        long_answer: what is learned, in whole sentences.
        unanswerable: whether the paragraph does not answer it.
    """

    question: str
    answer: str | None
    long_answer: str
    paragraph: str
    unanswerable: bool = False


@dataclass(frozen=True)
class Retrieval:
    """A row of qa_expert's format.

    Attributes:
        src: where it comes from: squad.json, gen_qa.json, ...
        answer: in a few words; None where it is not known.
        multihop: None where the row does not say: then it is when it has several sub-questions.
        meta_info, tag: of newer rows; kept as they are.
    """

    src: str
    question: str
    final_answer: str
    answer: str | None
    sub_questions: tuple[SubQuestion, ...]
    multihop: bool | None = None
    meta_info: Any = None
    tag: Any = None

    @property
    def hops(self) -> bool:
        """Whether its sub-questions are asked one by one, and their answers summed up."""
        return len(self.sub_questions) > 1 if self.multihop is None else self.multihop

    @property
    def sums_up(self) -> bool:
        """Whether its final answer follows from those to its sub-questions: there are several, and all are answered."""
        return self.hops and not any(one.unanswerable for one in self.sub_questions)

    @property
    def to_answer(self) -> int:
        """Answers that have to be written for it: to each sub-question that has one, and the final one."""
        return sum(not one.unanswerable for one in self.sub_questions) + self.sums_up

    def to_json(self) -> dict[str, Any]:
        """The row as qa_expert has it; the keys of newer rows where they are filled."""
        made = {**asdict(self), "sub_questions": [asdict(one) for one in self.sub_questions]}
        return {key: value for key, value in made.items()
                if value is not None or key not in ("multihop", "meta_info", "tag")}


def retrieval_row(row: dict[str, Any]) -> Retrieval:
    """The row that a JSON object is.

    Raises:
        RowError: missing-field, wrong-type, empty-prompt, empty-answer, hops-differ.
    """
    subs = tuple(_sub_question(expect(item, dict, where), where)
                 for index, item in enumerate(expect(get(row, "sub_questions"), list, "sub_questions"))
                 for where in [f"sub_questions[{index}]"])
    if not subs:
        raise RowError("missing-field", "sub_questions is an empty list")
    made = Retrieval(optional_text(row, "src"), text(row, "question"), text(row, "final_answer"),
                     optional_text(row, "answer") or None, subs, flag(row, "multihop"), plain(given(row, "meta_info")),
                     plain(given(row, "tag")))
    if made.multihop is False and len(subs) > 1:
        raise RowError("hops-differ", f"multihop is false, and there are {len(subs)} sub_questions")
    if blank(made.question):
        raise RowError("empty-prompt", "the question is empty")
    if blank(made.final_answer) or (made.hops and any(blank(one.long_answer) for one in subs)):
        raise RowError("empty-answer", "final_answer is empty, or long_answer of a sub-question")
    return made


def _sub_question(row: dict[str, Any], where: str) -> SubQuestion:
    try:
        made = SubQuestion(text(row, "question"), optional_text(row, "answer") or None,
                           optional_text(row, "long_answer"), text(row, "paragraph"), bool(flag(row, "unanswerable")))
    except RowError as error:
        raise RowError(error.slug, f"{where}: {error.detail}") from error
    if blank(made.paragraph) or blank(made.question):
        raise RowError("empty-prompt", f"{where} has an empty question or paragraph")
    return made


def multihop(row: dict[str, Any]) -> Record:
    """{src, question, final_answer, answer, sub_questions: [{question, answer, long_answer, paragraph}]}"""
    made = retrieval_row(row)
    kind = made.src.removesuffix(".json") or ("multi-hop" if made.hops else "single-hop")
    return record_of(made, row_id(row), {"kind": kind, **extras(row)})


def record_of(row: Retrieval, id_: str, meta: dict[str, Any]) -> Record:
    """The row as a conversation to learn; meta gets the row itself, its passage, question and references beside what is
    given."""
    short = [text for text in (row.answer,) if text]
    known = {"passage": "\n\n".join(dict.fromkeys(one.paragraph for one in row.sub_questions)),
             "question": row.question, "references": [*short, row.final_answer]}
    return Record(id_, "messages", messages=conversation(row), meta={**known, **meta, "multihop": row.to_json()})


def row_of(record: Record) -> Retrieval | None:
    """The row that `record_of` made a record of; None of any other record."""
    kept = record.meta.get("multihop")
    try:
        return retrieval_row(kept) if isinstance(kept, dict) else None
    except RowError:
        return None


def with_paragraphs(record: Record, paragraphs: Sequence[Paragraph]) -> Record:
    """The record with what can be retrieved for it, which its own conversation shows only in part."""
    return replace(record, meta={**record.meta, "paragraphs": [asdict(one) for one in paragraphs]})


def paragraphs_of(record: Record) -> list[Paragraph]:
    """Texts that can be retrieved for a row, each once: what its data set has beside the question, else the paragraphs
    of its sub-questions, else its one passage. None of a row without any."""
    kept, row = record.meta.get("paragraphs"), row_of(record)
    if isinstance(kept, list):
        found = [Paragraph(one["text"], one.get("title"), bool(one.get("gold")), tuple(one.get("facts") or ()))
                 for one in kept]
    elif row is not None:
        found = [Paragraph(one.paragraph, gold=not one.unanswerable) for one in row.sub_questions]
    elif isinstance(passage := record.meta.get("passage"), str) and not blank(passage):
        found = [Paragraph(passage, gold=record.meta.get("kind") != UNANSWERABLE)]
    else:
        found = []
    gold = {one.text for one in found if one.gold}
    return [replace(one, gold=one.text in gold) for one in {one.text: one for one in found}.values()]


def question_turns(record: Record) -> list[Message]:
    """What is asked before anything is retrieved: all turns before the assistant's first."""
    turns = record.conversation()
    return list(takewhile(lambda turn: turn["role"] not in ("assistant", "tool"), turns))


def call_turn(said: str, query: str) -> Message:
    """The assistant's turn that asks for a text, after what it says beside."""
    call = {"type": "function", "function": {"name": RETRIEVE, "arguments": {"query": query}}}
    return {"role": "assistant", "content": said, "tool_calls": [call]}


def found_turn(found: str) -> Message:
    """The turn that gives what was retrieved."""
    return {"role": "tool", "name": RETRIEVE, "content": found}


def conversation(row: Retrieval) -> list[Message]:
    """The turns that a row teaches."""
    turns: list[Message] = [{"role": "user", "content": row.question}]
    if not row.hops:
        return [*turns, *_called("", row.question, row.sub_questions[0].paragraph),
                {"role": "assistant", "content": row.final_answer.strip()}]
    said = ""
    for one in row.sub_questions:
        turns += _called(said, one.question, one.paragraph)
        said = one.long_answer.strip()
    return [*turns, {"role": "assistant", "content": f"{said}\n{SUMMARY}{row.final_answer.strip()}"}]


def _called(said: str, query: str, found: str) -> list[Message]:
    return [call_turn(said, query), found_turn(found)]


def with_answers(row: Retrieval, long_answers: list[str], final_answer: str) -> Retrieval:
    """The row with other answers, one for each sub-question."""
    subs = tuple(replace(one, long_answer=said) for one, said in zip(row.sub_questions, long_answers, strict=True))
    return replace(row, sub_questions=subs, final_answer=final_answer)
