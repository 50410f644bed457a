"""Record files: JSON lines, split on "\\n" only (rows may hold Unicode line separators)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from alignment.errors import DataError
from alignment.records.types import Record


def read_records(path: Path) -> list[Record]:
    """All records of a file; raises DataError naming file and row."""
    return list(each_record(path))


def each_record(path: Path) -> Iterator[Record]:
    """The records of a file one by one, in the memory of one; raises as `read_records`, at the row."""
    for number, line in each_line(path):
        yield record_of(path, number, line)


def each_line(path: Path) -> Iterator[tuple[int, bytes]]:
    """The number and text of each line of a record file that holds one."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line := line.rstrip(b"\r\n"):
                yield number, line


def record_of(path: Path, number: int, line: bytes) -> Record:
    """The record of a line; raises DataError naming file and row."""
    try:
        return Record.from_json(line)
    except (ValueError, TypeError) as error:
        raise DataError(f"not a record: {error}", where=f"{path} row {number}",
                        found=line[:80].decode("utf-8", "replace")) from error


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Write records, one a line; returns how many."""
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(record.to_json() + "\n")
            count += 1
    return count


def write_json_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Rows that are no records, as those of bad.jsonl, one a line; an empty file where there are none."""
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8",
                    newline="\n")
