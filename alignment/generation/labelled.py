"""Answers in labelled steps, read strictly: every label once, in order, something behind each. Pure.

A label begins a line and ends with a colon; signs of a list and of emphasis around it are read over. Everything else
that differs from what was asked for is a refusal with a name, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from alignment.generation.refused import Refused


def steps(text: str, labels: Sequence[str], *, long: Collection[str] = ()) -> dict[str, str] | Refused:
    """Label -> what stands behind it, white space squeezed.

    Args:
        labels: all of them, in their order. Those of one word differ in a number alone: Question, Question 1.
        long: labels whose text may have several lines.

    Returns:
        The refusal, where there is one: empty-response, no-steps, text-before, unknown-step (Question 3),
        duplicate-step, missing-step, wrong-order, empty-field, several-lines.
    """
    if not text.strip():
        return Refused("empty-response", text)
    marks = list(_pattern(labels).finditer(text))
    if not marks:
        return Refused("no-steps", text)
    known = {label.lower(): label for label in labels}
    found = [known.get(" ".join(mark["label"].lower().split())) for mark in marks]
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    values = [text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    reason = _wrong(found, labels, values, before=text[: marks[0].start()], long=long)
    if reason is not None:
        return Refused(reason, text)
    return {label: " ".join(value.split()).strip(" *") for label, value in zip(labels, values, strict=True)}


def continued(prompt: str, text: str) -> str:
    """An answer to a prompt that ends with a label, which it may go on from or write again."""
    last = prompt.rstrip().rpartition("\n")[2].strip()
    if not last.endswith((":", "：")) or not text.strip() or _begins(text, last):
        return text
    return f"{last} {text.lstrip()}"


def _begins(text: str, label: str) -> bool:
    return text.lstrip(" \t\n*#+-_").lower().startswith(label.rstrip(":：").lower())


def _wrong(
    found: Sequence[str | None], labels: Sequence[str], values: Sequence[str], *, before: str, long: Collection[str]
) -> str | None:
    if before.strip():
        return "text-before"
    if None in found:
        return "unknown-step"
    if len(set(found)) < len(found):
        return "duplicate-step"
    if len(found) < len(labels):
        return "missing-step"
    if list(found) != list(labels):
        return "wrong-order"
    if not all(value.strip(" \t*_-.") for value in values):
        return "empty-field"
    if any("\n" in value and label not in long for label, value in zip(labels, values, strict=True)):
        return "several-lines"
    return None


def _pattern(labels: Sequence[str]) -> re.Pattern[str]:
    """Any of the labels, whatever number is behind its words."""
    names = sorted({re.sub(r" \d+$", "", label) for label in labels}, key=len, reverse=True)
    words = "|".join(re.escape(name).replace(r"\ ", r"[ \t]+") for name in names)
    lead = r"(?:[-+*#>]+[ \t]+|\d{1,2}[.)][ \t]+)?"
    label, strong = rf"(?P<label>(?:{words})(?:[ \t]+\d+)?)", r"(?:\*\*|__)?"
    return re.compile(rf"^[ \t]*{lead}{strong}{label}{strong}[ \t]*[:：]", re.MULTILINE | re.IGNORECASE)
