"""Format `columns`: which row type mapped fields make, and tables whose columns have other names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.errors import DataError
from alignment.records import Record
from alignment.records.importers import BadRow, Options, Row, read_source
from alignment.records.importers.columns import OPTIONAL, SHAPES, format_of, read_columns
from tests.records.drawn import assistant, quick, texts, user


def mapping(fields: str) -> dict[str, str]:
    return {field: f"the {field}" for field in fields.split()}


@pytest.mark.parametrize(("fields", "format"), [
    ("messages", "messages"),
    ("passage question answer", "passage-qa"),
    ("passage question answer rejected type", "passage-qa"),
    ("instruction output", "alpaca"),
    ("instruction input output system", "alpaca"),
    ("prompt chosen rejected", "preference"),
    ("prompt completion label", "unpaired"),
    ("prompt completion", "prompt-completion"),
    ("completion prompt id group kind meta split", "prompt-completion"),
    ("prompt", "prompt-only"),
    ("id prompt", "prompt-only"),
])  # fmt: skip
def test_the_mapped_fields_make_the_format(fields: str, format: str) -> None:
    assert format_of(mapping(fields), "t.csv") == format


@pytest.mark.parametrize("format", SHAPES)
def test_any_row_may_have_the_common_fields(format: str) -> None:
    assert format_of(dict.fromkeys(SHAPES[format] | OPTIONAL, "x"), "t.csv") == format


@pytest.mark.parametrize("fields", ["", "id", "completion", "prompt rejected", "prompt chosen", "question answer",
                                    "prompt completion colour", "prompt completion rejected", "instruction",
                                    "prompt completion system", "messages label"])  # fmt: skip
def test_fields_that_make_no_row_type_are_an_error(fields: str) -> None:
    with pytest.raises(DataError, match="make no row type") as caught:
        format_of(mapping(fields), "t.csv")
    assert (caught.value.where, caught.value.found) == ("t.csv", sorted(fields.split()))
    assert "completion, prompt (prompt-completion)" in str(caught.value.expected)


def written(folder: Path, values: list[Any], name: str = "t.jsonl") -> str:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, values)) + "\n", encoding="utf-8")
    return str(path)


def renamed(folder: Path, value: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """What one row becomes; a row before it has every column."""
    full = dict.fromkeys(columns.values(), "x")
    _, row = read_columns(written(folder, [full, value]), columns, "s", None)
    assert isinstance(row, Row)
    assert isinstance(row.value, dict)
    return row.value


@pytest.mark.parametrize(("cell", "label"), [
    (True, True), (False, False), (1, True), (0, False), ("true", True), ("FALSE", False), (" Yes\n", True),
    ("no", False), ("1", True), ("0", False), ("good", "good"), (2, 2), ("", ""), (None, None),
])  # fmt: skip
def test_a_label_is_read_from_words_and_numbers(cell: Any, label: Any, tmp_path: Path) -> None:
    made = renamed(tmp_path, {"ok": cell}, {"label": "ok"})["label"]
    assert (made, type(made)) == (label, type(label))


@pytest.mark.parametrize(("cell", "text"), [
    (42, "42"), (-7, "-7"), (2.5, "2.5"), (10**20, "100000000000000000000"), ("007", "007"), (" x ", " x "), ("", ""),
    (None, None), (float("nan"), None), ([1], [1]), ({"a": 1}, {"a": 1}), (True, True),
])  # fmt: skip
def test_numbers_are_text_and_other_cells_stay(cell: Any, text: Any, tmp_path: Path) -> None:
    made = renamed(tmp_path, {"a": cell}, {"completion": "a"})["completion"]
    assert (made, type(made)) == (text, type(text))


def test_columns_may_be_swapped_and_used_twice_and_left_out(tmp_path: Path) -> None:
    row = {"prompt": "p", "completion": "c", "other": "o"}
    columns = {"prompt": "completion", "completion": "prompt", "group": "prompt"}
    assert renamed(tmp_path, row, columns) == {"prompt": "c", "completion": "p", "group": "p"}


def test_a_column_that_one_row_lacks_is_that_rows_matter(tmp_path: Path) -> None:
    assert renamed(tmp_path, {"q": "x"}, {"prompt": "q", "completion": "a"}) == {"prompt": "x"}


def test_a_column_that_no_row_has_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, [{"q": "x", "part": 1}, ["a"], {"when": 2}])
    with pytest.raises(DataError, match="the file has no column") as caught:
        read_columns(path, {"prompt": "question", "completion": "a", "id": "q"}, "s", None)
    assert caught.value.problem == "the file has no column question, a"
    assert (caught.value.where, caught.value.found) == (path, ["q", "part", "when"])
    with pytest.raises(DataError, match="the file has no column fold"):
        read_columns(path, {"prompt": "q"}, "s", "fold")


def test_the_split_field_comes_along_under_its_own_name_unless_it_is_mapped(tmp_path: Path) -> None:
    path = written(tmp_path, [{"q": "x", "part": 1, "fold": "b"}])
    [own] = read_columns(path, {"prompt": "q"}, "s", "part")
    [mapped] = read_columns(path, {"prompt": "q", "part": "fold"}, "s", "part")
    assert isinstance(own, Row)
    assert isinstance(mapped, Row)
    assert (own.value, mapped.value) == ({"prompt": "x", "part": "1"}, {"prompt": "x", "part": "b"})


def test_rows_keep_their_number_and_how_they_stood_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"q":"x", "more": 1}\nbroken\n["x"]\n')
    first, broken, other = read_columns(str(path), {"prompt": "q"}, "s", None)
    assert first == Row(1, {"prompt": "x"}, '{"q":"x", "more": 1}')
    assert isinstance(broken, BadRow)
    assert (broken.row, broken.slug, broken.raw) == (2, "broken-json", "broken")
    assert other == Row(3, ["x"], '["x"]')


RECORDS = [
    ('k,q,a\n1,"two\nlines",7\n', {"id": "k", "prompt": "q", "completion": "a"},
     Record("s-1", "prompt-completion", [user("two\nlines")], "7", meta={"source": "s"})),
    ("q,a,ok\nx,y,no\n", {"prompt": "q", "completion": "a", "label": "ok"},
     Record("s-2", "unpaired", [user("x")], "y", label=False, meta={"source": "s"})),
    ("q,good,bad,g\nx,y,z,7\n", {"prompt": "q", "chosen": "good", "rejected": "bad", "group": "g"},
     Record("s-2", "preference", [user("x")], "y", "z", meta={"group": "7", "source": "s"})),
    ("q,kind\nx,open\n", {"prompt": "q", "kind": "kind"},
     Record("s-2", "prompt-only", [user("x")], meta={"kind": "open", "source": "s"})),
    ("do,with,out\nAdd.,1,3\n", {"instruction": "do", "input": "with", "output": "out"},
     Record("s-2", "prompt-completion", [user("Add.\n\n1")], "3", meta={"source": "s"})),
    ("p,q,a,g\nAnn sang.,Who?,Ann,b1\n", {"passage": "p", "question": "q", "answer": "a", "group": "g"},
     Record("s-2", "prompt-completion", [user("Ann sang.\n\nWho?")], "Ann",
            meta={"group": "b1", "passage": "Ann sang.", "question": "Who?", "kind": "qa", "references": ["Ann"],
                  "source": "s"})),
]  # fmt: skip


@pytest.mark.parametrize(("content", "columns", "record"), RECORDS)
def test_a_row_of_a_table_becomes_its_record(
    content: str, columns: dict[str, str], record: Record, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text(content)
    assert list(read_source(str(tmp_path / "t.csv"), "columns", "s", columns=columns)) == [record]


def test_messages_come_from_a_column_of_lists(tmp_path: Path) -> None:
    talk = [user("Hello"), assistant("Hi.")]
    path = written(tmp_path, [{"talk": talk, "fold": "dev"}])
    made = read_source(path, "columns", "s", Options(split_field="fold", splits=("dev",)), {"messages": "talk"})
    assert list(made) == [Record("s-1", "messages", messages=talk, meta={"source": "s", "split": "dev"})]


def test_parquet_tables_have_numbers_truth_values_and_nothing(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"key": [1, 2], "q": ["x", None], "a": [42, 7], "ok": [True, False]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    mapped = {"id": "key", "prompt": "q", "completion": "a", "label": "ok"}
    record, row = read_source(str(tmp_path / "t.parquet"), "columns", "s", columns=mapped)
    assert record == Record("s-1", "unpaired", [user("x")], "42", label=True, meta={"source": "s"})
    assert isinstance(row, BadRow)
    assert (row.row, row.slug) == (2, "missing-field")
    assert json.loads(row.raw) == {"key": 2, "q": None, "a": 7, "ok": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose file every example writes anew."""
    return tmp_path_factory.mktemp("columns")


@quick
@given(st.data(), st.lists(texts, min_size=3, max_size=5, unique=True))
def test_a_mapping_moves_every_cell_to_its_field(folder: Path, data: st.DataObject, names: list[str]) -> None:
    fields = ("prompt", "completion", "id")
    columns = dict(zip(fields, data.draw(st.permutations(names)), strict=False))
    rows = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(names, texts)), min_size=1, max_size=3))
    made = read_columns(written(folder, rows), columns, "s", None)
    assert [row.value for row in made if isinstance(row, Row)] == [
        {field: row[column] for field, column in columns.items()} for row in rows]  # fmt: skip
