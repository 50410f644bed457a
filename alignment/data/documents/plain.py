"""Text files and Markdown: paragraphs parted by blank lines, headings as Markdown writes them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from alignment.data.documents.blocks import Block

_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
_UNDERLINED = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_FRONT = "---"


def of_text(text: str) -> Iterator[Block]:
    """Paragraphs of plain text; lines stay as they are broken."""
    for paragraph in re.split(r"\n[^\S\n]*\n", text.replace("\f", "\n\n")):
        if paragraph.strip():
            yield Block(paragraph.strip())


def of_markdown(text: str) -> Iterator[Block]:
    """Paragraphs and headings of Markdown (# and underlined), marks within them as they are written.

    A fenced block is one paragraph, blank lines and all. Metadata between two --- at the very beginning are left out.
    """
    lines = text.split("\n")
    if lines[0].strip() == _FRONT and (end := next((at for at, line in enumerate(lines[1:], 1)
                                                    if line.strip() in (_FRONT, "...")), None)) is not None:
        lines = lines[end + 1:]
    waiting: list[str] = []
    fence: str | None = None
    for line in [*lines, ""]:
        mark = _FENCE.match(line)
        if fence is not None:
            waiting.append(line)
            if mark and mark[1][0] == fence[0] and len(mark[1]) >= len(fence):
                fence = None
                yield from _paragraph(waiting)
        elif mark:
            yield from _paragraph(waiting)
            waiting.append(line)
            fence = mark[1]
        elif heading := _HEADING.match(line):
            yield from _paragraph(waiting)
            if heading[2]:
                yield Block(heading[2], len(heading[1]))
        elif waiting and (under := _UNDERLINED.match(line)):
            title = " ".join("\n".join(waiting).split())
            waiting.clear()
            yield Block(title, 1 if under[1][0] == "=" else 2)
        elif line.strip():
            waiting.append(line)
        else:
            yield from _paragraph(waiting)
    yield from _paragraph(waiting)


def _paragraph(lines: list[str]) -> Iterator[Block]:
    text = "\n".join(lines).strip()
    lines.clear()
    if text:
        yield Block(text)
