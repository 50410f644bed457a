"""The rows of an import stage, read from all of its files: for the stage itself, and for `check` and `plan` before."""

from __future__ import annotations

import random
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from alignment.config import FieldSplit, ImportData, Run, Source
from alignment.data.hub import hub_rows
from alignment.data.hygiene import Cleaner
from alignment.data.splits import by_field, by_ratio
from alignment.records import Record
from alignment.records.importers import BadRow, Options, Seen, import_rows, read_source
from alignment.records.importers.columns import format_of, renamed


@dataclass
class SourceRows:
    """What came out of one file.

    Attributes:
        good, bad: every row of the file is in one of them.
        taken: those of the good that `take` drew, in their order.
        unread: keys that good rows have and the format does not read, with their number of rows.
        commit: of a data set of the hub, which one was read.
    """

    name: str
    source: Source
    good: list[Record] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    taken: list[Record] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    commit: str | None = None


def each_source(
    run: Run, stage: ImportData, cleaner: Cleaner | None = None,
) -> Iterator[tuple[SourceRows, Iterator[Record | BadRow]]]:
    """Each file of a stage, in its order, and its rows, to be gone through before the next; a text or id that an
    earlier one held is a bad row of the later. `unread` is counted on the way.

    Args:
        cleaner: of the stage's `hygiene`; None: rows are not looked through.

    Raises:
        DataError: a file cannot be used.
    """
    options = Options(stage.system, stage.passage_prompt, unanswerable=stage.unanswerable)
    if isinstance(stage.split, FieldSplit):
        options = replace(options, split_field=stage.split.field, splits=stage.split.names)
    seen = Seen()
    for source, name in zip(stage.data, source_names(stage.data), strict=True):
        made = SourceRows(name, source)
        yield made, _rows(made, stage.name, options, seen, cleaner)


def read_sources(run: Run, stage: ImportData, cleaner: Cleaner | None = None) -> Iterator[SourceRows]:
    """Each file of a stage with its rows in memory. Raises as `each_source`."""
    for made, rows in each_source(run, stage, cleaner):
        for row in rows:
            if isinstance(row, BadRow):
                made.bad.append(row)
            else:
                made.good.append(row)
        made.taken = draw(made.good, run.scaled(made.source.take), run.seed, made.name)
        yield made


def _rows(
    made: SourceRows, stage: str, options: Options, seen: Seen, cleaner: Cleaner | None,
) -> Iterator[Record | BadRow]:
    source = made.source
    if source.path is not None:
        return read_source(source.path, source.format, made.name, options, source.columns, seen, made.unread, cleaner)
    found = hub_rows(source, f"stage {stage}, data")
    made.commit, rows = found.commit, found.rows
    format: str = source.format
    if format == "columns":
        format = format_of(source.columns, source.place)
        rows = renamed(rows, found.columns, source.place, source.columns, made.name, options.split_field)
    return import_rows(rows, format, made.name, options, seen, made.unread, cleaner)


def divided(run: Run, stage: ImportData, taken: list[Record]) -> tuple[dict[str, list[Record]], list[Record]]:
    """(split name -> its rows, rows outside all ratios) of the rows that were drawn."""
    if isinstance(stage.split, FieldSplit):
        return by_field(taken, stage.split.names), []
    made, outside = by_ratio(taken, stage.split.cut, run.seed)
    return {name: made[name] for name in stage.splits()}, outside


def source_names(sources: tuple[Source, ...]) -> list[str]:
    """A name for each source: its own or its file's, numbered where two would be the same."""
    names: list[str] = []
    for source in sources:
        path = (source.path or source.hub or "").replace("\\", "/").partition("?")[0]
        stem = PurePosixPath(path).name.split(".")[0].lower()
        name = base = source.name or re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:36] or "rows"
        number = 2
        while name in names:
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return names


def draw(records: list[Record], count: int | None, seed: int, name: str) -> list[Record]:
    """`count` rows at random (None: all), in their order. A smaller draw is part of a larger one."""
    kept = drawn(len(records), count, seed, name)
    return records if kept is None else [records[index] for index in sorted(kept)]


def drawn(rows: int, count: int | None, seed: int, name: str) -> array[int] | None:
    """Numbers of the rows that `draw` takes of so many, in no order; None: all."""
    if count is None or count >= rows:
        return None
    order = array("q", range(rows))
    random.Random(f"{seed}/{name}").shuffle(order)
    return order[:count]
