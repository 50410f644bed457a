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
from alignment.records.importers.rows import blank
from tests.records.drawn import assistant, quick, system, texts, user


def mapping(fields: str) -> dict[str, str]:
    return {field: f"the {field}" for field in fields.split()}


@pytest.mark.parametrize(("fields", "format"), [
    ("messages", "messages"),
    ("passage question answer", "passage-qa"),
    ("passage question answer rejected type", "passage-qa"),
    ("instruction output", "alpaca"),
    ("instruction input output system history", "alpaca"),
    ("prompt completion system", "prompt-completion"),
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
                                    "prompt completion history", "messages label"])  # fmt: skip
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
    assert first == Row(1, {"prompt": "x"}, '{"q":"x", "more": 1}', unread=("more",))
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


def test_a_csv_under_another_ending_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("q,a\nx,y\n")
    with pytest.raises(DataError, match="no row of the file has columns") as caught:
        read_columns(str(tmp_path / "t.txt"), {"prompt": "q"}, "s", None)
    assert "ending" in str(caught.value.hint)


# patterns

TABLE = "Context,Question,Type\nDer Hafen ist tief.,Wie tief?,open\n{Type} kostet nichts.,Was?,yes-no\n"


def made(folder: Path, columns: dict[str, str], content: str = TABLE) -> list[Record | BadRow]:
    (folder / "t.csv").write_text(content)
    return list(read_source(str(folder / "t.csv"), "columns", "s", columns=columns))


def test_a_prompt_is_put_together_from_any_columns(tmp_path: Path) -> None:
    columns = {"system": "You are asked for {Type}.", "completion": "{Question}", "id": "{Type}-{Question}",
               "prompt": "You will see a text in the format {Type}.\n### Input:\n{Context}"}
    first, second = made(tmp_path, columns)
    assert first == Record("s-open-Wie tief?", "prompt-completion", [
        system("You are asked for open."),
        user("You will see a text in the format open.\n### Input:\nDer Hafen ist tief."),
    ], "Wie tief?", meta={"source": "s"})
    assert isinstance(second, Record)
    assert second.prompt[1]["content"].endswith("in the format yes-no.\n### Input:\n{Type} kostet nichts.")


@pytest.mark.parametrize(("pattern", "text"), [
    ("{Context}", "Der Hafen ist tief."), ("{{{Type}}}", "{open}"), ("{{Type}} {Type}", "{Type} open"),
    ("{Type}{Type}", "openopen"), ("a {{}} b", "a {} b"), ("{{", "{"), ('{{"type": "{Type}"}}', '{"type": "open"}'),
    ("{Type}\n", "open\n"), ("x {Type} y {Question} z", "x open y Wie tief? z"),
])
def test_slots_are_filled_and_doubled_braces_are_braces(pattern: str, text: str, tmp_path: Path) -> None:
    record = made(tmp_path, {"prompt": pattern}, TABLE.rsplit("\n", 2)[0])[0]
    assert isinstance(record, Record)
    assert record.prompt == [user(text)]


@pytest.mark.parametrize(("columns", "problem"), [
    ({"prompt": "{Topic}: {Context}"}, "the file has no column Topic"),
    ({"prompt": "{type}"}, "the file has no column type"),
    ({"prompt": "{ Type }"}, "the file has no column  Type "),
    ({"prompt": "Context", "completion": "{Answer} {Why}"}, "the file has no column Answer, Why"),
    ({"prompt": "A text about {Context"}, "columns.prompt has a brace that belongs to no slot"),
    ({"prompt": "{Type} and }"}, "columns.prompt has a brace that belongs to no slot"),
    ({"prompt": "{}"}, "columns.prompt has a brace that belongs to no slot"),
    ({"messages": "{Context}"}, "columns.messages is a pattern, and messages is no text"),
    ({"prompt": "Context", "completion": "Question", "label": "{Type}"}, "columns.label is a pattern"),
])
def test_a_pattern_that_cannot_be_filled_is_an_error(columns: dict[str, str], problem: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        made(tmp_path, columns)
    assert caught.value.problem.startswith(problem)
    if "no column" in problem:
        assert caught.value.found == ["Context", "Question", "Type"]


@pytest.mark.parametrize("cell", ["", " ", None, float("nan"), [1], {"a": 1}, True])
def test_a_row_with_nothing_for_a_slot_is_a_bad_row(cell: Any, tmp_path: Path) -> None:
    path = written(tmp_path, [{"t": "x", "n": 1}, {"t": cell, "n": 2}, {"n": 3}, {"t": 4, "n": 4.5}])
    first, second, third, fourth = read_source(path, "columns", "s", columns={"prompt": "{n}: {t}"})
    assert isinstance(first, Record)
    assert isinstance(second, BadRow)
    assert isinstance(third, BadRow)
    assert isinstance(fourth, Record)
    assert second.slug == ("wrong-type" if isinstance(cell, list | dict | bool) else "missing-field")
    assert (third.reason, third.row) == ("missing-field: t, a slot of prompt, is blank", 3)
    assert [first.prompt, fourth.prompt] == [[user("1: x")], [user("4.5: 4")]]


def test_a_column_whose_name_has_braces_is_still_a_column(tmp_path: Path) -> None:
    [record] = made(tmp_path, {"prompt": "{x}"}, "{x},x\nthis,that\n")
    assert isinstance(record, Record)
    assert record.prompt == [user("this")]


def test_only_columns_of_no_pattern_are_unread(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TABLE)
    row, _ = read_columns(str(tmp_path / "t.csv"), {"prompt": "{Type}: {Context}"}, "s", None)
    assert isinstance(row, Row)
    assert row.unread == ("Question",)


@quick
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="{}"), min_size=1),
                       texts.filter(lambda text: not blank(text)), min_size=1, max_size=3),
       st.lists(texts, min_size=4, max_size=4))
def test_any_texts_and_columns_come_back_whole(folder: Path, row: dict[str, str], between: list[str]) -> None:
    names = list(row)
    pattern, text = "", ""
    for number, literal in enumerate(between):
        pattern += literal.replace("{", "{{").replace("}", "}}")
        text += literal
        if number < len(names):
            pattern, text = pattern + "{" + names[number] + "}", text + row[names[number]]
    [made] = read_columns(written(folder, [row]), {"prompt": pattern}, "s", None)
    assert isinstance(made, Row)
    assert made.value == {"prompt": text}


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
