"""The answer to one question about KubeAlign as plain data. Does not lay out: the pages and the command line do."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

from alignment.reference.keys import one_line

Rows = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Part:
    """A list below a topic: names, and a line on each."""

    title: str
    rows: Rows


@dataclass(frozen=True)
class Topic:
    """The answer to one path.

    Attributes:
        text: paragraphs, a blank line between them.
        facts: short answers by name (type, default, range).
        examples: title -> text that is shown as it is.
    """

    path: str
    text: str
    facts: Rows = ()
    parts: tuple[Part, ...] = ()
    examples: Rows = ()


def first_sentence(text: str) -> str:
    """Of a description, for a list."""
    return re.split(r"(?<=[.;])(?<!et al\.)\s", one_line(text), maxsplit=1)[0].rstrip(";")


def doc(thing: Any) -> str:
    """A docstring without its indentation; "" where there is none."""
    return inspect.cleandoc(thing.__doc__ or "")


def paragraphs(text: str) -> str:
    """Each paragraph on one line."""
    return "\n\n".join(one_line(part) for part in text.split("\n\n"))
