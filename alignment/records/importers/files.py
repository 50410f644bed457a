"""Files to raw rows: JSON lines, a JSON list, Parquet, CSV; and whole JSON documents. Reads through fsspec.

A broken line is a BadRow with its line number; a file that cannot be read, is empty or has the wrong top level is
a DataError. Lines end with "\\n" only: rows may hold Unicode line separators. Does not know what rows mean.
"""

from __future__ import annotations

import csv
import io
import json
import zlib
from collections.abc import Iterator
from typing import Any

import fsspec

from alignment.errors import DataError
from alignment.records.importers.rows import RAW_LIMIT, BadRow, Row

_PARQUET = b"PAR1"
_CELL_LIMIT = 2**31 - 1


def load(path: str) -> bytes:
    """The bytes of a file or URL, unpacked when its name ends in .gz, .bz2, .xz or .zst. Raises DataError."""
    try:
        with fsspec.open(path, "rb", compression="infer") as file:
            data: bytes = file.read()
    except (OSError, EOFError, ValueError, ImportError, zlib.error) as error:
        raise DataError(f"the file cannot be read: {error}", where=path,
                        expected="a file, or a URL that fsspec can open") from error
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        raise DataError("the file is empty", where=path, expected="at least one row")
    return data


def load_json(path: str) -> Any:
    """A whole file as one JSON document. Raises DataError with line and column."""
    return _parse(load(path), path)


def read_rows(path: str, source: str) -> list[Row | BadRow]:
    """Rows of a JSON-lines file, a JSON list or a Parquet file, told apart by their content.

    Raises:
        DataError: unreadable, empty, or one JSON document that is not a list.
    """
    data = load(path)
    if data.startswith(_PARQUET):
        return list(_parquet(data, path))
    # A first line that is a list by itself is a JSON list on one line, or else lines that hold lists: bad rows.
    first = data.lstrip().split(b"\n", 1)[0]
    if first.startswith(b"[") and (_is_json(data, list) or not _is_json(first, list)):
        return _items(_parse(data, path), path)
    rows = list(_lines(data, source))
    if not any(isinstance(row, Row) and isinstance(row.value, dict) for row in rows) and _is_json(data, object):
        raise DataError("the top level is the wrong shape", where=path, found=type(_parse(data, path)).__name__,
                        expected="JSON lines, or one JSON list of objects")
    return rows


def read_table(path: str, source: str) -> tuple[list[Row | BadRow], list[str]]:
    """Rows and column names of a CSV (.csv, or .tsv with tabs), Parquet, JSON-lines or JSON file."""
    name = path.lower()
    for packed in (".gz", ".bz2", ".xz", ".zst"):
        name = name.removesuffix(packed)
    if name.endswith((".csv", ".tsv")):
        return _csv(load(path), path, source, "\t" if name.endswith(".tsv") else ",")
    rows = read_rows(path, source)
    objects = [row.value for row in rows if isinstance(row, Row) and isinstance(row.value, dict)]
    return rows, list(dict.fromkeys(str(key) for value in objects for key in value))


def _is_json(data: bytes, kind: type) -> bool:
    try:
        return isinstance(json.loads(data), kind)
    except (ValueError, RecursionError):
        return False


def _parse(data: bytes, path: str) -> Any:
    try:
        return json.loads(data.decode("utf-8"))
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
            yield Row(number, json.loads(text), text)
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
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"not a Parquet file: {error}", where=path) from error
    if not table.num_rows:
        raise DataError("the file holds no rows", where=path, found=table.column_names, expected="at least one row")
    number = 0
    for batch in table.to_batches(max_chunksize=4096):
        for value in batch.to_pylist():
            number += 1
            yield Row(number, value)


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
        elif len(cells) != len(header):
            rows.append(BadRow(source, number, f"wrong-columns: {len(cells)} cells, expected {len(header)}",
                               "".join(consumed)[:RAW_LIMIT]))
        else:
            rows.append(Row(number, dict(zip(header, cells, strict=True)), "".join(consumed)))
    if not rows:
        raise DataError("the file holds no rows", where=path, found=header, expected="a header and at least one row")
    return rows, header or []
