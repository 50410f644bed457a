"""Format `columns`: tables whose columns have other names than our fields, or must first be put together.

The mapped fields decide what the rows are: {passage, question, answer} is passage-qa, {prompt, chosen, rejected} a
preference, and so on. A field takes a column by its name, or is written as a pattern: a text with {Column} slots.
Does not parse cells beyond numbers and truth values (CSV has only text).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from alignment.errors import DataError
from alignment.records.importers.files import read_table
from alignment.records.importers.keys import empty
from alignment.records.importers.rows import BadRow, Row, RowError, given

SHAPES: dict[str, frozenset[str]] = {
    "messages": frozenset({"messages"}),
    "passage-qa": frozenset({"passage", "question", "answer"}),
    "alpaca": frozenset({"instruction", "output"}),
    "preference": frozenset({"prompt", "chosen", "rejected"}),
    "unpaired": frozenset({"prompt", "completion", "label"}),
    "prompt-completion": frozenset({"prompt", "completion"}),
    "prompt-only": frozenset({"prompt"}),
}
"""Format -> the fields that must be mapped; the first that fits is taken."""
OPTIONAL = frozenset({"id", "group", "kind", "meta", "split", "system", "tools"})
"""Fields that any row may have (tools: any conversation)."""
_MORE = {"passage-qa": frozenset({"rejected", "type"}), "alpaca": frozenset({"input", "history"})}
_NO_TEXT = frozenset({"messages", "history", "meta", "label", "tools"})
"""Fields that are no text, and so no pattern."""
_BRACES = re.compile(r"{{|}}|{([^{}]+)}|[{}]")
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def format_of(columns: dict[str, str], where: str) -> str:
    """The format that the mapped fields make. Raises DataError when they make none."""
    mapped = set(columns)
    for name, fields in SHAPES.items():
        if fields <= mapped <= fields | OPTIONAL | _MORE.get(name, frozenset()):
            return name
    raise DataError(
        "the mapped fields make no row type", where=where, found=sorted(columns),
        expected="; ".join(f"{', '.join(sorted(fields | _MORE.get(name, fields)))} ({name})"
                           for name, fields in SHAPES.items()) + f"; and any of {', '.join(sorted(OPTIONAL))}",
    )


def read_columns(path: str, columns: dict[str, str], source: str, split_field: str | None) -> Iterator[Row | BadRow]:
    """Rows of a file with our field names. Raises DataError as `renamed` does, or where it has no columns."""
    rows, found = read_table(path, source)
    if not found:
        raise DataError("no row of the file has columns", where=path, found=f"{sum(1 for _ in rows)} rows",
                        expected="a CSV (.csv, .tsv), Parquet or JSON-lines file",
                        hint="a CSV is known by the ending of its name")
    return renamed(rows, found, path, columns, source, split_field)


def renamed(
    rows: Iterable[Row | BadRow], found: list[str], where: str, columns: dict[str, str], source: str,
    split_field: str | None,
) -> Iterator[Row | BadRow]:
    """Rows with our field names; the split field is taken along under its own name.

    Raises DataError naming the place, its columns and the expected ones when one is in no row, or a pattern is broken.
    """
    wanted = {field: _pattern(field, value, where) if "{" in value and value not in found else value
              for field, value in columns.items()}
    if split_field is not None:
        wanted.setdefault(split_field, split_field)
    used = list(dict.fromkeys(column for made in wanted.values()
                              for column in (made.columns if isinstance(made, Pattern) else (made,))))
    missing = [column for column in used if column not in found]
    if missing:
        raise DataError(f"the file has no column {', '.join(missing)}", where=where, found=found,
                        expected="columns " + ", ".join(used), hint=_hint(found))
    return (_rename(row, wanted, source, frozenset(used)) for row in rows)


def _hint(found: list[str]) -> str:
    """What may be wrong where columns are missing."""
    if len(found) == 1 and (sign := next((sign for sign in ";\t|" if sign in found[0]), None)):
        return f"the header is parted by {sign!r}; a .csv is parted by commas, a .tsv by tabs"
    return "columns takes the name of a column, or a text with names in braces: {Column}"


@dataclass(frozen=True)
class Pattern:
    """What a field is made of: texts and, between them, names of columns, by turns; a text is first and last."""

    parts: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return self.parts[1::2]

    def fill(self, field: str, row: dict[str, Any]) -> str:
        """The text of a row; braces in a cell are not slots. Raises RowError missing-field or wrong-type."""
        made = [self.parts[0]]
        for column, after in zip(self.parts[1::2], self.parts[2::2], strict=True):
            value = _cell(field, given(row, column))
            if value is None:
                raise RowError("missing-field", f"{column}, a slot of {field}, is blank")
            if not isinstance(value, str):
                raise RowError("wrong-type", f"{column}, a slot of {field}, is {type(value).__name__}, expected text")
            made += [value, after]
        return "".join(made)


def _pattern(field: str, value: str, path: str) -> Pattern:
    """The parts of a text with {Column} slots; {{ and }} are braces. Raises DataError."""
    if field in _NO_TEXT:
        raise DataError(f"columns.{field} is a pattern, and {field} is no text", where=path, found=value,
                        expected="the name of a column")
    parts, end = [""], 0
    for match in _BRACES.finditer(value):
        parts[-1] += value[end:match.start()]
        end = match.end()
        if match[1] is not None:
            parts += [match[1], ""]
        elif len(match[0]) == 2:
            parts[-1] += match[0][0]
        else:
            raise DataError(f"columns.{field} has a brace that belongs to no slot", where=path, found=value,
                            expected="{Column}, or doubled braces ({{ and }}) where braces are meant")
    parts[-1] += value[end:]
    return Pattern(tuple(parts))


def _rename(row: Row | BadRow, wanted: dict[str, str | Pattern], source: str, used: frozenset[str]) -> Row | BadRow:
    if isinstance(row, BadRow) or not isinstance(row.value, dict):
        return row
    value: dict[str, Any] = {}
    try:
        for ours, made in wanted.items():
            if isinstance(made, Pattern):
                value[ours] = made.fill(ours, row.value)
            elif made in row.value:
                value[ours] = _cell(ours, row.value[made])
    except RowError as error:
        return BadRow(source, row.number, str(error), row.raw)
    unread = tuple(str(column) for column, cell in row.value.items() if column not in used and not empty(cell))
    return Row(row.number, value, row.raw, unread)


def _cell(field: str, value: Any) -> Any:
    if field == "label":
        return _TRUTH.get(str(value).strip().lower(), value)
    if isinstance(value, bool):
        return value
    if isinstance(value, float) and math.isnan(value):
        return None
    return str(value) if isinstance(value, int | float) else value
