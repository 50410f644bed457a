"""Files to raw rows: JSON lines, a JSON list, Parquet, CSV; and whole JSON documents.

A broken line is a BadRow with its line number; a file that cannot be read, is empty or has the wrong top level is
a DataError. Lines end with "\\n" only: rows may hold Unicode line separators. Does not know what rows mean; opening
and unpacking is `packed`'s.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from alignment.errors import DataError
from alignment.records.few import Few
from alignment.records.importers.json_list import items_of
from alignment.records.importers.packed import Unpacked, load, unpacked
from alignment.records.importers.rows import RAW_LIMIT, BadRow, Row, size_of
from alignment.records.importers.tables import doubled, read_csv, read_parquet

_PARQUET = b"PAR1"


def load_json(path: str) -> Any:
    """A whole file as one JSON document. Raises DataError with line and column."""
    return _parse(load(path)[0], path)


def read_rows(path: str, source: str, few: Few | None = None) -> Iterable[Row | BadRow]:
    """Rows of a JSON-lines file, a JSON list or a Parquet file, told apart by their content; to be gone through once.

    JSON lines whose first is an object, Parquet, and JSON lists of more than a mebibyte are read as they are gone
    through.

    Args:
        few: takes those that are to be given.

    Raises:
        DataError: unreadable, empty, a CSV, or one JSON document that is not a list.
    """
    with unpacked(path) as file:
        if (rows := _as_they_come(file, source, few)) is not None:
            return rows
        data, name = b"".join([file.head, *file.rest()]), file.name
    found = _rows(data, path, source)
    if name.endswith((".csv", ".tsv")) and not any(
            isinstance(row, Row) and isinstance(row.value, dict) for row in found):
        raise DataError("a table is read by format columns", where=path, found=f"a CSV, from {name}",
                        expected="format: columns, with columns: {prompt: NAME OF A COLUMN, ...}")
    return few_of(found, few)


def comes_in_rows(path: str) -> bool:
    """Whether a file is read as it is gone through, and not as a whole. Raises DataError where it cannot be read."""
    with unpacked(path) as file:
        table = file.name.endswith((".csv", ".tsv")) or file.head.startswith(_PARQUET)
        return table or _is_lines(file)


def _is_lines(file: Unpacked) -> bool:
    """A file is JSON lines for certain if its first line is an object by itself."""
    first, end, _ = file.head.lstrip().partition(b"\n")
    return bool(end or file.whole) and _is_json(first, dict)


def few_of(rows: Iterable[Row | BadRow], few: Few | None) -> Iterable[Row | BadRow]:
    """Those of the rows that are taken; all without `few`."""
    if few is None:
        return rows
    return few.of(rows, lambda row: size_of(row.raw if isinstance(row, BadRow) else row.value))


def _as_they_come(file: Unpacked, source: str, few: Few | None) -> Iterable[Row | BadRow] | None:
    """The rows of a file that need not be read as a whole; None for one that must, to know what it is."""
    if file.head.startswith(_PARQUET):
        return few_of(read_parquet(file), few)
    if _is_lines(file):
        return _each_line(file.path, source, few)
    return few_of(_each_item(file.path), few) if _is_long_list(file) else None


def _is_long_list(file: Unpacked) -> bool:
    """Whether a file is more than its head, and one JSON list or broken: not lines of which the first is a list."""
    first, end, _ = file.head.lstrip().partition(b"\n")
    table = file.name.endswith((".csv", ".tsv"))
    return not (file.whole or table) and first.startswith(b"[") and not (end and _is_json(first, list))


def _each_item(path: str) -> Iterator[Row]:
    number = 0
    with unpacked(path) as file:
        try:
            for number, item in enumerate(items_of(chain([file.head], file.rest()), _object), start=1):
                yield Row(number, item)
        except (ValueError, RecursionError) as error:
            raise _not_json(error, path) from error
    if not number:
        raise DataError("the file holds no rows", where=path, found=[], expected="at least one row")


def _each_line(path: str, source: str, few: Few | None) -> Iterator[Row | BadRow]:
    with unpacked(path) as file:
        lines = enumerate(file.lines(), start=1)
        if few is None:
            yield from _lines(lines, source)
        else:  # nothing is made of the others
            held = (line for line in lines if line[1].strip())
            yield from _lines(few.of(held, lambda line: len(line[1])), source)


def _rows(data: bytes, path: str, source: str) -> list[Row | BadRow]:
    """The rows of a file that is JSON, or broken."""
    # A first line that is a list by itself is a JSON list on one line, or else lines that hold lists: bad rows.
    first = data.lstrip().split(b"\n", 1)[0]
    if first.startswith(b"[") and (_is_json(data, list) or not _is_json(first, list)):
        return _items(_parse(data, path), path)
    rows = list(_lines(enumerate(data.split(b"\n"), start=1), source))
    # A document over several lines may have lines that are objects by themselves; as a whole it is no JSON lines.
    objects = sum(isinstance(row, Row) and isinstance(row.value, dict) for row in rows)
    if objects < len(rows) and (objects == 0 or len(rows) > 1) and _is_json(data, object):
        raise _wrong_shape(_parse(data, path), path)
    return rows


def read_table(path: str, source: str) -> tuple[Iterable[Row | BadRow], list[str]]:
    """Rows, to be gone through once, and column names of a CSV (.csv, or .tsv with tabs), Parquet, JSON-lines or JSON
    file. JSON lines are gone through for the names first."""
    with unpacked(path) as file:
        name = file.name
    if name.endswith((".csv", ".tsv")):
        return read_csv(path, source, "\t" if name.endswith(".tsv") else ",")
    rows = read_rows(path, source)
    if isinstance(rows, list):
        return rows, _columns(rows)
    return rows, _columns(read_rows(path, source))


def _columns(rows: Iterable[Row | BadRow]) -> list[str]:
    names: dict[str, None] = {}
    for row in rows:
        if isinstance(row, Row) and isinstance(row.value, dict):
            names.update(dict.fromkeys(map(str, row.value)))
    return list(names)


def _wrong_shape(document: Any, path: str) -> DataError:
    lists = [key for key, value in document.items() if isinstance(value, list)] if isinstance(document, dict) else []
    found = f"an object with {', '.join(map(str, list(document)[:5]))}" if isinstance(document, dict) else (
        type(document).__name__)
    return DataError("the top level is the wrong shape", where=path, found=found,
                     expected="JSON lines, or one JSON list of objects",
                     hint=f"write the list under {lists[0]!r} into a file of its own" if lists else None)


def _json(text: str) -> Any:
    """json.loads, but a key that stands twice in one object is a ValueError: one of its values would be lost."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError(f"the key {doubled([key for key, _ in pairs])[0]!r} stands twice in one object")
    return made


