"""Documents to records of type passage, one by one: for the stage itself, and for `check` and `plan` before."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from alignment.config import DocumentFile, ImportDocuments
from alignment.data.documents.blocks import Part
from alignment.data.documents.chunks import Passage, passages
from alignment.data.documents.readers import parts_of
from alignment.data.text import normalise
from alignment.records import Record
from alignment.records.importers.rows import RAW_LIMIT, BadRow, RowError


@dataclass
class Reading:
    """What was seen on the way.

    Attributes:
        counts: of readers: pages, pages-without-text, running-lines, hyphens-joined.
        kinds: kind of file -> files that were read.
        parts, unread: documents (of a table, rows), and those that could not be used.
    """

    stage: ImportDocuments
    counts: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    parts: int = 0
    unread: int = 0
    _seen: dict[bytes, str] = field(default_factory=dict)

    def each(self, file: DocumentFile) -> Iterator[Record | BadRow]:
        """Its passages in order, those that are refused, and what could not be read.

        Raises:
            DataError: it cannot be opened.
        """
        number = 0
        try:
            for part in parts_of(file, self.stage.max_file_mb * 2**20, self.counts):
                self.parts += 1
                if isinstance(part, RowError):
                    self.unread += 1
                    yield BadRow(file.name, self.parts, str(part), "")
                    continue
                for passage in passages(part, self.stage.chunk_words, self.stage.overlap_words):
                    number += 1
                    yield self._row(file, part, passage, number)
            self.kinds[str(file.kind)] += 1
        except RowError as error:
            self.parts, self.unread = self.parts + 1, self.unread + 1
            yield BadRow(file.name, 0, str(error), file.path)

    def _row(self, file: DocumentFile, part: Part, passage: Passage, number: int) -> Record | BadRow:
        id_ = f"{file.name}#{number}"
        if passage.words < self.stage.min_words:
            return BadRow(file.name, number, f"too-short: {passage.words} words", passage.text[:RAW_LIMIT])
        digest = hashlib.sha256(normalise(passage.text).encode("utf-8", "backslashreplace")).digest()[:16]
        if (first := self._seen.setdefault(digest, id_)) != id_:
            return BadRow(file.name, number, f"duplicate: the text of {first}", passage.text[:RAW_LIMIT])
        where = {"file": file.name, "passage": number, "row": part.row, "pages": passage.pages,
                 "span": [passage.start, passage.end], "headings": list(passage.headings) or None,
                 "shown_again": passage.shown_again or None}
        above = " > ".join(passage.headings)
        return Record(id_, "passage", meta={
            "source": file.name, "group": file.name if part.row is None else f"{file.name}#{part.row}",
            "passage": f"{above}\n\n{passage.text}" if above else passage.text,
            "document": {key: value for key, value in where.items() if value is not None}})
