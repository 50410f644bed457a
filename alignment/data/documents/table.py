"""CSV and TSV, row by row: memory does not grow with the rows."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import IO

from alignment.data.documents.blocks import Block, Part
from alignment.records.importers.rows import RowError

LONGEST = 16 * 2**20
"""Characters of one cell; a longer one is most likely a quote that never ends."""
_SLOT = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")


def of_table(file: IO[bytes], encoding: str, delimiter: str, template: str | None) -> Iterator[Part | RowError]:
    """A part of each row, or why it has none.

    Raises:
        RowError: the table has no line of names, lacks a column of `template`, or cannot be read on.
    """
    csv.field_size_limit(LONGEST)
    rows = csv.reader(io.TextIOWrapper(file, encoding=encoding, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(rows, [])]
        if not any(names):
            raise RowError("empty", "the table has no line with the names of its columns")
        wanted = [match[1] for match in _SLOT.finditer(template or "") if match[1]]
        if missing := [name for name in wanted if name not in names]:
            raise RowError("no-column", f"{missing[0]!r} is none of the columns {', '.join(names)[:200]}")
        for number, cells in enumerate(rows, 1):
            if len(cells) > len(names) or (cells and len(cells) < len(names)):
                yield RowError("cells-differ", f"row {number} has {len(cells)} cells, and {len(names)} columns")
                continue
            told = {name: cell.strip() for name, cell in zip(names, cells, strict=False)}
            text = _filled(template, told) if template is not None else "\n".join(
                f"{name}: {cell}" if name else cell for name, cell in told.items() if cell)
            if any(told.get(name) for name in (wanted or told)):
                yield Part([Block(text.strip())], number)
            else:
                yield RowError("empty", f"row {number} says nothing")
    except csv.Error as error:
        raise RowError("broken", f"line {rows.line_num}: {error}") from error


def _filled(template: str, told: dict[str, str]) -> str:
    """{{ and }} are braces that are meant."""
    return _SLOT.sub(lambda match: told[match[1]] if match[1] else match[0][0], template)
