"""Files to raw rows (`importers.files`): every kind of file, packed or not, with the numbers of broken lines."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.errors import DataError
from alignment.records.importers.files import load_json, read_rows, read_table
from alignment.records.importers.packed import load
from alignment.records.importers.rows import RAW_LIMIT, BadRow, Row, Unreadable
from tests.records.drawn import json_objects, json_values, quick, texts

BOM = b"\xef\xbb\xbf"
TWO = [{"a": 1}, {"a": 2}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose files every example of a property writes anew."""
    return tmp_path_factory.mktemp("files")


def written(folder: Path, content: bytes | str, name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return str(path)


def rows_of(path: str) -> list[tuple[int, Any]]:
    """(number, value) of each good row; there may be no bad ones."""
    rows = list(read_rows(path, "s"))
    assert all(isinstance(row, Row) for row in rows), rows
    return [(row.number, row.value) for row in rows if isinstance(row, Row)]


# the kinds of a file


@pytest.mark.parametrize(("name", "content"), [
    ("x.jsonl", b'{"a": 1}\n{"a": 2}\n'),
    ("x.jsonl", b'{"a": 1}\n{"a": 2}'),
    ("x.jsonl", b'{"a": 1}\r\n{"a": 2}\r\n'),
    ("x.jsonl", b' {"a": 1} \n\t{"a":2}'),
    ("x.jsonl", BOM + b'{"a": 1}\n{"a": 2}\n'),
    ("x.json", b'{"a": 1}\n{"a": 2}\n'),
    ("x.json", b'[{"a": 1}, {"a": 2}]'),
    ("x.json", b'\n [\n  {"a": 1},\n  {\n   "a": 2\n  }\n]\n'),
    ("x.json", b'[{"a": 1},\r\n{"a": 2}]\r\n'),
    ("x.json", BOM + b'[{"a": 1}, {"a": 2}]'),
    ("x.jsonl", b'[{"a": 1}, {"a": 2}]'),
    ("no-ending", b'{"a": 1}\n{"a": 2}\n'),
    ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n{"a": 2}\n')),
    ("x.jsonl.gz", gzip.compress(BOM + b'{"a": 1}\r\n{"a": 2}\r\n')),
    ("x.json.gz", gzip.compress(b'[{"a": 1}, {"a": 2}]')),
    ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n') + gzip.compress(b'{"a": 2}\n')),
    ("x.jsonl.bz2", bz2.compress(b'{"a": 1}\n{"a": 2}\n')),
    ("x.jsonl.xz", lzma.compress(b'{"a": 1}\n{"a": 2}\n')),
], ids=range(18))  # fmt: skip
def test_the_same_rows_come_from_every_kind_of_file(name: str, content: bytes, tmp_path: Path) -> None:
    assert rows_of(written(tmp_path, content, name)) == [(1, TWO[0]), (2, TWO[1])]


def test_a_file_is_read_through_fsspec() -> None:
    with fsspec.open("memory://records/rows.jsonl.gz", "wb", compression="infer") as file:
        file.write(b'{"a": 1}\n{"a": 2}\n')
    assert rows_of("memory://records/rows.jsonl.gz") == [(1, TWO[0]), (2, TWO[1])]


def test_a_row_keeps_the_line_that_it_came_from(tmp_path: Path) -> None:
    first, second = read_rows(written(tmp_path, '{"a":1}\r\n {"a": "ü"}\n'), "s")
    assert (first, second) == (Row(1, {"a": 1}, '{"a":1}\r'), Row(2, {"a": "ü"}, ' {"a": "ü"}'))
    [item] = read_rows(written(tmp_path, '[{"a": "ü"}]'), "s")
    assert item == Row(1, {"a": "ü"}, None)


def test_blank_lines_hold_no_row_and_are_counted(tmp_path: Path) -> None:
    assert [number for number, _ in rows_of(written(tmp_path, '\n{"a": 1}\n\n \r\n{"a": 2}\n\n'))] == [2, 5]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
@pytest.mark.parametrize("form", ["{}\n{}\n", "[{},\n{}]"])
def test_only_newlines_end_a_line(separator: str, form: str, tmp_path: Path) -> None:
    text = f"one{separator}two"
    line = json.dumps({"a": text}, ensure_ascii=False)
    assert rows_of(written(tmp_path, form.format(line, line))) == [(1, {"a": text}), (2, {"a": text})]


def test_lines_that_hold_lists_are_rows_and_no_list_of_rows(tmp_path: Path) -> None:
    assert rows_of(written(tmp_path, '["x", 1]\n["y", 2]\n')) == [(1, ["x", 1]), (2, ["y", 2])]
    assert rows_of(written(tmp_path, '["x"]\n{"a": 1}\n')) == [(1, ["x"]), (2, {"a": 1})]


def test_one_object_on_one_line_is_a_file_of_one_row(tmp_path: Path) -> None:
    assert rows_of(written(tmp_path, '{"data": [1, 2]}', "x.json")) == [(1, {"data": [1, 2]})]


# broken lines

BROKEN = [
    (b"{", "broken-json", "at column 2"),
    (b'{"a": 1', "broken-json", "at column 8"),
    (b'{"a": 1},', "broken-json", "Extra data at column 9"),
    (b'{"a": "one\rtwo"}', "broken-json", "control character"),
    (b"text", "broken-json", "at column 1"),
    (b"{'a': 1}", "broken-json", "double quotes at column 2"),
    (b'{"a": 1}\r{"a": 2}', "broken-json", "Extra data"),
    (b"9" * 5000, "broken-json", "digits"),
    (b"[" * 100_000, "broken-json", "recursion"),
    (b"\x00", "broken-json", "at column 1"),
    (b'{"a": "\xff"}', "broken-encoding", "at byte 8"),
    (b'{"a": "\xc3"}', "broken-encoding", "at byte 8"),
    ('{"a": "ü"}'.encode("latin-1"), "broken-encoding", "at byte 8"),
    (b'{"a": "\xed\xa0\x80"}', "broken-encoding", "at byte 8"),
]


@pytest.mark.parametrize(("line", "slug", "detail"), BROKEN, ids=[f"{s}-{n}" for n, (_, s, _) in enumerate(BROKEN)])
def test_a_broken_line_costs_one_row_and_keeps_its_number(line: bytes, slug: str, detail: str, tmp_path: Path) -> None:
    first, broken, last = read_rows(written(tmp_path, b'{"a": 1}\n\n' + line + b'\n{"a": 2}\n'), "s")
    assert isinstance(broken, BadRow)
    assert (broken.source, broken.row, broken.slug) == ("s", 3, slug)
    assert detail in broken.reason
    assert broken.raw == line.decode("utf-8", "backslashreplace")[:RAW_LIMIT]
    assert [first, last] == [Row(1, {"a": 1}, '{"a": 1}'), Row(4, {"a": 2}, '{"a": 2}')]


# files that are of no use


@pytest.mark.parametrize(("name", "content", "problem", "where"), [
    ("x.jsonl", b"", "is empty", ""),
    ("x.jsonl", b" \r\n\t\n", "is empty", ""),
    ("x.jsonl", BOM, "is empty", ""),
    ("x.jsonl", BOM + b"\n", "is empty", ""),
    ("x.jsonl.gz", gzip.compress(b""), "is empty", ""),
    ("x.json", b"[]", "holds no rows", ""),
    ("x.json", b"[\n]\n", "holds no rows", ""),
    ("x.json", b"3", "wrong shape", ""),
    ("x.json", b'"text"', "wrong shape", ""),
    ("x.json", b"null\n", "wrong shape", ""),
    ("x.json", b'{\n  "a": 1\n}\n', "wrong shape", ""),
    ("x.json", b'[{"a": 1},\n {"a" 2}]', "not valid JSON", ":2 column 7"),
    ("x.json", b'[{"a": 1},\n {"a": 2}', "not valid JSON", ":2 column 10"),
    ("x.json", b'[{"a": "\xff"}]', "not valid JSON", ""),
    ("x.jsonl.gz", b"no gzip", "cannot be read", ""),
    ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99)[:-9], "cannot be read", ""),
    ("x.jsonl.bz2", b"no bzip2", "cannot be read", ""),
    ("x.jsonl.xz", lzma.compress(b'{"a": 1}\n' * 99)[:-9], "cannot be read", ""),
], ids=range(18))  # fmt: skip
def test_a_file_of_no_use_is_an_error(name: str, content: bytes, problem: str, where: str, tmp_path: Path) -> None:
    path = written(tmp_path, content, name)
    with pytest.raises(DataError, match=problem) as caught:
        read_rows(path, "s")
    assert caught.value.where == path + where


