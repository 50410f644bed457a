"""What importers read and give: a raw row, a bad row with its reason, and typed access to a row's fields.

Does not know any format and reads no files.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

T = TypeVar("T")
RAW_LIMIT = 2000
"""Characters of a bad row that are kept."""


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
    """One raw row. `text` is the line it was read from; None where the file has no lines."""

    number: int
    value: Any
    text: str | None = None

    @property
    def raw(self) -> str:
        text = json.dumps(self.value, ensure_ascii=False, default=str) if self.text is None else self.text
        return text[:RAW_LIMIT]


def get(row: dict[str, Any], field: str) -> Any:
    """A field's value; missing and null are the same. Raises RowError missing-field."""
    value = row.get(field)
    if value is None:
        raise RowError("missing-field", f"{field} (the row has {', '.join(map(str, row)) or 'no fields'})")
    return value


def text(row: dict[str, Any], field: str) -> str:
    """A field that must be text. Raises RowError missing-field or wrong-type."""
    return expect(get(row, field), str, field)


def optional_text(row: dict[str, Any], field: str) -> str:
    """Like `text`; "" when the field is missing or null."""
    return "" if row.get(field) is None else text(row, field)


def expect(value: Any, kind: type[T], field: str) -> T:
    """`value` if it is a `kind`, else RowError wrong-type naming the field."""
    names: dict[type, str] = {str: "text", list: "a list", dict: "an object", bool: "true or false"}
    if not isinstance(value, kind):
        raise RowError("wrong-type", f"{field} is {type(value).__name__}, expected {names.get(kind, kind.__name__)}")
    return value


def row_id(row: dict[str, Any]) -> str:
    """The id that the file gives a row (id, _id, idx or query_id), or "" when it gives none."""
    for field in ("id", "_id", "idx", "query_id"):
        value = row.get(field)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value):
            return str(value)
        if value not in (None, ""):
            raise RowError("wrong-type", f"{field} is {type(value).__name__}, expected text or a whole number")
    return ""


def extras(row: dict[str, Any]) -> dict[str, Any]:
    """meta of a row of ours: its `meta` object, `group` and `kind`, where it has them."""
    meta: dict[str, Any] = {}
    if row.get("meta") is not None:
        # Parquet cells may hold dates and the like; records are JSON.
        meta = json.loads(json.dumps(expect(row["meta"], dict, "meta"), default=str))
    for field in ("group", "kind"):
        if row.get(field) is not None:
            meta[field] = str(row[field])
    return meta
