"""Accuracy of judgmental answers: whether yes was said, or no."""

from __future__ import annotations

import re

from alignment.evaluation.measures.base import SHARE, Measure, Reply, Rules
from alignment.words import form

_YES = ("yes", "true", "correct", "是", "是的", "对", "对的", "正确", "没错", "肯定的")
_NO = ("no", "false", "incorrect", "否", "不", "不是", "不是的", "不对", "错", "错误", "不正确", "没有", "否定的")
_MEANS = dict.fromkeys(_YES, True) | dict.fromkeys(_NO, False)
_WORDS = "|".join(sorted(_MEANS, key=len, reverse=True))
_END = r"(?=[^\w\s]|\s*$|\s*\n)"
_FOLLOWED = r"(?=\s+(?:it|they|he|she|i|we|you|there|that|this|these|those|the|because|since|as)\b)"
_FIRST = re.compile(
    rf"[\W_]*(?:(?P<word>{_WORDS}){_END}|(?P<plain>yes|no){_FOLLOWED}|(?P<yes>yes)\b|(?P<zh>是的|不是的))")
_BOTH = re.compile(r"[\W_]*(?:yes(?:\W+(?:and|or)\W+|/)no|no(?:\W+(?:and|or)\W+|/)yes|true(?:\W+or\W+|/)false)\b")
_CONCLUDED = re.compile(
    rf"\b(?:(?:answer|verdict|conclusion)(?:\s+is|\s+would\s+be|\s*:)|(?:so|therefore|thus|hence)\s*,?)[\s*\"'“‘:,]*"
    rf"(?P<word>yes|no|true|false){_END}|(?:答案|结论|回答)(?:是|为)?[\s:：“\"*]*(?P<zh>{_WORDS})(?=[\W_]|$)")
_SENTENCE = re.compile(r"[.!?。！？\n]+")


def verdict(text: str) -> bool | None:
    """Whether a text says yes (True), no (False), or neither.

    In this order: the last conclusion (`the answer is no`, `therefore, yes`, `答案是否`), the first word (`No, it is
    not`; not `No ships came`), a last sentence that is nothing else. English and Chinese.
    """
    text = form(text)
    concluded = [match["word"] or match["zh"] for match in _CONCLUDED.finditer(text)]
    if concluded:
        return _MEANS[concluded[-1]]
    if _BOTH.match(text):
        return None
    first = _FIRST.match(text)
    if first is not None:
        return _MEANS[next(word for word in first.groups() if word is not None)]
    last = next((part for part in reversed(_SENTENCE.split(text)) if re.search(r"\w", part)), "")
    return _MEANS.get(re.sub(r"^[\W_]+|[\W_]+$", "", last))


def lacks(reply: Reply, rules: Rules) -> str | None:
    return None if _wanted(reply, rules) is not None else "no reference that says yes or no"


def number(reply: Reply, rules: Rules) -> float:
    """1.0 where the answer says what the reference says; one that says neither is wrong."""
    return float(verdict(rules.part(reply.text)) is _wanted(reply, rules))


def _wanted(reply: Reply, rules: Rules) -> bool | None:
    """What the first reference says that says anything."""
    return rules.first(verdict, reply.references)


MEASURE = Measure(
    title="Yes or no",
    text="Share of rows whose answer says yes where the reference does and no where that does, by its first word, its "
         "conclusion or its last sentence; an answer that says neither is wrong. English and Chinese.",
    source="ours; BoolQ's accuracy (Clark et al. 2019, arXiv:1905.10044) for answers in words",
    span=SHARE, better="higher", number=number, lacks=lacks, needs="references say yes or no")