@pytest.mark.parametrize("path", ["{}/nowhere.jsonl", "{}", "nosuchprotocol://bucket/rows.jsonl"])
def test_a_file_that_cannot_be_opened_is_an_error(path: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read") as caught:
        load(path.format(tmp_path))
    assert caught.value.where == path.format(tmp_path)


def test_a_whole_document_is_read_at_once(tmp_path: Path) -> None:
    assert load_json(written(tmp_path, BOM + b'{\n"a":\r\n[1]}')) == {"a": [1]}
    assert load_json(written(tmp_path, gzip.compress(b"[]"), "x.json.gz")) == []


@pytest.mark.parametrize(("content", "where"), [
    (b"{\n,}", ":2 column 1"), (b'{"a": 1}\n{"a": 2}', ":2 column 1"), (b'{"a": "\xff"}', ""), (b"[" * 100_000, ""),
], ids=range(4))  # fmt: skip
def test_a_broken_document_is_an_error_with_its_place(content: bytes, where: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(DataError, match="not valid JSON") as caught:
        load_json(path)
    assert caught.value.where == path + where


# properties of line files


@quick
@given(st.lists(json_objects, min_size=1, max_size=5), st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans())
def test_lines_and_lists_of_any_objects_come_back(folder: Path, made: list[Any], end: str, ascii: bool) -> None:
    lines = [json.dumps(value, ensure_ascii=ascii) for value in made]
    assert [value for _, value in rows_of(written(folder, end.join(lines)))] == made
    assert rows_of(written(folder, f"[{','.join(lines)}]")) == list(enumerate(made, 1))
    assert rows_of(written(folder, json.dumps(made, indent=1, ensure_ascii=ascii))) == list(enumerate(made, 1))


@quick
@given(st.lists(json_values.map(json.dumps) | texts.map(lambda text: text.replace("\n", " ")), max_size=6))
def test_every_line_that_is_not_blank_gives_one_row_with_its_number(folder: Path, made: list[str]) -> None:
    lines = ['{"first": "an object"}', *made]
    rows = read_rows(written(folder, "\n".join(lines)), "s")
    # A blank line is one whose bytes are blank: a lone U+2028 is a broken row.
    assert [row.number if isinstance(row, Row) else row.row for row in rows] == [
        number for number, line in enumerate(lines, 1) if line.encode("utf-8").strip()]  # fmt: skip
    for row in rows:
        if isinstance(row, Row):
            assert repr(row.value) == repr(json.loads(lines[row.number - 1]))  # NaN, too, which equals nothing


pieces = st.sampled_from([b"[", b"]", b"{", b"}", b'{"a": 1}', b'"', b"\n", b"\r", b",", b"1", b"null", BOM, b"\xff",
                          b"[1]", b'[{"a": 1}]', b" ", "\u2028".encode()])  # fmt: skip


@quick
@given(st.lists(pieces | st.binary(max_size=4), max_size=8).map(b"".join))
def test_any_bytes_are_rows_or_a_data_error(folder: Path, content: bytes) -> None:
    try:
        rows = read_rows(written(folder, content), "s")
    except DataError:
        return
    assert rows
    assert all(row.slug in ("broken-json", "broken-encoding") for row in rows if isinstance(row, BadRow))


# tables


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz"])
@pytest.mark.parametrize("content", ["prompt,completion\nIs it?,Yes.\n", "prompt\n1\n2\n"])
def test_a_table_is_left_to_format_columns(name: str, content: str, tmp_path: Path) -> None:
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(DataError, match="a table is read by format columns"):
        read_rows(str(tmp_path / name), "t")


def test_json_lines_that_are_called_csv_are_read_as_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('{"a": 1}\nbroken\n')
    assert len(list(read_rows(str(tmp_path / "t.csv"), "t"))) == 2


def table(folder: Path, content: bytes | str, name: str = "t.csv") -> tuple[list[Row | BadRow], list[str]]:
    rows, names = read_table(written(folder, content, name), "s")
    return list(rows), names


@pytest.mark.parametrize(("name", "content"), [
    ("t.csv", "q,a\nx,y\n"),
    ("t.csv", "q,a\r\nx,y\r\n"),
    ("t.csv", "q,a\rx,y\r"),
    ("t.csv", '"q","a"\n"x","y"'),
    ("t.csv", "\nq,a\n\nx,y\n\n"),
    ("t.csv", BOM + b"q,a\nx,y\n"),
    ("T.CSV", "q,a\nx,y\n"),
    ("t.tsv", "q\ta\nx\ty\n"),
    ("t.csv.gz", gzip.compress(BOM + b"q,a\nx,y\n")),
    ("t.tsv.bz2", bz2.compress(b"q\ta\nx\ty\n")),
    ("t.jsonl", '{"q": "x", "a": "y"}\n'),
    ("t.json", '[{"q": "x", "a": "y"}]'),
], ids=range(12))  # fmt: skip
def test_the_same_table_comes_from_every_kind_of_file(name: str, content: bytes | str, tmp_path: Path) -> None:
    [row], names = table(tmp_path, content, name)
    assert isinstance(row, Row)
    assert (row.value, names) == ({"q": "x", "a": "y"}, ["q", "a"])


def test_cells_keep_quotes_commas_and_line_ends(tmp_path: Path) -> None:
    content = 'q,a\n"two\nlines, ""quoted""","x\r\ny"\n a ,\u2028b\n"",\n'
    rows, _ = table(tmp_path, content)
    assert rows == [
        Row(2, {"q": 'two\nlines, "quoted"', "a": "x\r\ny"}, '"two\nlines, ""quoted""","x\r\ny"\n'),
        Row(5, {"q": " a ", "a": "\u2028b"}, " a ,\u2028b\n"),
        Row(6, {"q": "", "a": ""}, '"",\n'),
    ]


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    [row], _ = table(tmp_path, "q\n" + "x" * 200_000 + "\n")
    assert isinstance(row, Row)
    assert len(row.value["q"]) == 200_000


def test_a_broken_row_of_a_table_keeps_its_line_and_costs_no_other(tmp_path: Path) -> None:
    rows, _ = table(tmp_path, 'q,a\n"1\n1",x\n\n2\n3,x,y\n"4"4,x\n"5\n5"5,x\n6,x\n')
    assert [(row.number, row.value["q"]) for row in rows if isinstance(row, Row)] == [(2, "1\n1"), (10, "6")]
    assert [(row.row, row.slug, row.raw) for row in rows if isinstance(row, BadRow)] == [
        (5, "wrong-columns", "2\n"),
        (6, "wrong-columns", "3,x,y\n"),
        (7, "broken-csv", '"4"4,x\n'),
        (8, "broken-csv", '"5\n5"5,x\n'),
    ]


@pytest.mark.parametrize(("content", "problem", "where"), [
    (b"q,a\n", "holds no rows", ""),
    (b"q,a", "holds no rows", ""),
    (b"", "is empty", ""),
    (b'q\nfine\n"never closed\nmore\n', "not valid CSV", ":3"),
    (b'"q"x,a\n1,2\n', "not valid CSV", ":1"),
    (b"q\n\xff\n", "not UTF-8 at byte 3", ""),
], ids=range(6))  # fmt: skip
def test_a_table_of_no_use_is_an_error(content: bytes, problem: str, where: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        table(tmp_path, content)
    assert caught.value.where == f"{tmp_path}/t.csv{where}"


def test_columns_of_line_files_are_all_keys_in_the_order_they_come(tmp_path: Path) -> None:
    rows, names = table(tmp_path, '{"b": 1}\nbroken\n["x"]\n{"a": 1, "b": 2}\n{}\n', "t.jsonl")
    assert names == ["b", "a"]
    assert [type(row).__name__ for row in rows] == ["Row", "BadRow", "Row", "Row", "Row"]


@quick
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4), st.sampled_from([(",", "t.csv"), ("\t", "t.tsv")]),
       st.sampled_from(["\n", "\r\n"]))  # fmt: skip
def test_any_cells_come_back(folder: Path, cells: list[tuple[str, str]], kind: tuple[str, str], end: str) -> None:
    delimiter, name = kind
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([("q", "a"), *cells])
    rows, names = table(folder, buffer.getvalue(), name)
    assert names == ["q", "a"]
    assert [row.value for row in rows if isinstance(row, Row)] == [{"q": q, "a": a} for q, a in cells]
    assert "".join(row.text or "" for row in rows if isinstance(row, Row)) == buffer.getvalue().partition(end)[2]


@quick
@given(st.text(st.sampled_from('q,"\n\r\tx\ufeff\u2028 '), max_size=20))
def test_any_text_is_a_table_or_a_data_error(folder: Path, content: str) -> None:
    try:
        rows, names = table(folder, content)
    except DataError:
        return
    assert rows
    assert all(len(row.value) <= len(names) for row in rows if isinstance(row, Row))
    assert all(row.slug in ("broken-csv", "wrong-columns") for row in rows if isinstance(row, BadRow))


# Parquet


def stored(folder: Path, columns: dict[str, list[Any]], name: str = "t.parquet") -> str:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(columns), folder / name)
    return str(folder / name)


