"""Files to raw rows: JSON lines, a JSON list, Parquet, CSV; and whole JSON documents.

A broken line is a BadRow with its line number; a file that cannot be read, is empty or has the wrong top level is
a DataError. Lines end with "\\n" only: rows may hold Unicode line separators. Does not know what rows mean; opening
and unpacking is `packed`'s.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from alignment.errors import DataError
from alignment.records.importers.packed import load
from alignment.records.importers.rows import RAW_LIMIT, BadRow, Row, Unreadable

_PARQUET = b"PAR1"
_CELL_LIMIT = 2**31 - 1


def load_json(path: str) -> Any:
    """A whole file as one JSON document. Raises DataError with line and column."""
    return _parse(load(path)[0], path)


def read_rows(path: str, source: str) -> list[Row | BadRow]:
    """Rows of a JSON-lines file, a JSON list or a Parquet file, told apart by their content.

    Raises:
        DataError: unreadable, empty, a CSV, or one JSON document that is not a list.
    """
    data, name = load(path)
    rows = _rows(data, path, source)
    if name.endswith((".csv", ".tsv")) and not any(
            isinstance(row, Row) and isinstance(row.value, dict) for row in rows):
        raise DataError("a table is read by format columns", where=path, found=f"a CSV, from {name}",
                        expected="format: columns, with columns: {prompt: NAME OF A COLUMN, ...}")
    return rows


def _rows(data: bytes, path: str, source: str) -> list[Row | BadRow]:
    if data.startswith(_PARQUET):
        return list(_parquet(data, path))
    # A first line that is a list by itself is a JSON list on one line, or else lines that hold lists: bad rows.
    first = data.lstrip().split(b"\n", 1)[0]
    if first.startswith(b"[") and (_is_json(data, list) or not _is_json(first, list)):
        return _items(_parse(data, path), path)
    rows = list(_lines(data, source))
    # A document over several lines may have lines that are objects by themselves; as a whole it is no JSON lines.
    objects = sum(isinstance(row, Row) and isinstance(row.value, dict) for row in rows)
    if objects < len(rows) and (objects == 0 or len(rows) > 1) and _is_json(data, object):
        raise _wrong_shape(_parse(data, path), path)
    return rows


def read_table(path: str, source: str) -> tuple[list[Row | BadRow], list[str]]:
    """Rows and column names of a CSV (.csv, or .tsv with tabs), Parquet, JSON-lines or JSON file."""
    data, name = load(path)
    if name.endswith((".csv", ".tsv")):
        return _csv(data, path, source, "\t" if name.endswith(".tsv") else ",")
    rows = _rows(data, path, source)
    objects = [row.value for row in rows if isinstance(row, Row) and isinstance(row.value, dict)]
    return rows, list(dict.fromkeys(str(key) for value in objects for key in value))


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
        raise ValueError(f"the key {_doubled([key for key, _ in pairs])[0]!r} stands twice in one object")
    return made


def _doubled(names: list[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _is_json(data: bytes, kind: type) -> bool:
    try:
        return isinstance(_json(data.decode("utf-8")), kind)
    except (ValueError, RecursionError):
        return False


def _parse(data: bytes, path: str) -> Any:
    try:
        return _json(data.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON: {error.msg}", where=f"{path}:{error.lineno} column {error.colno}",
                        expected="one JSON document") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}", where=path, expected="one JSON document in UTF-8") from error


def _items(value: list[Any], path: str) -> list[Row | BadRow]:
    if not value:
        raise DataError("the file holds no rows", where=path, found=value, expected="at least one row")
    return [Row(number, item) for number, item in enumerate(value, start=1)]


def _lines(data: bytes, source: str) -> Iterator[Row | BadRow]:
    for number, line in enumerate(data.split(b"\n"), start=1):
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


def _parquet(data: bytes, path: str) -> Iterator[Row]:
    try:
        # Optional: the control plane installs without it.
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("reading Parquet needs pyarrow", where=path, hint="pip install 'kubealign[train]'") from error
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        _check_header(file.schema_arrow.names, path)
        table = file.read()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"not a Parquet file: {error}", where=path) from error
    if not table.num_rows:
        raise DataError("the file holds no rows", where=path, found=table.column_names, expected="at least one row")
    number = 0
    for batch in table.to_batches(max_chunksize=4096):
        for value in _values(batch):
            number += 1
            yield Row(number, value)


def _values(batch: Any) -> list[dict[str, Any]]:
    try:
        values: list[dict[str, Any]] = batch.to_pylist()
        return values
    except (ValueError, OverflowError):  # dates that Python has not, text that is not UTF-8; not every cell of it
        columns = {name: [_value(cell) for cell in batch.column(name)] for name in batch.schema.names}
        return [{name: cells[index] for name, cells in columns.items()} for index in range(batch.num_rows)]


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except (ValueError, OverflowError) as error:
        return Unreadable(str(error))


def _check_header(names: list[str], path: str) -> None:
    if doubled := _doubled(names):
        raise DataError(f"the column {', '.join(doubled)} stands twice", where=path, found=names,
                        expected="another name for each column", hint="only one of them could be read")


def _csv(data: bytes, path: str, source: str, delimiter: str) -> tuple[list[Row | BadRow], list[str]]:
    try:
        file = io.StringIO(data.decode("utf-8"), newline="")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start + 1}: {error.reason}", where=path,
                        expected="a CSV file in UTF-8") from error
    csv.field_size_limit(_CELL_LIMIT)
    consumed: list[str] = []

    def lines() -> Iterator[str]:
        for line in file:
            consumed.append(line)
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    rows: list[Row | BadRow] = []
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        consumed.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if header is None or "unexpected end" in str(error):
                # The open quote has swallowed everything after it: no row after this one is known.
                raise DataError(f"not valid CSV: {error}", where=f"{path}:{number}",
                                hint="a quote that is opened here is never closed") from error
            rows.append(BadRow(source, number, f"broken-csv: {error}", "".join(consumed)[:RAW_LIMIT]))
            continue
        if cells is None:
            break
        if not cells:
            continue
        if header is None:
            header = cells
            _check_header(header, path)
        elif len(cells) != len(header):
            rows.append(BadRow(source, number, f"wrong-columns: {len(cells)} cells, expected {len(header)}",
                               "".join(consumed)[:RAW_LIMIT]))
        else:
            rows.append(Row(number, dict(zip(header, cells, strict=True)), "".join(consumed)))
    if not rows:
        raise DataError("the file holds no rows", where=path, found=header, expected="a header and at least one row")
    return rows, header or []
