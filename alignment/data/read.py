"""The rows of an import stage, read from all of its files: for the stage itself, and for `check` and `plan` before."""

from __future__ import annotations

import random
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from alignment.config import FieldSplit, ImportData, Run, Source
from alignment.data.hub import hub_rows
from alignment.data.hygiene import Cleaner
from alignment.data.splits import by_field, by_ratio
from alignment.records import Record
from alignment.records.few import Few
from alignment.records.importers import BadRow, Options, Seen, import_rows, read_source
from alignment.records.importers.columns import format_of, renamed
from alignment.records.importers.files import few_of
from alignment.records.importers.passages import UNANSWERABLE


@dataclass
class SourceRows:
    """What came out of one file.

    Attributes:
        good, bad: every row of the file is in one of them.
        taken: those of the good that `take` drew, in their order.
        unread: keys that good rows have and the format does not read, with their number of rows.
        commit: of a data set of the hub, which one was read.
        few: what took only some of the rows; then `good` and `bad` are of those that were drawn, and `longest` has the
            good ones of the others that it gave.
    """

    name: str
    source: Source
    good: list[Record] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    taken: list[Record] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    commit: str | None = None
    few: Few | None = None
    longest: list[Record] = field(default_factory=list)


NamesFew = Callable[[str], Few | None]
"""A source's name -> what takes only some of its rows."""


def _all_rows(name: str) -> None:
    return None


def each_source(
    run: Run, stage: ImportData, cleaner: Cleaner | None = None, few: NamesFew = _all_rows,
) -> Iterator[tuple[SourceRows, Iterator[Record | BadRow]]]:
    """Each file of a stage, in its order, and its rows, to be gone through before the next; a text or id that an
    earlier one held is a bad row of the later. `unread` is counted on the way.

    Args:
        cleaner: of the stage's `hygiene`; None: rows are not looked through.
        few: of a source's name, what takes only some of its rows.

    Raises:
        DataError: a file cannot be used.
    """
    options = Options(stage.system, stage.passage_prompt, unanswerable=stage.unanswerable,
                      retrieve=bool(stage.retrieve), ties=stage.ties is not None)
    if isinstance(stage.split, FieldSplit):
        options = replace(options, split_field=stage.split.field, splits=stage.split.names)
    seen = Seen()
    for source, name in zip(stage.data, source_names(stage.data), strict=True):
        made = SourceRows(name, source, few=few(name))
        yield made, _rows(made, stage.name, options, seen, cleaner)


def read_sources(
    run: Run, stage: ImportData, cleaner: Cleaner | None = None, few: NamesFew = _all_rows,
) -> Iterator[SourceRows]:
    """Each file of a stage with its rows in memory. Takes and raises what `each_source` does."""
    for made, rows in each_source(run, stage, cleaner, few):
        for number, row in enumerate(rows):
            if made.few is not None and number >= made.few.drawn:
                made.longest += [] if isinstance(row, BadRow) else [row]
            elif isinstance(row, BadRow):
                made.bad.append(row)
            else:
                made.good.append(row)
        kept = drawn_of(run, made, [lacks_answer(record) for record in made.good])
        made.taken = made.good if kept is None else [made.good[index] for index in sorted(kept)]
        yield made


def lacks_answer(record: Record) -> bool:
    """Whether the row's passage does not answer it."""
    return bool(record.meta.get("kind") == UNANSWERABLE)


def drawn_of(run: Run, made: SourceRows, lacks: Sequence[int | bool]) -> array[int] | None:
    """Numbers of the good rows that `take` and `take_unanswerable` draw, in no order; None: all.

    Args:
        lacks: of each good row, whether its passage does not answer it.
    """
    source = made.source
    if source.take_unanswerable is None:
        return drawn(len(lacks), run.scaled(source.take), run.seed, made.name)
    numbers = array("q")
    for wanted, take in ((False, source.take), (True, source.take_unanswerable)):
        places = [number for number, lacking in enumerate(lacks) if bool(lacking) == wanted]
        kept = drawn(len(places), run.scaled(take), run.seed, made.name)
        numbers.extend(places if kept is None else (places[place] for place in kept))
    return numbers


def _rows(
    made: SourceRows, stage: str, options: Options, seen: Seen, cleaner: Cleaner | None,
) -> Iterator[Record | BadRow]:
    source = made.source
    if source.path is not None:
        return read_source(source.path, source.format, made.name, options, source.columns, seen, made.unread, cleaner,
                           made.few)
    found = hub_rows(source, f"stage {stage}, data")
    made.commit, rows = found.commit, found.rows
    format: str = source.format
    if format == "columns":
        format = format_of(source.columns, source.place)
        rows = renamed(rows, found.columns, source.place, source.columns, made.name, options.split_field)
    return import_rows(few_of(rows, made.few), format, made.name, options, seen, made.unread, cleaner)


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


def drawn(rows: int, count: int | None, seed: int, name: str) -> array[int] | None:
    """`count` numbers of so many rows at random, in no order; None: all. A smaller draw is part of a larger one."""
    if count is None or count >= rows:
        return None
    order = array("q", range(rows))
    random.Random(f"{seed}/{name}").shuffle(order)
    return order[:count]
