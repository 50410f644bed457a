"""`explain`: what a key, format, function, metric, template or event means, in the terminal.

The same answers as docs/reference/; alignment.reference has them.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich.text import Text

from alignment.cli.show import out

WIDTH = 80
_NAMES = 26
"""Columns of the names in a list, at most; a longer name gets a line of its own."""


def explain(
    path: Annotated[str | None, typer.Argument(
        metavar="[PATH]", help="A key (sft.strategy), format.NAME, reward.NAME, metric.NAME, template.NAME, ... "
                               "Without one: the list of what can be asked.")] = None,
) -> None:
    """Say what a key of a run or profile means, or a format, reward function, metric, template or event."""
    from alignment.reference.ask import find, groups
    from alignment.reference.topics import Part, Topic

    if path is None:
        top = Topic("kubealign explain PATH", "", parts=tuple(Part(*group) for group in groups()))
    else:
        top = find(path)
    console, width = out(), min(WIDTH, shutil.get_terminal_size().columns)
    for style, line in lines(top, width):
        console.print(Text(line, style=style), soft_wrap=True)


def lines(topic: object, width: int) -> Iterator[tuple[str, str]]:
    """(style, line) for each line, none longer than `width` unless one word is."""
    from alignment.reference.topics import Topic

    assert isinstance(topic, Topic)
    yield "bold", topic.path
    for row in _rows(topic.facts, width, "  "):
        yield "", row
    for paragraph in filter(None, topic.text.split("\n\n")):
        yield "", ""
        yield from (("", line) for line in _wrapped(paragraph, width, ""))
    for part in topic.parts:
        yield "", ""
        yield from (("bold", line) for line in _wrapped(part.title, width, ""))
        for row in _rows(part.rows, width, "  "):
            yield "", row
    for title, text in topic.examples:
        yield "", ""
        yield "bold", title
        for line in text.split("\n"):
            indent = "  " + " " * (len(line) - len(line.lstrip()))
            yield from (("", part) for part in _wrapped(line.lstrip(), width, indent, more="    "))


def _rows(rows: Sequence[tuple[str, str]], width: int, indent: str) -> Iterator[str]:
    """Names in one column, what is said of them in the other."""
    fitting = [len(name) for name, _ in rows if len(name) <= _NAMES]
    column = len(indent) + max(fitting, default=_NAMES) + 2
    for name, text in rows:
        room = all(len(word) <= width - column for word in text.split())  # else below, where there is more
        said = list(_wrapped(text, width, " " * column if room else indent + "  ")) if text else []
        if said and room and len(indent + name) + 2 <= column:
            yield (indent + name).ljust(column) + said.pop(0).lstrip()
        else:
            yield indent + name
        yield from said


def _wrapped(text: str, width: int, indent: str, more: str = "") -> Iterator[str]:
    yield from textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent + more,
                             break_long_words=False, break_on_hyphens=False) or [""]
