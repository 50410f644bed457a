"""Record files (`alignment.records.files`): what is written is read again, and a broken row is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.errors import DataError
from alignment.records import Record, read_records, write_records
from tests.records.drawn import quick, records, texts, user

LINE = '{"id": "1", "type": "prompt-only"}'


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file that every example of a property writes anew."""
    return tmp_path_factory.mktemp("records") / "rows.jsonl"


@quick
@given(st.lists(records, max_size=4))
def test_files_keep_records(path: Path, made: list[Record]) -> None:
    assert write_records(path, made) == len(made)
    assert read_records(path) == made


@quick
@given(st.lists(texts, min_size=1, max_size=5))
def test_a_file_has_one_line_for_each_record_whatever_the_text(path: Path, contents: list[str]) -> None:
    write_records(path, [Record(text, "prompt-only", [user(text)]) for text in contents])
    assert path.read_bytes().count(b"\n") == len(contents)
    assert [record.prompt[0]["content"] for record in read_records(path)] == contents


def test_writing_makes_the_folders_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "rows.jsonl"
    write_records(path, [Record(str(n), "prompt-only") for n in range(3)])
    assert write_records(path, iter([Record("1", "prompt-only")])) == 1
    assert path.read_text() == LINE + "\n"


def test_no_records_are_an_empty_file(tmp_path: Path) -> None:
    assert write_records(tmp_path / "rows.jsonl", []) == 0
    assert (tmp_path / "rows.jsonl").read_bytes() == b""
    assert read_records(tmp_path / "rows.jsonl") == []


@pytest.mark.parametrize("content", [LINE, f"{LINE}\n", f"\n{LINE}\n\n", f"{LINE}\r\n"])
def test_blank_lines_and_line_ends_make_no_difference(content: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content.encode())
    assert read_records(tmp_path / "rows.jsonl") == [Record("1", "prompt-only")]


def test_rows_end_at_newlines_only(tmp_path: Path) -> None:
    line = '{"id": "1\u2028", "type": "prompt-only", "completion": "a\u2029b\x85c"}'
    (tmp_path / "rows.jsonl").write_bytes(line.encode())
    [record] = read_records(tmp_path / "rows.jsonl")
    assert (record.id, record.completion) == ("1\u2028", "a\u2029b\x85c")


@pytest.mark.parametrize("broken", ["{", "[1]", "null", '{"id": "2", "kind": "x"}', '{"id": "2"}', "text"])
def test_a_broken_record_file_names_its_row(broken: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{LINE}\n\n{broken}\n{LINE}\n")
    with pytest.raises(DataError, match="not a record") as caught:
        read_records(path)
    assert caught.value.where == f"{path} row 3"
    assert caught.value.found == broken


def test_an_error_shows_the_start_of_a_long_row(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("x" * 500)
    with pytest.raises(DataError) as caught:
        read_records(tmp_path / "rows.jsonl")
    assert caught.value.found == "x" * 80