def test_parquet_is_known_by_its_bytes(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "ü\u2028"}]
    columns: dict[str, list[Any]] = {"prompt": ["x", None], "messages": [talk, []], "label": [True, False]}
    path = stored(tmp_path, columns, "no-ending")
    assert rows_of(path) == [
        (1, {"prompt": "x", "messages": talk, "label": True}),
        (2, {"prompt": None, "messages": [], "label": False}),
    ]
    assert read_table(path, "s")[1] == ["prompt", "messages", "label"]


def test_rows_of_parquet_are_numbered_across_batches(tmp_path: Path) -> None:
    assert rows_of(stored(tmp_path, {"n": list(range(5000))})) == [(n + 1, {"n": n}) for n in range(5000)]


def test_a_parquet_file_without_rows_is_an_error_with_its_columns(tmp_path: Path) -> None:
    path = stored(tmp_path, {"prompt": [], "completion": []})
    with pytest.raises(DataError, match="holds no rows") as caught:
        read_rows(path, "s")
    assert caught.value.found == ["prompt", "completion"]


def test_a_cut_parquet_file_is_an_error(tmp_path: Path) -> None:
    whole = Path(stored(tmp_path, {"prompt": ["x"]})).read_bytes()
    for content in (whole[:-20], b"PAR1 nothing"):
        with pytest.raises(DataError, match="not a Parquet file"):
            read_rows(written(tmp_path, content, "t.parquet"), "s")


