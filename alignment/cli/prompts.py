"""A user's file of prompts, row by row: JSON lines, a JSON list, CSV, TSV, or text with a prompt on each line.

What cannot be read as a prompt is kept with its row and a reason. Knows no models and no chat templates.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.errors import DataError

_NAMES = ("prompt", "messages")
_JSON, _TABLES = (".jsonl", ".ndjson", ".json"), {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Asked:
    """One prompt.

    Attributes:
        row: its number in the file, from 1: the line of a line file, without a table's head.
        id: the row's own, where it has one.
        prompt: a text, or turns.
    """

    row: int
    id: Any
    prompt: Any

    @property
    def key(self) -> str:
        """What the run calls it."""
        return f"row-{self.row:07d}"


def read_prompts(path: Path, name: str | None) -> tuple[list[Asked], list[dict[str, Any]]]:
    """The prompts of a file in its order, and its other rows: {"row", "id", "reason", "raw"}.

    Args:
        name: key or column of the prompt; None: `prompt`, else `messages`.

    Raises:
        DataError: the file is not there, cannot be read, or is a table without such a column.
    """
    asked: list[Asked] = []
    bad: list[dict[str, Any]] = []
    try:
        for row, value, reason in _rows(path, name):
            id_ = value.get("id") if isinstance(value, dict) else None
            prompt = None if reason else _prompt(value, name)
            if prompt is not None:
                asked.append(Asked(row, id_, prompt))
            elif reason or not isinstance(value, str):  # an empty line of a text is no row
                expected = " or ".join(_NAMES if name is None else (name,))
                bad.append({"row": row, "id": id_, "reason": reason or f"no prompt: nothing under {expected}",
                            "raw": value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)[:2000]})
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the prompts cannot be read: {error}", where=str(path),
                        expected=f"a file in UTF-8: {', '.join((*_JSON, *_TABLES))}, or text with a prompt a line"
                        ) from error
    return asked, bad


def _rows(path: Path, name: str | None) -> Iterator[tuple[int, Any, str]]:
    """(number, value, why it is none)."""
    if path.suffix == ".json":
        try:
            found = json.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise DataError(f"not JSON: {error}", where=str(path), expected="a list of rows",
                            hint="JSON lines end in .jsonl") from error
        if not isinstance(found, list):
            raise DataError("not a list of rows", where=str(path), found=type(found).__name__)
        yield from ((number, value, "") for number, value in enumerate(found, start=1))
        return
    with path.open(encoding="utf-8-sig", newline="" if path.suffix in _TABLES else None) as file:
        if path.suffix in _TABLES:
            table = csv.DictReader(file, delimiter=_TABLES[path.suffix])
            columns = table.fieldnames or ()
            if not any(column in columns for column in (_NAMES[:1] if name is None else (name,))):
                raise DataError("the table has no such column", where=str(path), found=", ".join(columns),
                                expected=name or _NAMES[0], hint="--prompt-field COLUMN")
            yield from ((number, dict(row), "") for number, row in enumerate(table, start=1))
            return
        for number, line in enumerate(file, start=1):
            if path.suffix not in _JSON:
                yield number, line.rstrip("\r\n"), ""
            elif line.strip():
                try:
                    yield number, json.loads(line), ""
                except ValueError as error:
                    yield number, line.rstrip("\r\n")[:2000], f"not JSON: {error}"


def _prompt(value: Any, name: str | None) -> Any:
    """A text with something in it, or turns; None where there is neither."""
    if isinstance(value, dict):
        value = next((value[key] for key in (_NAMES if name is None else (name,)) if value.get(key)), None)
    if isinstance(value, str):
        return value if value.strip() else None
    return value if isinstance(value, list) and value else None
