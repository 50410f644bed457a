"""Format `columns`: tables whose columns have other names than our fields.

The mapped fields decide what the rows are: {passage, question, answer} is passage-qa, {prompt, chosen, rejected} a
preference, and so on. Does not parse cells beyond numbers and truth values (CSV has only text).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from alignment.errors import DataError
from alignment.records.importers.files import read_table
from alignment.records.importers.rows import BadRow, Row

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
OPTIONAL = frozenset({"id", "group", "kind", "meta", "split"})
"""Fields that any row may have."""
_MORE = {"passage-qa": frozenset({"rejected", "type"}), "alpaca": frozenset({"input", "system"})}
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


def read_columns(path: str, columns: dict[str, str], source: str, split_field: str | None) -> list[Row | BadRow]:
    """Rows with our field names; the split field is taken along under its own name.

    Raises DataError naming the file, its columns and the expected ones when one is in no row.
    """
    wanted = dict(columns)
    if split_field is not None:
        wanted.setdefault(split_field, split_field)
    rows, found = read_table(path, source)
    missing = [column for column in wanted.values() if column not in found]
    if missing:
        raise DataError(f"the file has no column {', '.join(missing)}", where=path, found=found,
                        expected="columns " + ", ".join(wanted.values()))
    return [_rename(row, wanted) for row in rows]


def _rename(row: Row | BadRow, wanted: dict[str, str]) -> Row | BadRow:
    if isinstance(row, BadRow) or not isinstance(row.value, dict):
        return row
    value = {ours: _cell(ours, row.value[column]) for ours, column in wanted.items() if column in row.value}
    return replace(row, value=value, text=row.raw)


def _cell(field: str, value: Any) -> Any:
    if field == "label":
        return _TRUTH.get(str(value).strip().lower(), value)
    if isinstance(value, bool):
        return value
    if isinstance(value, float) and math.isnan(value):
        return None
    return str(value) if isinstance(value, int | float) else value
