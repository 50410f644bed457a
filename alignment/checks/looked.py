"""A few rows of data files that are too large to be read before their stage is made."""

from __future__ import annotations

from pathlib import Path

from alignment.checks.seen import Sight, Wrong, counted
from alignment.config import ImportData, Run
from alignment.data.read import read_sources
from alignment.errors import KubeAlignError
from alignment.records.few import Few
from alignment.records.importers.files import comes_in_rows

LOOKED = 2_000_000_000
"""Bytes of one data file up to which a few of its rows are looked at: about ten seconds."""


def look(run: Run, stage: ImportData, sight: Sight, unread: list[str]) -> Wrong:
    """A few rows of each file, where one is too large to be read now: what is seen of them is told, and refuses
    nothing but a file that cannot be read."""
    # Else it would be fetched, or read for long.
    files = [source.path for source in stage.data]
    try:
        if not all(path is not None and "://" not in path and Path(path).stat().st_size <= LOOKED
                   and comes_in_rows(path) for path in files):
            sight.note(stage.name, f"not read now: {', '.join(unread)}")
            return
        sources = list(read_sources(run, stage, few=lambda name: Few(f"{run.seed}/{name}")))
    except KubeAlignError as error:
        yield ("data",), error
        return
    for made in sources:
        assert made.few is not None
        said = f"looked at {made.few.drawn:,} of {made.few.read:,} rows of {made.source.place}"
        sight.note(stage.name, said)
        reasons = counted(row.slug for row in made.bad)
        if stage.max_bad is not None and len(made.bad) > stage.max_bad * made.few.drawn:
            sight.warn(stage.name, f"{said}: {len(made.bad)} are bad, and at most {stage.max_bad:.1%} may be "
                                   f"(max_bad): {reasons}")
        elif made.bad:
            sight.note(stage.name, f"{len(made.bad)} of these bad: {reasons}")
        if made.unread:
            sight.note(stage.name, f"keys of these that nothing reads: {counted(made.unread.elements())}")