# what is doubled, wrapped or cannot be held


@pytest.mark.parametrize("content", [
    '{"data": [\n{"q": "a"},\n{"q": "b"}\n]}\n',
    '{\n"data": [\n{"q": "a"}\n]\n}',
    '{"version": 1,\n "rows": [\n  {"q": "a"}\n ]}',
    '{"q":\n{"a": 1}\n}',
])
def test_a_document_over_several_lines_is_no_json_lines(content: str, tmp_path: Path) -> None:
    path = written(tmp_path, content, "x.json")
    with pytest.raises(DataError, match="wrong shape") as caught:
        read_rows(path, "s")
    assert caught.value.where == path


def test_a_wrapped_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(written(tmp_path, '{"version": "1",\n"data": [\n{"q": "a"}\n]}'), "s")
    assert caught.value.found == "an object with version, data"
    assert "'data'" in str(caught.value.hint)


def test_a_key_that_stands_twice_is_a_broken_line(tmp_path: Path) -> None:
    first, second, third = read_rows(written(tmp_path, '{"a": 1}\n{"a": 1, "a": 2}\n{"b": [{"c": 1, "c": 1}]}\n'), "s")
    assert isinstance(first, Row)
    assert [row.reason for row in (second, third) if isinstance(row, BadRow)] == [
        "broken-json: the key 'a' stands twice in one object", "broken-json: the key 'c' stands twice in one object"]
    for content in ('[{"a": 1, "a": 2}]', '[\n{"a": 1,\n"a": 2}\n]'):
        with pytest.raises(DataError, match="the key 'a' stands twice"):
            read_rows(written(tmp_path, content), "s")


