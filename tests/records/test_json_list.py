"""A JSON list as it comes, against json.loads of the whole: the same items, or the same refusal at the same place."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alignment.errors import DataError
from alignment.records.importers.files import read_rows
from alignment.records.importers.json_list import items_of
from alignment.records.importers.rows import Row

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8)


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def told(data: bytes, size: int | None) -> Any:
    """The items, or what is said of the fault and where; read whole, or in pieces of so many bytes."""
    try:
        return json.loads(data.decode()) if size is None else list(items_of(pieces(data, size), dict))
    except json.JSONDecodeError as error:
        return error.msg, error.lineno, error.colno
    except UnicodeDecodeError:
        return "not UTF-8"


@given(st.lists(VALUES, max_size=6), st.integers(1, 80), st.sampled_from([None, 1]), st.booleans())
@example([1e300, -12, "é" * 90, {"a": 1.5e-7}], 1, None, False)
def test_items_are_those_of_the_whole(made: list[Any], size: int, indent: int | None, ascii: bool) -> None:
    data = f" \n{json.dumps(made, indent=indent, ensure_ascii=ascii)}\n ".encode("utf-8", "surrogatepass")
    assert told(data, size) == told(data, None)


@given(st.lists(VALUES, min_size=1, max_size=4), st.integers(1, 200), st.integers(0, 10**6), st.integers(0, 10**6),
       st.binary(max_size=2))
def test_what_is_broken_is_refused_where_the_whole_is(
    made: list[Any], size: int, place: int, upto: int, put: bytes
) -> None:
    data = json.dumps(made, indent=1).encode()
    place %= len(data)
    broken = b"[" + data[1:place] + put + data[place + upto % 4 :]
    assert told(broken, size) == told(broken, None)


@pytest.mark.parametrize(("text", "where"), [
    ('[{"a": 1},\n {"a": 2}\n {"a": 3}]', "3 column 2"), ('[{"a": 1},\n {"a": 2},]', "2 column 11"),
    ('[{"a": 1}]\n\n x', "3 column 2"), ('[{"a": 1},\n {"a": "no end', "2 column 8"), ('[{"a": 1},\n', "2 column 1"),
])  # fmt: skip
def test_a_long_list_that_is_broken_is_an_error_with_its_place(text: str, where: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    blank = " " * (1 << 21)
    file.write_text(text.replace("[", f"[{blank}\n", 1), encoding="utf-8")
    line, _, column = where.partition(" ")
    with pytest.raises(DataError, match="not valid JSON") as error:
        list(read_rows(str(file), "s"))
    assert error.value.where == f"{file}:{int(line) + 1} {column}"


def test_a_long_list_without_rows_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text("[" + " " * (1 << 21) + "]", encoding="utf-8")
    with pytest.raises(DataError, match="holds no rows"):
        list(read_rows(str(file), "s"))


def test_long_lists_and_tables_are_read_in_the_memory_of_a_piece(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number} " * 40, "completion": "x" * 200} for number in range(60_000)]
    listed, plain, packed = (tmp_path / name for name in ("rows.json.gz", "rows.parquet", "rows.parquet.gz"))
    listed.write_bytes(gzip.compress(json.dumps(rows).encode(), 1))
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, plain, compression="none", use_dictionary=False, row_group_size=4096)
    del table
    packed.write_bytes(gzip.compress(plain.read_bytes(), 1))
    for file in (listed, plain, packed):
        before, most_in_arrow, number = pyarrow.total_allocated_bytes(), 0, -1
        tracemalloc.start()
        for number, row in enumerate(read_rows(str(file), "s")):
            assert isinstance(row, Row)
            assert (row.number, row.value) == (number + 1, rows[number])
            if number % 4096 == 0:
                most_in_arrow = max(most_in_arrow, pyarrow.total_allocated_bytes() - before)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert number == len(rows) - 1
        assert most + most_in_arrow < 12e6, (file.name, "the rows are 27 MB of text")
