"""Tables to raw rows, as they are gone through: Parquet and CSV. Does not know what rows mean."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from alignment.errors import DataError
from alignment.records.importers.packed import Unpacked, on_disk, unpacked
from alignment.records.importers.rows import RAW_LIMIT, BadRow, Row, Unreadable


def read_parquet(file: Unpacked) -> Iterator[Row]:
    """What its end says of it is looked at at once, its rows as they are gone through."""
    try:
        # Optional: the control plane installs without it.
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("reading Parquet needs pyarrow", where=file.path,
                        hint="pip install 'kubealign[train]'") from error
    path, plain = file.path, on_disk(file)
    try:
        # Buffered ahead, the whole file would be in memory.
        table = pyarrow.parquet.ParquetFile(_on_disk_for_now(file) if plain is None else plain, pre_buffer=False)
        check_header(table.schema_arrow.names, path)
        rows = table.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"not a Parquet file: {error}", where=path) from error
    if not rows:
        raise DataError("the file holds no rows", where=path, found=table.schema_arrow.names,
                        expected="at least one row")

    def each() -> Iterator[Row]:
        number = 0
        try:
            for batch in table.iter_batches(4096):
                for value in _values(batch):
                    number += 1
                    yield Row(number, value)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"not a Parquet file: {error}", where=path) from error

    return each()


def _on_disk_for_now(file: Unpacked) -> Any:
    """What is packed or comes from elsewhere, in a file that goes with who reads it: Parquet is read from its end."""
    made = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the table
    for piece in itertools.chain([file.head], file.rest()):
        made.write(piece)
    made.seek(0)
    return made


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


def check_header(names: list[str], path: str) -> None:
    if twice := doubled(names):
        raise DataError(f"the column {', '.join(twice)} stands twice", where=path, found=names,
                        expected="another name for each column", hint="only one of them could be read")


def read_csv(path: str, source: str, delimiter: str) -> tuple[Iterable[Row | BadRow], list[str]]:
    """Rows, read as they are gone through, and the header of a CSV. Raises DataError for what its start shows, and for
    the rest when it comes: not UTF-8, or a quote that is never closed."""
    csv.field_size_limit(2**31 - 1)
    header: list[str] = []
    rows = _cells(path, source, delimiter, header)
    first = next(rows, None)
    if first is None:
        raise DataError("the file holds no rows", where=path, found=header or None,
                        expected="a header and at least one row")
    return itertools.chain([first], rows), header


def _cells(path: str, source: str, delimiter: str, header: list[str]) -> Iterator[Row | BadRow]:
    """The rows; the header, which comes first, is put where it was asked for."""
    consumed: list[str] = []

    def lines() -> Iterator[str]:
        for line in _text(path):
            consumed.append(line)
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        consumed.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if not header or "unexpected end" in str(error):
                # The open quote has swallowed everything after it: no row after this one is known.
                raise DataError(f"not valid CSV: {error}", where=f"{path}:{number}",
                                hint="a quote that is opened here is never closed") from error
            yield BadRow(source, number, f"broken-csv: {error}", "".join(consumed)[:RAW_LIMIT])
            continue
        if cells is None:
            return
        if not cells:
            continue
        if not header:
            check_header(cells, path)
            header += cells
        elif len(cells) != len(header):
            yield BadRow(source, number, f"wrong-columns: {len(cells)} cells, expected {len(header)}",
                         "".join(consumed)[:RAW_LIMIT])
        else:
            yield Row(number, dict(zip(header, cells, strict=True)), "".join(consumed))


def _text(path: str) -> Iterator[str]:
    """Lines with their ends, which are of all kinds, as csv's reader takes them."""
    decoder, begun, read = codecs.getincrementaldecoder("utf-8")(), "", 0
    with unpacked(path) as file:
        for piece in itertools.chain([file.head], file.rest(), [b""]):
            try:
                begun += decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                at = read - len(decoder.getstate()[0]) + error.start + 1
                raise DataError(f"not UTF-8 at byte {at}: {error.reason}", where=path,
                                expected="a CSV file in UTF-8") from error
            read += len(piece)
            lines = list(io.StringIO(begun, newline=""))
            begun = lines.pop() if piece and lines else ""  # there may be more of it
            yield from lines


def doubled(names: list[str]) -> list[str]:
    """The names that stand in a list more than once."""
    return [name for name, count in Counter(names).items() if count > 1]
