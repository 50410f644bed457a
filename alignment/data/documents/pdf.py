"""PDF: text of each page by pypdf; lines to paragraphs, hyphenated words whole again, running lines left out.

No text is recognised in pictures (OCR): a page without text is counted, a file of such pages alone is refused.
"""

from __future__ import annotations

import io
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from alignment.data.documents.blocks import Block
from alignment.records.importers.rows import RowError
from alignment.words import word_starts

EDGE = 2
"""Lines at either end of a page among which running heads and page numbers are looked for."""
_LEADERS = re.compile(r"(?: ?\.){4,}")
"""Dots that lead to a page number, in a table of contents."""
_HYPHEN = re.compile(r"[^\W\d_]-$")
_ENDS = re.compile(r"[.!?:;…。！？：；][\"'”’»)\]」』）】]*$")
_CJK = re.compile("[\u3001-\u30ff\u3400-\u9fff\uf900-\ufaff\uff01-\uff60]")


def of_pdf(data: bytes, counts: Counter[str]) -> Iterator[Block]:
    """Paragraphs with the pages that they stand on.

    Args:
        counts: gets pages, pages-without-text, running-lines and hyphens-joined.

    Raises:
        RowError: encrypted, no-text, or broken.
    """
    pages = _pages(data)
    counts["pages"] += len(pages)
    counts["pages-without-text"] += sum(not lines for lines in pages)
    if not any(pages):
        raise RowError("no-text", f"{len(pages)} pages, no text; it needs OCR, as a scanned document does")
    running = _running(pages)
    words = Counter(word.lower() for lines in pages for line in lines for word in re.findall(r"\w+(?:-\w+)+", line))
    waiting: Block | None = None
    for number, lines in enumerate(pages, 1):
        kept = [line for place, line in enumerate(lines) if not (
            (place < EDGE or place >= len(lines) - EDGE) and _shape(line) in running)]
        counts["running-lines"] += len(lines) - len(kept)
        for text in _paragraphs(kept, words, counts):
            # A paragraph that a page cuts: no end before, a small letter after.
            if waiting is not None and waiting.pages is not None and waiting.pages[1] < number and _goes_on(
                    waiting.text, text):
                joined = _joined([waiting.text, text], words, counts)
                waiting = Block(joined, pages=(waiting.pages[0], number))
                continue
            if waiting is not None:
                yield waiting
            waiting = Block(text, pages=(number, number))
    if waiting is not None:
        yield waiting


def _pages(data: bytes) -> list[list[str]]:
    """The lines of each page, blank ones as "" between others."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, PyPdfError

    logging.getLogger("pypdf").setLevel(logging.ERROR)
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise RowError("encrypted", "the PDF has a password")
        return [_lines(page.extract_text()) for page in reader.pages]
    except DependencyError as error:
        raise RowError("encrypted", f"the PDF is encrypted: {' '.join(str(error).split())[:200]}") from error
    except (PyPdfError, ValueError, KeyError, TypeError, IndexError, AttributeError, OSError, RecursionError,
            NotImplementedError, AssertionError, ZeroDivisionError) as error:  # what pypdf says of a damaged file
        raise RowError("broken", f"not a PDF that can be read: {type(error).__name__}: "
                                 f"{' '.join(str(error).split())[:200]}") from error


def _lines(text: str) -> list[str]:
    lines = [" ".join(_LEADERS.sub(" ... ", line).split()) for line in text.replace("\xad", "").split("\n")]
    while lines and not lines[0]:
        lines.pop(0)
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _shape(line: str) -> str:
    """A line without its numbers: page numbers differ."""
    return re.sub(r"\d+", "0", line.lower())


def _running(pages: Sequence[Sequence[str]]) -> set[str]:
    """Shapes of lines that stand at an edge of at least half of the pages, of three or more."""
    full = [lines for lines in pages if lines]
    found = Counter(shape for lines in full for shape in {_shape(line) for line in (*lines[:EDGE], *lines[-EDGE:])
                                                          if line})
    return {shape for shape, count in found.items() if len(full) >= 3 and 2 * count >= len(full)}


def _paragraphs(lines: Sequence[str], words: Counter[str], counts: Counter[str]) -> Iterator[str]:
    """Lines that belong together: up to a blank line, or to a line that ends a sentence well short of the others."""
    lengths = sorted(len(line) for line in lines if line)
    usual = lengths[len(lengths) * 3 // 4] if lengths else 0
    waiting: list[str] = []
    for line in [*lines, ""]:
        if line:
            waiting.append(line)
        if waiting and (not line or (len(line) < 0.8 * usual and _ENDS.search(line))):
            yield _joined(waiting, words, counts)
            waiting = []


def _joined(lines: Sequence[str], words: Counter[str], counts: Counter[str]) -> str:
    """Lines as one text. A word that is hyphenated over the end of a line is whole again, unless the document writes
    it with a hyphen elsewhere too."""
    text = lines[0]
    for line in lines[1:]:
        if _HYPHEN.search(text) and line[:1].islower():
            last = text[word_starts(text)[-1]:]
            both = re.sub(r"^\W+", "", last) + re.match(r"[\w-]*", line)[0]  # type: ignore[index]
            keep = words[both.lower()] > 0
            counts["hyphens-joined"] += not keep
            text = (text if keep else text[:-1]) + line
        else:
            text += ("" if _CJK.match(text[-1:]) and _CJK.match(line[:1]) else " ") + line
    return text


def _goes_on(text: str, more: str) -> bool:
    return not _ENDS.search(text) and (more[:1].islower() or (
        _CJK.match(text[-1:]) is not None and _CJK.match(more[:1]) is not None))
