"""What importers read and give: a raw row, a bad row with its reason, and typed access to a row's fields.

Does not know any format and reads no files.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, TypeVar
from unicodedata import category

T = TypeVar("T")
RAW_LIMIT = 2000
"""Characters of a bad row that are kept."""
IDS = ("id", "_id", "idx", "query_id")
"""Fields that may hold a row's id; the first that is filled counts."""
DEPTH = 64
"""Levels of objects and lists that `meta` may have."""


def blank(text: str) -> bool:
    """Whether nothing in a text can be seen: white space, zero-width signs and other controls alone."""
    return not text.strip() or all(sign.isspace() or category(sign) in ("Cc", "Cf") for sign in text)


class RowError(Exception):
    """One row cannot be used.

    Args:
        slug: short stable name of the reason, counted in manifests.
        detail: what exactly, for people.
    """

    def __init__(self, slug: str, detail: str) -> None:
        super().__init__(f"{slug}: {detail}")
        self.slug, self.detail = slug, detail


@dataclass(frozen=True)
class BadRow:
    """A row that is kept beside the good ones.

    Attributes:
        row: 1-based line of a line file, number of the item in any other file.
        reason: `slug: detail`.
        raw: the row as it stood in the file, up to 2000 characters.
    """

    source: str
    row: int
    reason: str
    raw: str

    @property
    def slug(self) -> str:
        return self.reason.partition(":")[0]

    def to_json(self) -> str:
        """One line of JSON. Lone surrogates, which UTF-8 has no bytes for, stay visible as escapes."""
        fields = asdict(self)
        fields["raw"] = self.raw.encode("utf-8", "backslashreplace").decode("utf-8")
        fields["reason"] = self.reason.encode("utf-8", "backslashreplace").decode("utf-8")
        return json.dumps(fields, ensure_ascii=False)


@dataclass(frozen=True)
class Row:
    """One raw row.

    Attributes:
        text: the line it was read from; None where the file has no lines.
        unread: columns of a table that nobody asked for and that hold something in this row.
    """

    number: int
    value: Any
    text: str | None = None
    unread: tuple[str, ...] = ()

    @property
    def raw(self) -> str:
        if self.text is not None:
            return self.text[:RAW_LIMIT]
        try:
            return json.dumps(self.value, ensure_ascii=False, default=str)[:RAW_LIMIT]
        except RecursionError:
            return "(nested too deeply to be shown)"


@dataclass(frozen=True)
class Unreadable:
    """A cell of a Parquet file that Python cannot hold (a date in the year 300000, bytes that are not UTF-8)."""

    reason: str

    def __str__(self) -> str:
        return f"(not readable: {self.reason})"


def size_of(value: Any) -> int:
    """Letters in all texts of a row, about: by which a row is among the longest."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(size_of, value.values()))
    return sum(map(size_of, value)) if isinstance(value, list) else 1


def given(row: dict[str, Any], field: str) -> Any:
    """A field's value, None where there is none: missing, null, blank text and NaN (pandas' null) are the same.

    Raises RowError broken-cell.
    """
    value = row.get(field)
    if isinstance(value, Unreadable):
        raise RowError("broken-cell", f"{field} {value}")
    if value is None or (isinstance(value, str) and blank(value)):
        return None
    return None if isinstance(value, float) and math.isnan(value) else value


def get(row: dict[str, Any], field: str) -> Any:
    """The value of a field that must be there; blank text is left to the checks. Raises RowError missing-field."""
    value = row.get(field)
    if not isinstance(value, str) and given(row, field) is None:
        raise RowError("missing-field", f"{field} (the row has {', '.join(map(str, row)) or 'no fields'})")
    return value


def text(row: dict[str, Any], field: str) -> str:
    """A field that must be text. Raises RowError missing-field or wrong-type."""
    return expect(get(row, field), str, field)


def optional_text(row: dict[str, Any], field: str) -> str:
    """Like `text`; "" when the field is missing, null or blank."""
    return "" if given(row, field) is None else text(row, field)


def flag(row: dict[str, Any], field: str) -> bool | None:
    """true or false, or None where the field is missing. Raises RowError wrong-type: "false" is no false."""
    value = given(row, field)
    return None if value is None else expect(value, bool, field)


def expect(value: Any, kind: type[T], field: str) -> T:
    """`value` if it is a `kind`, else RowError wrong-type naming the field."""
    names: dict[type, str] = {str: "text", list: "a list", dict: "an object", bool: "true or false"}
    if not isinstance(value, kind):
        raise RowError("wrong-type", f"{field} is {type(value).__name__}, expected {names.get(kind, kind.__name__)}")
    return value


def row_id(row: dict[str, Any]) -> str:
    """The id that the file gives a row (id, _id, idx or query_id), or "" when it gives none."""
    for field in IDS:
        value = given(row, field)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return str(value)
        if value is not None:
            raise RowError("wrong-type", f"{field} is {type(value).__name__}, expected text or a whole number")
    return ""


def extras(row: dict[str, Any]) -> dict[str, Any]:
    """meta of a row of ours: its `meta` object, `group` and `kind`, where it has them."""
    meta: dict[str, Any] = {}
    value = given(row, "meta")
    if value is not None:
        meta = plain(expect(value, dict, "meta"))
    for field in ("group", "kind"):
        if value := name_of(row, field):
            meta[field] = value
    return meta


def name_of(row: dict[str, Any], field: str) -> str:
    """A field that names something, as text; "" when it is missing. A date is a name, a list is none (wrong-type).

    The text nan is what pandas' null becomes on its way through text: taken for a name, it would tie all rows without
    one together.
    """
    value = given(row, field)
    if isinstance(value, list | dict):
        raise RowError("wrong-type", f"{field} is {type(value).__name__}, expected text or a number")
    return "" if value is None or value in ("nan", "NaN") else str(value)


def plain(value: Any) -> Any:
    """A value as JSON has it: Parquet cells may hold dates and the like.

    Raises RowError too-deep: what is kept is written and read again, at another depth of Python's own stack.
    """
    _check_depth(value)
    return json.loads(json.dumps(value, default=str))


def _check_depth(value: Any) -> None:
    """Raises RowError too-deep."""
    level = [value]
    for _ in range(DEPTH):
        level = [inner for item in level if isinstance(item, dict | list)
                 for inner in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return
    raise RowError("too-deep", f"meta holds more than {DEPTH} levels")
