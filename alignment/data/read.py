"""The rows of an import stage, read from all of its files: for the stage itself, and for `check` and `plan` before."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from alignment.config import FieldSplit, ImportData, Run, Source
from alignment.data.splits import by_field, by_ratio
from alignment.records import Record
from alignment.records.importers import BadRow, Options, Seen, read_source

UNANSWERABLE = "unanswerable"
"""Kind of a row whose passage does not answer it."""


@dataclass
class SourceRows:
    """What came out of one file.

    Attributes:
        good, bad: every row of the file is in one of them.
        taken: those of the good that `take` drew, in their order.
        unread: keys that good rows have and the format does not read, with their number of rows.
    """

    name: str
    source: Source
    good: list[Record] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    taken: list[Record] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)


def read_sources(run: Run, stage: ImportData) -> Iterator[SourceRows]:
    """Each file of a stage, in its order; a text or id that an earlier one held is a bad row of the later.

    Raises:
        DataError: a file cannot be used.
    """
    options = Options(stage.system, stage.passage_prompt, retrieve=bool(stage.retrieve))
    if isinstance(stage.split, FieldSplit):
        options = replace(options, split_field=stage.split.field, splits=stage.split.names)
    seen = Seen()
    for source, name in zip(stage.data, source_names(stage.data), strict=True):
        made = SourceRows(name, source)
        for row in read_source(source.path, source.format, name, options, source.columns, seen, made.unread):
            if isinstance(row, BadRow):
                made.bad.append(row)
            else:
                made.good.append(row)
        made.taken = _taken(run, source, made.good, name)
        yield made


def _taken(run: Run, source: Source, good: list[Record], name: str) -> list[Record]:
    if source.take_unanswerable is None:
        return draw(good, run.scaled(source.take), run.seed, name)
    without = [record.meta.get("kind") == UNANSWERABLE for record in good]
    parts = [[record for record, lacks in zip(good, without, strict=True) if lacks == wanted]
             for wanted in (False, True)]
    kept = {record.id for part, take in zip(parts, (source.take, source.take_unanswerable), strict=True)
            for record in draw(part, run.scaled(take), run.seed, name)}
    return [record for record in good if record.id in kept]


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
        stem = PurePosixPath(source.path.replace("\\", "/").partition("?")[0]).name.split(".")[0].lower()
        name = base = source.name or re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:36] or "rows"
        number = 2
        while name in names:
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return names


def draw(records: list[Record], count: int | None, seed: int, name: str) -> list[Record]:
    """`count` rows at random (None: all), in their order. A smaller draw is part of a larger one."""
    if count is None or count >= len(records):
        return records
    order = list(range(len(records)))
    random.Random(f"{seed}/{name}").shuffle(order)
    return [records[index] for index in sorted(order[:count])]
