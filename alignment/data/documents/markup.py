"""HTML and Word: paragraphs, headings, lists and tables as text.

HTML is read by lxml, which python-docx needs anyway: no further package. What is no text of the page (scripts, styles,
navigation, header and footer of the page, forms) is left out by its element, and nothing is guessed beyond that: a
boilerplate filter such as trafilatura drops text that it takes for none, unsaid.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

from alignment.data.documents.blocks import Block
from alignment.records.importers.rows import RowError

_LEFT_OUT = frozenset({"script", "style", "noscript", "template", "nav", "header", "footer", "aside", "form", "button",
                       "select", "svg", "math", "iframe", "object", "head", "title"})
_BLOCKS = frozenset({"p", "div", "section", "article", "main", "body", "html", "li", "ul", "ol", "dl", "dt", "dd",
                     "table", "tr", "thead", "tbody", "tfoot", "caption", "blockquote", "pre", "figure", "figcaption",
                     "hr", "address", "details", "summary", "fieldset", "center"})
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_CELLS = ("td", "th")
_AS_BROWSERS = {"gb2312": "gb18030", "gbk": "gb18030", "iso-8859-1": "cp1252", "latin-1": "cp1252", "latin1": "cp1252",
                "us-ascii": "utf-8", "ascii": "utf-8"}
"""Names that pages use for a larger encoding (WHATWG Encoding Standard)."""


def of_html(data: bytes, encoding: str | None) -> Iterator[Block]:
    """Blocks of a page, in its order. The page's encoding is what it says itself, unless `encoding` does; else UTF-8.

    Raises:
        RowError: it cannot be parsed.
    """
    from lxml import etree, html

    try:
        # Decoded strictly here: the parser would read on in another encoding, and lose text unsaid.
        said = encoding or _declared(data)
        text = data.decode(_AS_BROWSERS.get(said.lower(), said)).replace("\0", "")
        parser = html.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True)
        root = html.document_fromstring(text.encode(), parser=parser)
    except (UnicodeError, LookupError) as error:
        raise RowError("encoding", f"{error}; say `encoding` of the entry") from error
    except (etree.LxmlError, ValueError) as error:
        raise RowError("broken", f"not HTML: {' '.join(str(error).split())[:200]}") from error
    if fatal := [entry.message for entry in parser.error_log if entry.level_name == "FATAL"]:
        raise RowError("broken", f"the page cannot be read to its end: {fatal[0][:200]}")  # text after that is lost
    inside = _Inside()
    for event, node in etree.iterwalk(root, events=("start", "end")):
        yield from inside.open(node) if event == "start" else inside.close(node)
    yield from inside.end()


def _declared(data: bytes) -> str:
    """What the page says of its encoding; UTF-8 where it says nothing."""
    marks = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    if mark := next((name for start, name in marks.items() if data.startswith(start)), None):
        return mark
    found = re.search(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([\w.:-]+)", data[:4096], re.IGNORECASE) or re.search(
        rb"<\?xml[^>]{0,100}encoding\s*=\s*[\"']([\w.:-]+)", data[:200])
    return found[1].decode("ascii") if found else "utf-8"


class _Inside:
    """Text gathered on the way through a tree."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.left_out = self.kept = 0
        self.heading = 0

    def open(self, node: Any) -> Iterator[Block]:
        tag = node.tag if isinstance(node.tag, str) else ""
        self.left_out += _is_left_out(node, tag)
        if not self.left_out:
            if tag in _BLOCKS or tag in _HEADINGS:
                yield from self.end()
                self.heading = _HEADINGS.get(tag, 0)
                self.kept += tag == "pre"
                if tag == "li":
                    self.text.append("- ")
            elif tag == "br":
                self.text.append("\0")
            elif tag in _CELLS and "".join(self.text).strip():
                self.text.append(" | ")
            self.text.append(self._squeezed(node.text))

    def close(self, node: Any) -> Iterator[Block]:
        tag = node.tag if isinstance(node.tag, str) else ""
        if _is_left_out(node, tag):
            self.left_out -= 1
        elif not self.left_out and (tag in _BLOCKS or tag in _HEADINGS):
            yield from self.end()
            self.kept -= tag == "pre"
        if not self.left_out:
            self.text.append(self._squeezed(node.tail))

    def _squeezed(self, text: str | None) -> str:
        return (text or "") if self.kept else re.sub(r"\s+", " ", text or "")

    def end(self) -> Iterator[Block]:
        """The block that ends here, if it says anything."""
        whole = "".join(self.text)
        if not self.kept:
            whole = re.sub(" {2,}", " ", whole)
        whole = re.sub(" ?\0 ?", "\n", whole).strip("\n" if self.kept else None)
        self.text.clear()
        if whole.strip(" -|\n\t"):
            yield Block(whole, self.heading)
        self.heading = 0


def _is_left_out(node: Any, tag: str) -> bool:
    """A header within an article is the article's: only the page's own is left out."""
    return tag in _LEFT_OUT and not (tag in ("header", "footer") and any(
        one.tag in ("article", "main") for one in node.iterancestors()))


def of_docx(data: bytes) -> Iterator[Block]:
    """Paragraphs, headings and tables of a Word document in their order; a table's row is a line. Headers, footers,
    comments and text boxes are not read.

    Raises:
        RowError: encrypted, or no Word document.
    """
    import docx
    from docx.table import Table

    if data.startswith(b"\xd0\xcf\x11\xe0"):  # OLE: what Office writes with a password, and before 2007
        raise RowError("encrypted", "the document has a password, or is in the format of before 2007 (.doc)")
    try:
        document = docx.Document(io.BytesIO(data))
        for item in document.iter_inner_content():
            if isinstance(item, Table):
                yield from _table(item)
                continue
            if text := item.text.strip():
                yield Block(text, _level(item.style.name if item.style is not None else ""))
    except (KeyError, ValueError, OSError, AttributeError, SyntaxError) as error:
        raise RowError("broken", f"not a Word document: {' '.join(str(error).split())[:200]}") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("docx", "zipfile", "lxml"):
            raise
        raise RowError("broken", f"not a Word document: {' '.join(str(error).split())[:200]}") from error


def _level(style: str | None) -> int:
    if style in ("Title", "标题"):
        return 1
    found = re.fullmatch(r"(?:Heading|heading|标题|Überschrift|Titre) ?([1-9])", style or "")
    return int(found[1]) if found else 0


def _table(table: Any) -> Iterator[Block]:
    lines = []
    for row in table.rows:
        cells: list[str] = []
        for cell in row.cells:  # a merged cell stands in each of its places
            text = " ".join(cell.text.split())
            if text and (not cells or cells[-1] != text):
                cells.append(text)
        if cells:
            lines.append(" | ".join(cells))
    if lines:
        yield Block("\n".join(lines))
