"""What is blank, null or NaN is not there; what is nested without end, or cannot be held, costs one row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.records import Record
from alignment.records.importers import FORMATS, BadRow, Row, import_rows, read_source
from alignment.records.importers.rows import DEPTH, Unreadable
from alignment.reference.formats import FORMATS as DECLARED
from tests.records.drawn import GOOD, bad, good, without

NOTHING = [None, "", " \n\t", float("nan")]
OPTIONAL = [(format, field.name) for format in FORMATS for field in DECLARED[format].fields
            if not field.needed and (format, field.name) != ("unpaired", "messages")]


@pytest.mark.parametrize("nothing", NOTHING, ids=repr)
@pytest.mark.parametrize(("format", "field"), OPTIONAL)
def test_a_blank_field_is_no_field(format: str, field: str, nothing: Any) -> None:
    assert good(format, {**GOOD[format], field: nothing}) == good(format, without(GOOD[format], field))


@pytest.mark.parametrize("nothing", NOTHING, ids=repr)
@pytest.mark.parametrize("field", ["id", "_id", "idx", "query_id", "group", "kind", "meta", "system"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_blank_field_of_any_row_is_no_field(format: str, field: str, nothing: Any) -> None:
    assert good(format, {**GOOD[format], field: nothing}) == good(format, without(GOOD[format], field))


@pytest.mark.parametrize(("format", "field"), [
    (format, field.name) for format in FORMATS for field in DECLARED[format].fields if field.needed
    and field.name in GOOD[format] and (format, field.name) != ("alpaca", "instruction")])
def test_nan_in_a_field_that_is_needed_is_a_missing_field(format: str, field: str) -> None:
    assert bad(format, {**GOOD[format], field: float("nan")}).slug == "missing-field"


@pytest.mark.parametrize("cell", ["", " ", '" "'])
@pytest.mark.parametrize("field", ["id", "group", "kind", "system", "meta"])
def test_a_blank_cell_of_a_table_is_absent(field: str, cell: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"q,a,more\nx,y,{cell}\n")
    [record] = read_source(str(tmp_path / "t.csv"), "columns", "s",
                           columns={"prompt": "q", "completion": "a", field: "more"})
    assert isinstance(record, Record)
    assert (record.id, record.meta, len(record.prompt)) == ("s-2", {"source": "s"}, 1)


@pytest.mark.parametrize("format", FORMATS)
def test_a_null_that_went_through_text_is_no_group(format: str) -> None:
    for text in ("nan", "NaN"):
        row = {**GOOD[format], "group": text, "kind": text}
        assert good(format, row).meta == good(format, GOOD[format]).meta


def test_a_blank_worse_answer_is_no_preference(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("p,q,a,w\nAnn sang.,Who?,Ann,Bob\nBo ran.,Who?,Bo,\n")
    columns = {"passage": "p", "question": "q", "answer": "a", "rejected": "w"}
    made = list(read_source(str(tmp_path / "t.csv"), "columns", "s", columns=columns))
    assert [row.type for row in made if isinstance(row, Record)] == ["preference", "prompt-completion"]


# nested without end


def deep(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = {"a": value} if level % 2 else [value]
    return value


@pytest.mark.parametrize("levels", [DEPTH, 500, 900, 5000, 50_000])
def test_what_is_kept_may_not_be_nested_without_end(levels: int) -> None:
    made = bad("prompt-only", {"prompt": "x", "meta": {"a": deep(levels)}})
    assert made.slug == "too-deep"
    made.to_json()


def test_what_is_nested_within_reason_is_kept() -> None:
    record = good("prompt-only", {"prompt": "x", "meta": {"a": deep(DEPTH - 2)}})
    assert Record.from_json(record.to_json()) == record


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("levels", [900, 50_000])
def test_deep_values_anywhere_cost_one_row(format: str, levels: int) -> None:
    """Wherever they stand: in a field that is read, one that is needed, one that nothing reads."""
    for key in [*GOOD[format], "anything", "group", "id", "system"]:
        rows = [Row(1, {**GOOD[format], key: deep(levels)}), Row(2, {**GOOD[format], "id": "second"})]
        made = list(import_rows(rows, format, "s"))
        assert len(made) == 2
        assert key == "anything" or isinstance(made[0], BadRow)
        for row in made:
            row.to_json()


@pytest.mark.parametrize("levels", [900, 3000, 100_000])
def test_deep_lines_of_a_file_cost_one_row(levels: int, tmp_path: Path) -> None:
    line = '{"prompt": "x", "meta": ' + '{"a":' * levels + "1" + "}" * levels + "}"
    (tmp_path / "x.jsonl").write_text(f'{{"prompt": "y"}}\n{line}\n')
    first, second = read_source(str(tmp_path / "x.jsonl"), "prompt-only", "s")
    assert isinstance(first, Record)
    assert isinstance(second, BadRow)
    assert second.slug in ("too-deep", "broken-json")


# cells that cannot be held

CELL = Unreadable("year 300000 is out of range")


@pytest.mark.parametrize("format", FORMATS)
def test_a_cell_that_cannot_be_held_is_refused_where_it_is_read(format: str) -> None:
    for key in [*GOOD[format], "id", "group", "kind", "meta", "system"]:
        made = bad(format, {**without(GOOD[format], "query_id", "idx", "_id"), key: CELL})
        assert made.slug in ("broken-cell", "wrong-type"), key
        assert "not readable: year 300000" in made.reason or made.slug == "wrong-type"
    assert good(format, {**GOOD[format], "unused": CELL}) == good(format, GOOD[format])


def test_parquet_rows_come_in_beside_cells_that_cannot_be_held(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    far = pyarrow.array([0, 10**18], pyarrow.timestamp("ms"))
    parquet.write_table(pyarrow.table({"prompt": ["x", "y"], "at": far}), tmp_path / "t.parquet")
    made = list(read_source(str(tmp_path / "t.parquet"), "prompt-only", "s"))
    assert all(isinstance(row, Record) for row in made)
    first, second = read_source(str(tmp_path / "t.parquet"), "columns", "s",
                                columns={"prompt": "prompt", "group": "at"})
    assert isinstance(first, Record)
    assert isinstance(second, BadRow)
    assert second.slug == "broken-cell"
    assert json.loads(second.raw)["prompt"] == "y"


@pytest.mark.parametrize("unseen", ["\u200b", "\ufeff", " \u200b\n", "\u2060\u200e", "\x00", "\u00a0\u00ad"])
def test_a_text_of_which_nothing_can_be_seen_is_none(unseen: str) -> None:
    assert bad("prompt-completion", {"prompt": "x", "completion": unseen}).slug == "empty-answer"
    assert bad("prompt-completion", {"prompt": unseen, "completion": "x"}).slug == "empty-prompt"
    assert bad("passage-qa", {"passage": unseen, "question": "x", "answer": "y"}).slug == "empty-prompt"
    assert good("prompt-completion", {"prompt": "x", "completion": f"{unseen}y"}).completion == f"{unseen}y"
    assert good("prompt-completion", {"prompt": "x", "completion": "y", "group": unseen}).meta == {"source": "s"}
