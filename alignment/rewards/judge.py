"""What a judge is asked and what is read of its answers: a score, or which of two answers is better. Pure text.

An answer that does not say one thing clearly is not read, with the reason: no number, several, one off the scale. A
number is never guessed from words, nor taken from an answer that was cut. Asks nobody: inference.judging does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from alignment.records import Message

Verdict = Literal["first", "second", "tie"]

NO_SCORE, SEVERAL_SCORES = "no-score", "several-scores"
OFF_SCALE, OTHER_SCALE = "score-off-scale", "score-of-other-scale"
NO_VERDICT, SEVERAL_VERDICTS = "no-verdict", "several-verdicts"
CUT, EMPTY = "judgement-cut", "empty-judgement"


class Unread(NamedTuple):
    """A judge's answer that is not read; the reason is the same for all that meet it, since reasons are counted."""

    reason: str


_NUMBER = r"[-+]?\d+(?:\.\d+)?"
_DRESS = r"[\s*_`\"'\[(“”]*"
"""Emphasis, quotes and brackets that may stand around a number."""
_LABEL = (r"(?:(?<![a-z0-9])(?<![a-z0-9]_)(?:score|rating)(?:\s*\([^()\n]*\))?[\"'*_`\s]*(?:[:=：]|\bis\b)"
          r"|(?:评分|分数|得分|打分)(?:[（(][^（）()\n]*[）)])?[\"'*_`\s]*[:=：为是])")
_TAIL = (rf"(?P<to>\s*(?:-|–|—|~|to|or|到|至)\s*\d)?(?:\s*(?:/|／|out of)\s*(?P<of>{_NUMBER}))?"
         r"(?P<bad>[a-z0-9_%/／]|[.,]\d)?")
_SCORES = re.compile(rf"(?:{_LABEL}{_DRESS}|\[\[\s*)(?P<value>{_NUMBER}){_TAIL}", re.IGNORECASE)
_ALONE = re.compile(rf"{_DRESS}(?P<value>{_NUMBER}){_TAIL}(?:\s*分)?[\s*_`\"'\])”.。]*", re.IGNORECASE)

_WORD = r"(?P<one>A|B|C|[Tt]ie|TIE|平局|平)"
_END = r"(?=\s*(?:$|[\n.。,，;；)\]\"'*_`}”]|is better\b|wins\b))"
_VERDICTS = re.compile(
    r"(?:(?<![A-Za-z])(?:[Vv]erdict|VERDICT|[Ww]inner|WINNER)[\"'*_`\s]*(?:[:=：]|\bis\b)"
    r"|(?:结论|胜者)[\"'*_`\s]*[:=：为是])"
    rf"(?:{_DRESS}(?:[Aa]nswer\s+|回答\s*)?{_WORD}{_END})?|\[\[\s*(?P<bracketed>A|B|C|[Tt]ie|TIE)\s*\]\]")
_VERDICT_ALONE = re.compile(rf"{_DRESS}(?:[Aa]nswer\s+|回答\s*)?{_WORD}[\s*_`\"'\])”.。]*")
_MEANS: dict[str, Verdict] = {"A": "first", "B": "second", "C": "tie", "TIE": "tie", "平局": "tie", "平": "tie"}


def parse_score(text: str, low: float, high: float) -> float | Unread:
    """The one score of a judge's answer: `Score: 7`, `Score: 7/10`, `[[7]]`, `{"score": 7}`, `评分：7`, or a number
    alone.

    Args:
        low, high: the scale; a `/10` after the number has to be its upper end.

    Returns:
        The score, or why there is none: no-score (also for a number in words, or one that goes on as something else),
        several-scores (that differ, or a range), score-of-other-scale, score-off-scale, empty-judgement.
    """
    if not text.strip():
        return Unread(EMPTY)
    found = list(_SCORES.finditer(text))
    if not found and (alone := _ALONE.fullmatch(text)) is not None:
        found = [alone]
    if not found or any(one["bad"] for one in found):
        return Unread(NO_SCORE)
    values = {float(one["value"]) for one in found}
    if len(values) > 1 or any(one["to"] for one in found):
        return Unread(SEVERAL_SCORES)
    if any(one["of"] is not None and float(one["of"]) != high for one in found):
        return Unread(OTHER_SCALE)
    value = values.pop()
    return value if low <= value <= high else Unread(OFF_SCALE)


def parse_verdict(text: str) -> Verdict | Unread:
    """Which of two answers a judge prefers: `Verdict: A`, `[[B]]`, `[[C]]` or `Verdict: tie`, `结论：A`, or one of them
    alone; or why that is not said."""
    if not text.strip():
        return Unread(EMPTY)
    said = [word for one in _VERDICTS.finditer(text) if (word := one["one"] or one["bracketed"]) is not None]
    if not said and (alone := _VERDICT_ALONE.fullmatch(text)) is not None:
        said = [alone["one"]]
    if not said:
        return Unread(NO_VERDICT)
    meant = {_MEANS[word.upper()] for word in said}
    return Unread(SEVERAL_VERDICTS) if len(meant) > 1 else meant.pop()


def agreed(one: Verdict, swapped: Verdict) -> Verdict | None:
    """The verdict on two answers that were shown in both orders; None where the orders disagree, which is what a judge
    that prefers a place says, and counts as a tie.

    Args:
        swapped: the verdict with the second answer shown first.
    """
    back: dict[Verdict, Verdict] = {"first": "second", "second": "first", "tie": "tie"}
    return one if one == back[swapped] else None


def as_text(prompt: Sequence[Message]) -> str:
    """A conversation up to its answer, for a rubric: the question alone, or every turn after who says it."""
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