@pytest.mark.parametrize(("header", "doubled"), [
    ("a,b,a", "a"), ("a,a", "a"), ("a,b,b,a", "a, b"), ('"a ",a,"a "', "a "), ("a,,", ""),
])
def test_a_header_with_one_name_twice_is_an_error(header: str, doubled: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="stands twice") as caught:
        table(tmp_path, header + "\n" + ",".join("x" * (header.count(",") + 1)) + "\n")
    assert caught.value.problem == f"the column {doubled} stands twice"


def test_a_parquet_file_with_one_name_twice_is_an_error(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["x"]), pyarrow.array(["y"])], names=["q", "q"]),
                        tmp_path / "t.parquet")
    with pytest.raises(DataError, match="the column q stands twice"):
        read_rows(str(tmp_path / "t.parquet"), "s")


def test_parquet_cells_that_python_cannot_hold_cost_no_other(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 3, [
        None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0\4\0\0\0"), pyarrow.py_buffer(b"a\xff\xfeb")])
    far = pyarrow.array([0, 10**18, 1], pyarrow.timestamp("ms"))
    nano = pyarrow.array([1, 2000, 3], pyarrow.timestamp("ns"))
    made = pyarrow.table({"q": ["x", "y", "z"], "broken": broken, "far": far, "nano": nano})
    parquet.write_table(made, tmp_path / "t.parquet")
    rows = [row.value for row in read_rows(str(tmp_path / "t.parquet"), "s") if isinstance(row, Row)]
    assert [row["q"] for row in rows] == ["x", "y", "z"]
    assert [isinstance(row["broken"], Unreadable) for row in rows] == [False, True, False]
    assert [isinstance(row["far"], Unreadable) for row in rows] == [False, True, False]
    assert Row(1, rows[1]).raw.startswith('{"q": "y", "broken": "(not readable: ')


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_file_that_comes_in_pieces_is_the_same_file(
        size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines, ends of lines and letters lie across the pieces."""
    lines = written(tmp_path, BOM + '{"q": "ü\u2028é"}\r\n\n{"q": 2}\nbroken'.encode(), "t.jsonl")
    table = written(tmp_path, BOM + 'q,a\r\n"ü\r\né",x\r1,2\n\n3\n'.encode(), "t.csv")
    late = written(tmp_path, b"q\nx\n\xc3\xbc\n\xc3", "late.csv")
    whole = list(read_rows(lines, "s")), *((list(rows), names) for rows, names in (read_table(table, "s"),))
    monkeypatch.setattr("alignment.records.importers.packed._PIECE", size)
    assert (list(read_rows(lines, "s")), *((list(rows), names) for rows, names in (read_table(table, "s"),))) == whole
    assert [row.number if isinstance(row, Row) else row.row for row in whole[0]] == [1, 3, 4]
    with pytest.raises(DataError, match="not UTF-8 at byte 8: unexpected end of data"):
        list(read_table(late, "s")[0])
    monkeypatch.setattr("alignment.records.importers.packed._HEAD", 5)
    assert list(read_rows(lines, "s")) == whole[0]


def test_a_long_file_of_lines_is_read_as_it_is_gone_through(tmp_path: Path) -> None:
    path = written(tmp_path, b'{"a": 1}\n' * 300_000)
    rows = iter(read_rows(path, "s"))
    assert next(rows) == Row(1, {"a": 1}, '{"a": 1}')
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n' * 200_000 + b'{"a": 2}\n')  # found at its end: not read before
    assert list(rows)[-1] == Row(200_001, {"a": 2}, '{"a": 2}')
