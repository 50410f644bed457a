"""Rows of a select stage: what is read of a record, who is chosen, what becomes of the others. Pure; needs no torch."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, NamedTuple

from alignment.data.projections import to_sft
from alignment.inference.draws import choose
from alignment.records import Message, Record, bad_row

NO_SCORE = "the scorer gives no number (NaN), or the row is over its context length"
NOT_ASKED = "no answer of the model"


class Judged(NamedTuple):
    """A row as a scorer reads it. `id` is the row's."""

    id: str
    prompt: list[Message]
    answer: str
    record: Record


class Text(NamedTuple):
    """A row as an embedder reads it; with a prompt, so that batches of texts are cut like those of prompts."""

    id: str
    text: str

    @property
    def prompt(self) -> list[Message]:
        return [{"role": "user", "content": self.text}]


@dataclass
class Selected:
    """What became of the rows.

    Attributes:
        records: the chosen ones, in the order of the rows, each as it came but for what `meta` says of its choice.
        left: {"id", "reason", ...} of rows that were judged and not chosen; they are in the stage's input as they came.
        bad: {"id", "reason", "raw"} of rows that could not be judged.
    """

    records: list[Record] = field(default_factory=list)
    left: list[dict[str, Any]] = field(default_factory=list)
    bad: list[dict[str, Any]] = field(default_factory=list)

    @property
    def dropped(self) -> Counter[str]:
        return Counter(row["reason"] for row in (*self.bad, *self.left))


def together(sets: Iterable[Sequence[Record]]) -> tuple[list[Record], list[dict[str, Any]]]:
    """Rows of several sets one after the other, and those whose id an earlier row has."""
    found: dict[str, Record] = {}
    bad = []
    for record in (record for records in sets for record in records):
        if record.id in found:
            bad.append(bad_row(record, "id of an earlier row of this stage"))
        else:
            found[record.id] = record
    return list(found.values()), bad


def judged_of(record: Record) -> Judged | str:
    """The row's prompt and the answer that it says is good; or why it has none."""
    turns = to_sft(record)
    if isinstance(turns, str):
        return turns
    answer = turns[-1]
    if "tool_calls" in answer:
        return "the answer is a call"
    if len(turns) < 2:
        return "no prompt before the answer"
    if not str(answer["content"]).strip():
        return "the answer is empty"
    return Judged(record.id, turns[:-1], str(answer["content"]), record)


def instruction_of(record: Record, *, whole: bool = False) -> str | None:
    """The text that says what a row is about; None for a row without a user's turn.

    Args:
        whole: the last user turn as it is. Else the part of it that is known to be the instruction or question (a
            generated task's, a passage's question), or what stands before its first blank line.
    """
    turns = record.messages or record.prompt
    text = next((str(turn["content"]) for turn in reversed(turns) if turn["role"] == "user"), "").strip()
    if whole:
        return text or None
    task, question = record.meta.get("task"), record.meta.get("question")
    if isinstance(task, dict) and str(task.get("instruction") or "").strip():
        return str(task["instruction"]).strip()
    if isinstance(question, str) and question.strip():
        return question.strip()
    return text.split("\n\n", 1)[0].strip() or None


def with_meta(record: Record, **values: Any) -> Record:
    """The record with more in its meta."""
    return replace(record, meta={**record.meta, **values})


def size_of(rows: int, take: int | None, share: float | None) -> int:
    """How many rows a take or a share of so many asks for."""
    return take if take is not None else max(1, round(rows * (share or 1.0)))


def chosen_at_random(records: Sequence[Record], take: int, seed: int) -> list[Record]:
    """`take` rows by a hash of seed and id, in their order."""
    return choose(records, take, seed)


def merged_rows(sets: Iterable[Sequence[Record]]) -> Selected:
    """All rows of several sets, each once: by id, and by the text of the conversation, its rejected side and label.

    Two rows with one id that say different things are two rows: the later one cannot keep that id, and is bad.
    """
    made = Selected()
    by_id: dict[str, str] = {}
    by_text: dict[str, str] = {}
    for record in (record for records in sets for record in records):
        text = json.dumps([[{**turn, "content": str(turn["content"]).strip()} for turn in record.conversation()],
                           (record.rejected or "").strip(), record.label], ensure_ascii=False, sort_keys=True)
        if by_id.get(record.id, text) != text:
            made.bad.append(bad_row(record, "id of an earlier row that says something else"))
        elif record.id in by_id:
            made.left.append({"id": record.id, "reason": "in an earlier row set"})
        elif text in by_text:
            made.left.append({"id": record.id, "reason": "same text as an earlier row", "of": by_text[text]})
        else:
            by_id[record.id] = text
            by_text[text] = record.id
            made.records.append(record)
    return made


def answer_scores(answers: Iterable[Record]) -> dict[str, float]:
    """Prompt's row id -> mean score of the newest model's answers to it; NaN where any has none.

    Args:
        answers: rows of a sample stage's `samples`.
    """
    scores: dict[str, list[float]] = {}
    for record in answers:
        if record.meta.get("model", "newest") == "newest" and "prompt_id" in record.meta:
            score = record.meta.get("score")
            scores.setdefault(str(record.meta["prompt_id"]), []).append(math.nan if score is None else float(score))
    return {row: fmean(own) for row, own in scores.items()}


def scored_rows(records: Sequence[Record], scores: Mapping[str, float], missing: str) -> tuple[
        list[tuple[Record, float]], list[dict[str, Any]]]:
    """Rows with their scores, joined by id, and the bad ones: without a score, or with one that is no number.

    Args:
        missing: why a row has none.
    """
    good, bad = [], []
    for record in records:
        score = scores.get(record.id)
        if score is None:
            bad.append(bad_row(record, missing))
        elif not math.isfinite(score):
            bad.append(bad_row(record, NO_SCORE))
        else:
            good.append((record, score))
    return good, bad
