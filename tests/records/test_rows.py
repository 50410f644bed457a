"""What importers read and give: raw rows, bad rows with a reason, typed access to a row's fields."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.records.importers.rows import (
    RAW_LIMIT,
    BadRow,
    Row,
    RowError,
    expect,
    extras,
    get,
    optional_text,
    row_id,
    text,
)  # fmt: skip
from tests.records.drawn import json_objects, json_values, quick, slug_of


def test_a_row_error_tells_slug_and_detail() -> None:
    error = RowError("wrong-type", "label is int: 3")
    assert (str(error), error.slug, error.detail) == ("wrong-type: label is int: 3", "wrong-type", "label is int: 3")


@pytest.mark.parametrize(("reason", "slug"), [("tie: votes: 0", "tie"), ("tie", "tie"), ("a-b: c: d", "a-b")])
def test_the_slug_of_a_bad_row_is_what_stands_before_the_first_colon(reason: str, slug: str) -> None:
    assert BadRow("s", 1, reason, "").slug == slug


def test_a_bad_row_is_one_line_of_json_with_its_letters_as_they_are() -> None:
    line = BadRow("s", 7, "tie: 数", "two\nlines 🙂\u2028").to_json()
    assert "\n" not in line
    assert "🙂" in line
    assert json.loads(line) == {"source": "s", "row": 7, "reason": "tie: 数", "raw": "two\nlines 🙂\u2028"}


def test_half_of_a_surrogate_pair_stays_visible_in_a_bad_row() -> None:
    line = BadRow("s", 1, "broken-text: \ud800", "say \udfff").to_json()
    assert json.loads(line.encode("utf-8")) == {
        "source": "s", "row": 1, "reason": "broken-text: \\ud800", "raw": "say \\udfff"}  # fmt: skip


@pytest.mark.parametrize(("row", "raw"), [
    (Row(1, {"a": "ü"}), '{"a": "ü"}'),
    (Row(1, {"a": 1}, '{"a":1}\r'), '{"a":1}\r'),
    (Row(1, {"a": 1}, ""), ""),
    (Row(1, {"when": datetime.date(2020, 1, 2)}), '{"when": "2020-01-02"}'),
    (Row(1, "x" * 5000, "y" * 5000), "y" * RAW_LIMIT),
    (Row(1, "x" * 5000), '"' + "x" * (RAW_LIMIT - 1)),
])  # fmt: skip
def test_raw_is_the_line_or_else_the_value_as_json_up_to_a_limit(row: Row, raw: str) -> None:
    assert row.raw == raw


@pytest.mark.parametrize("value", ["", 0, False, [], {}, 0.0])
def test_a_field_may_hold_a_value_that_counts_as_nothing(value: Any) -> None:
    assert get({"a": value}, "a") == value


@pytest.mark.parametrize(("row", "has"), [({"b": 1, "c": 2}, "b, c"), ({"a": None}, "a"), ({}, "no fields")])
def test_a_missing_field_tells_which_fields_there_are(row: dict[str, Any], has: str) -> None:
    with pytest.raises(RowError) as caught:
        get(row, "a")
    assert (caught.value.slug, caught.value.detail) == ("missing-field", f"a (the row has {has})")


@pytest.mark.parametrize(("row", "slug"), [
    ({"a": "x"}, ""), ({"a": ""}, ""), ({}, "missing-field"), ({"a": None}, "missing-field"), ({"a": 3}, "wrong-type"),
    ({"a": ["x"]}, "wrong-type"), ({"a": False}, "wrong-type"),
])  # fmt: skip
def test_text_is_text_and_nothing_else(row: dict[str, Any], slug: str) -> None:
    assert slug_of(lambda: text(row, "a")) == slug


def test_optional_text_is_empty_where_the_field_is_missing_or_null() -> None:
    assert [optional_text(row, "a") for row in ({}, {"a": None}, {"a": ""}, {"a": " x"})] == ["", "", "", " x"]
    assert slug_of(lambda: optional_text({"a": 0}, "a")) == "wrong-type"


@pytest.mark.parametrize(("value", "kind", "detail"), [
    (3, str, "f is int, expected text"), ("x", list, "f is str, expected a list"),
    ([], dict, "f is list, expected an object"), (1, bool, "f is int, expected true or false"),
    (None, dict, "f is NoneType, expected an object"), ("x", int, "f is str, expected int"),
])  # fmt: skip
def test_a_wrong_type_names_the_field_and_both_types(value: Any, kind: type, detail: str) -> None:
    with pytest.raises(RowError) as caught:
        expect(value, kind, "f")
    assert (caught.value.slug, caught.value.detail) == ("wrong-type", detail)


@pytest.mark.parametrize(("row", "found"), [
    ({}, ""), ({"id": "a"}, "a"), ({"id": 7}, "7"), ({"id": 0}, "0"), ({"id": -1}, "-1"), ({"_id": "b"}, "b"),
    ({"idx": 3}, "3"), ({"query_id": "q"}, "q"), ({"id": None, "idx": 3}, "3"), ({"id": "", "_id": "b"}, "b"),
    ({"query_id": "q", "id": "a"}, "a"), ({"id": 10**30}, str(10**30)), ({"ID": "a", "uid": "b"}, ""),
])  # fmt: skip
def test_the_id_of_a_row_is_the_first_that_the_file_gives(row: dict[str, Any], found: str) -> None:
    assert row_id(row) == found


@pytest.mark.parametrize("value", [True, False, [1], {"$oid": "x"}, 1.5])
def test_an_id_is_text_or_a_whole_number(value: Any) -> None:
    assert slug_of(lambda: row_id({"id": value, "idx": 1})) == "wrong-type"


def test_meta_group_and_kind_come_along() -> None:
    assert extras({"prompt": "x", "meta": {"a": [1, {"b": None}]}, "group": 7, "kind": "open"}) == {
        "a": [1, {"b": None}], "group": "7", "kind": "open"}  # fmt: skip
    assert extras({"meta": {"group": "inner", "kind": "k"}, "group": "outer"}) == {"group": "outer", "kind": "k"}
    assert extras({"meta": None, "group": None}) == {}
    assert extras({"meta": {"when": datetime.date(2020, 1, 2)}}) == {"when": "2020-01-02"}


def test_meta_is_a_copy() -> None:
    row = {"meta": {"a": [1]}}
    extras(row)["a"].append(2)
    assert row == {"meta": {"a": [1]}}


@pytest.mark.parametrize("meta", ["x", [], 3, True])
def test_meta_is_an_object(meta: Any) -> None:
    assert slug_of(lambda: extras({"meta": meta})) == "wrong-type"


FIELDS = st.sampled_from(["id", "_id", "idx", "query_id", "meta", "group", "kind", "prompt"])


@quick
@given(st.dictionaries(FIELDS, json_values), FIELDS)
def test_any_json_value_is_read_or_is_a_row_error(row: dict[str, Any], field: str) -> None:
    for read in (lambda: get(row, field), lambda: text(row, field), lambda: optional_text(row, field),
                 lambda: row_id(row), lambda: extras(row)):  # fmt: skip
        assert slug_of(read) in ("", "missing-field", "wrong-type")


@quick
@given(json_objects)
def test_meta_is_kept_as_it_is(meta: dict[str, Any]) -> None:
    assert extras({"meta": meta}) == meta


@quick
@given(st.text(), st.text())
def test_a_bad_row_can_be_written_whatever_it_holds(reason: str, raw: str) -> None:
    line = BadRow("s", 1, reason, raw).to_json()
    assert "\n" not in line
    fields = json.loads(line.encode("utf-8"))
    assert fields["raw"] == raw.encode("utf-8", "backslashreplace").decode("utf-8")