def _is_json(data: bytes, kind: type) -> bool:
    try:
        return isinstance(_json(data.decode("utf-8")), kind)
    except (ValueError, RecursionError):
        return False


def _parse(data: bytes, path: str) -> Any:
    try:
        return _json(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _not_json(error, path) from error


def _not_json(error: Exception, path: str) -> DataError:
    if isinstance(error, json.JSONDecodeError):
        return DataError(f"not valid JSON: {error.msg}", where=f"{path}:{error.lineno} column {error.colno}",
                         expected="one JSON document")
    return DataError(f"not valid JSON: {error}", where=path, expected="one JSON document in UTF-8")


def _items(value: list[Any], path: str) -> list[Row | BadRow]:
    if not value:
        raise DataError("the file holds no rows", where=path, found=value, expected="at least one row")
    return [Row(number, item) for number, item in enumerate(value, start=1)]


def _lines(lines: Iterable[tuple[int, bytes]], source: str) -> Iterator[Row | BadRow]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8")
            yield Row(number, _json(text), text)
        except UnicodeDecodeError as error:
            reason = f"broken-encoding: not UTF-8 at byte {error.start + 1}: {error.reason}"
            yield BadRow(source, number, reason, line.decode("utf-8", "backslashreplace")[:RAW_LIMIT])
        except json.JSONDecodeError as error:
            yield BadRow(source, number, f"broken-json: {error.msg} at column {error.colno}", text[:RAW_LIMIT])
        except (ValueError, RecursionError) as error:
            yield BadRow(source, number, f"broken-json: {error}", text[:RAW_LIMIT])
