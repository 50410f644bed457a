"""Which answers a reader is shown: few, of every kind of question, with what went wrong as well as what went right.

The choice depends on the rows alone, so a report made twice shows the same rows. Scores are those of answers.jsonl.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from alignment.report.format import clip, is_number, number

RIGHT = ("final_number", "yes_no", "exact_match", "containment", "question_type")
"""Numbers that call an answer right (1) or wrong (0); the first that was measured counts."""
PARTIAL = ("f1", "word_recall")
"""Of which a half is right, where none of those was measured."""
TITLES = {"f1": "F1", "word_recall": "recall", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rouge_l": "ROUGE-L",
          "bleu": "BLEU", "chrf": "chrF"}
MOST_CHIPS = 4
ANSWERED = "answered"
"""How a row of a model that retrieves ends where it has an answer."""
SHOWN, MORE = 8, 60
"""Rows shown at once, and rows below the fold."""

LABELS = {
    "mended": "wrong before, right now", "failed": "wrong before and now", "lost": "right before, wrong now",
    "kept": "right before and now", "differs": "answers differ", "same": "same answer",
}
ORDER = ("mended", "failed", "lost", "kept", "mended", "failed", "mended", "lost", "differs", "same")
"""The turn in which outcomes are drawn: of eight rows about half show a failure of the last model."""


@dataclass(frozen=True)
class Chip:
    text: str
    tone: str
    """good, bad or plain."""


@dataclass(frozen=True)
class Found:
    """A passage that a call was given; `gold`: the row's answer rests on it."""

    title: str
    text: str
    score: str
    gold: bool


@dataclass(frozen=True)
class Hop:
    """One call of a model that retrieves, with what it said beside it."""

    said: str
    query: str
    found: tuple[Found, ...]


@dataclass(frozen=True)
class Answer:
    """`hops` of a model that retrieves; `ended`: why it has no answer, and what was seen of that."""

    model: str
    text: str
    chips: tuple[Chip, ...]
    hops: tuple[Hop, ...] = ()
    ended: str = ""


@dataclass(frozen=True)
class Turn:
    role: str
    text: str

    @property
    def size(self) -> int:
        return len(self.text)


@dataclass(frozen=True)
class Shown:
    """A row. `turns`: what was said before the question, system message first."""

    id: str
    kind: str
    outcome: str
    label: str
    passage: str
    turns: tuple[Turn, ...]
    question: str
    reference: str
    answers: tuple[Answer, ...]


def chosen(
    rows: Sequence[Mapping[str, Any]], models: Sequence[str], *, free_text: bool = False
) -> tuple[list[Shown], list[Shown]]:
    """About eight rows to show at once, and up to sixty more, each in the order of the file's rows drawn.

    Args:
        free_text: the references are long, so that no answer is called right or wrong.
    """
    left: dict[str, list[Mapping[str, Any]]] = {name: [] for name in LABELS}
    for row in rows:
        left[outcome(row, models, free_text=free_text)].append(row)
    picked: list[Mapping[str, Any]] = []
    seen: Counter[str] = Counter()
    turn = cycle(ORDER)
    while len(picked) < SHOWN + MORE and any(left.values()):
        pool = left[next(turn)]
        if pool:
            best = min(range(len(pool)), key=lambda index: seen[_kind(pool[index])])
            row = pool.pop(best)
            seen[_kind(row)] += 1
            picked.append(row)
    shown = [_shown(row, models, free_text) for row in picked]
    return shown[:SHOWN], shown[SHOWN:]


def outcome(row: Mapping[str, Any], models: Sequence[str], *, free_text: bool = False) -> str:
    """How the last model did against the first: a key of LABELS. Rows without scores tell by their texts."""
    answers = row.get("answers", {})
    first, last = answers.get(models[0], {}), answers.get(models[-1], {})
    before, now = right(first), right(last)
    if free_text or before is None or now is None:
        return "differs" if first.get("text") != last.get("text") else "same"
    return {(False, True): "mended", (False, False): "failed", (True, False): "lost", (True, True): "kept"}[before, now]


def right(answer: Mapping[str, Any]) -> bool | None:
    """By the first of RIGHT that was measured, else by a half of PARTIAL; None where none was."""
    found = _told(answer)
    return None if found is None else float(answer[found]) >= 0.5


def _told(answer: Mapping[str, Any]) -> str | None:
    """The number that says whether an answer is right."""
    return next((name for name in (*RIGHT, *PARTIAL)
                 if is_number(answer.get(name)) or isinstance(answer.get(name), bool)), None)


def _kind(row: Mapping[str, Any]) -> str:
    return str(row.get("kind") or "")


def _shown(row: Mapping[str, Any], models: Sequence[str], free_text: bool) -> Shown:
    result = outcome(row, models, free_text=free_text)
    answers = row.get("answers", {})
    *turns, last = _turns(row.get("prompt")) or [Turn("user", "")]
    question = _text(row.get("question"))
    if not question or (turns and question not in last.text):
        question = last.text
    return Shown(
        id=str(row.get("id", "")), kind=_kind(row), outcome=result, label=LABELS[result],
        passage=clip(_text(row.get("passage")), 1600),
        turns=tuple(Turn(turn.role, clip(turn.text, 4000)) for turn in turns), question=clip(question, 800),
        reference=clip(_text(row.get("reference")), 800),
        answers=tuple(
            Answer(model, clip(_text(answers[model].get("text")), 900), tuple(_chips(answers[model], free_text)),
                   tuple(map(_hop, answers[model].get("steps") or ())), _ended(answers[model]))
            for model in models if model in answers
        ),
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _turns(prompt: Any) -> list[Turn]:
    """The messages of a prompt, which may be a text or a list of messages."""
    if isinstance(prompt, list):
        turns = [turn for turn in prompt if isinstance(turn, Mapping)]
        return [Turn(_text(turn.get("role")), _text(turn.get("content"))) for turn in turns]
    return [Turn("user", _text(prompt))]


def _hop(step: Mapping[str, Any]) -> Hop:
    return Hop(clip(_text(step.get("said")), 400), clip(_text(step.get("query")), 300), tuple(
        Found(_text(hit.get("title")), clip(_text(hit.get("text")), 400), number(hit.get("score"), 2),
              bool(hit.get("gold"))) for hit in step.get("found") or ()))


def _ended(answer: Mapping[str, Any]) -> str:
    reason, detail = _text(answer.get("ended")), clip(_text(answer.get("detail")), 200)
    return "" if reason in ("", ANSWERED) else f"{reason}: {detail}" if detail else reason


def _chips(answer: Mapping[str, Any], free_text: bool) -> list[Chip]:
    chips = []
    told = _told(answer)
    if told in RIGHT and not free_text:
        said = ("exact", "not exact") if told == "exact_match" else ("right", "wrong")
        chips.append(Chip(said[0], "good") if right(answer) else Chip(said[1], "bad"))
    overlap = [name for name in TITLES if is_number(answer.get(name))]
    overlap = overlap if free_text or "f1" not in overlap else ["f1"]
    shown = [(name, TITLES[name]) for name in overlap[:MOST_CHIPS]]
    for key, title in (*shown, ("style", "style"), ("reward", "reward")):
        if is_number(answer.get(key)):
            chips.append(Chip(f"{title} {number(answer[key], 2)}", "plain"))
    if _ended(answer):
        chips.append(Chip("no answer", "bad"))
    elif answer.get("finished") is False:
        chips.append(Chip("cut off", "bad"))
    return chips
