"""Which reader a file has, and what is asked of every file: that it is there, not too large, in its encoding."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from fsspec.core import url_to_fs

from alignment.config import DocumentFile
from alignment.config.stages.documents import ENDINGS
from alignment.data.documents.blocks import Block, Part
from alignment.data.documents.markup import of_docx, of_html
from alignment.data.documents.pdf import of_pdf
from alignment.data.documents.plain import of_markdown, of_text
from alignment.data.documents.table import of_table
from alignment.data.unreadable import unreadable
from alignment.errors import DataError
from alignment.records.importers.rows import RowError

_OTHERS = {".doc": "save it as .docx", ".rtf": "save it as .docx", ".odt": "save it as .docx",
           ".epub": "unpack it: it is HTML in a zip", ".xlsx": "save it as .csv", ".pptx": "save it as .pdf",
           ".json": "import it with `data` and a format", ".jsonl": "import it with `data` and a format",
           ".gz": "unpack it", ".zip": "unpack it"}


NEEDS = {"html": "lxml", "docx": "docx", "pdf": "pypdf"}
"""Kind of file -> the module that reads it."""


def missing(kind: str | None) -> bool:
    """Whether the library that reads such files is not installed."""
    return kind in NEEDS and find_spec(NEEDS[str(kind)]) is None


def parts_of(file: DocumentFile, most_bytes: int, counts: Counter[str]) -> Iterator[Part | RowError]:
    """What a file is cut from: the document as a whole; of a table each row, or why a row cannot be used.

    Args:
        most_bytes: of a file that is read whole.
        counts: gets what readers count (pages, lines that were left out).

    Raises:
        RowError: the file cannot be used; its slug says why.
        DataError: it cannot be opened.
    """
    if (kind := file.kind) is None:
        ending = "." + file.path.rsplit(".", 1)[-1].lower() if "." in file.path.rsplit("/", 1)[-1] else "none"
        raise RowError("unknown-ending", f"{ending}; known are {' '.join(ENDINGS)}"
                                         + (f"; {_OTHERS[ending]}" if ending in _OTHERS else ""))
    try:
        if missing(kind):
            raise DataError(f"reading {kind} needs a library that is not installed", where=file.path,
                            found=f"no {NEEDS[kind]}", hint="pip install 'kubealign[train]'")
        files, plain = url_to_fs(file.path)
        with files.open(plain, "rb") as opened:
            if kind == "csv":
                yield from _table(opened, file)
                return
            data: bytes = opened.read(most_bytes + 1)
    except (OSError, ImportError) as error:
        raise unreadable(file.path, error) from error
    if len(data) > most_bytes:
        raise RowError("too-large", f"over {most_bytes / 2**20:.0f} MiB (max_file_mb)")
    if not data.strip():
        raise RowError("empty", "the file is empty")
    part = Part(list(_WHOLE[kind](data, file.entry.encoding, counts)))
    if not part.blocks:
        raise RowError("no-text", "the file holds no text")
    if "\x00" in part.text:
        raise RowError("encoding", "the text has NUL characters: another encoding, or no text at all")
    yield part


_WHOLE: dict[str, Callable[[bytes, str | None, Counter[str]], Iterator[Block]]] = {
    "text": lambda data, encoding, counts: of_text(decoded(data, encoding)),
    "markdown": lambda data, encoding, counts: of_markdown(decoded(data, encoding)),
    "html": lambda data, encoding, counts: of_html(data, encoding),
    "docx": lambda data, encoding, counts: of_docx(data),
    "pdf": lambda data, encoding, counts: of_pdf(data, counts),
}
"""Kind of file -> its blocks, from its content."""


def _table(opened: Any, file: DocumentFile) -> Iterator[Part | RowError]:
    head = opened.read(4)
    opened.seek(0)
    if not head.strip():
        raise RowError("empty", "the file is empty")
    try:
        yield from of_table(opened, _encoding(head, file.entry.encoding),
                            "\t" if file.path.partition("?")[0].lower().endswith(".tsv") else ",", file.entry.text)
    except (UnicodeError, LookupError) as error:
        raise _wrong_encoding(error) from error


def decoded(data: bytes, encoding: str | None) -> str:
    """Text of a file, line ends as \\n. Raises RowError: it is in another encoding."""
    try:
        text = data.decode(_encoding(data, encoding))
    except (UnicodeError, LookupError) as error:
        raise _wrong_encoding(error) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _encoding(head: bytes, said: str | None) -> str:
    """A byte order mark counts; without one, what the run file says, else UTF-8."""
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return said or "utf-8"


def _wrong_encoding(error: Exception) -> RowError:
    return RowError("encoding", f"{error}; say `encoding` of the entry (gb18030, latin-1, ...)")
