"""Which formats a file's first rows fit, for commands that look at a file before a run file names its format.

A run file always says the format: nothing that is learned from rests on this. Reads no more than the first rows of a
file of rows; a file that is one document (SQuAD, DROP) is read whole.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice

from alignment.errors import DataError, KubeAlignError
from alignment.records.importers import FORMATS, Options, read_source
from alignment.records.importers.rows import BadRow

ROWS = 200
"""How many rows are tried."""


def fitting(path: str, options: Options) -> str:
    """The format that reads all of the first rows and leaves the fewest of their keys unread.

    Raises:
        DataError: the file cannot be read, no format reads it, or several do equally well.
    """
    found: dict[str, tuple[int, int]] = {}
    reasons: list[str] = []
    trouble: KubeAlignError | None = None
    for format in FORMATS:
        unread: Counter[str] = Counter()
        try:
            rows = list(islice(read_source(path, format, "rows", options, unread=unread), ROWS))
        except DataError as error:
            trouble = error
            continue
        bad = [row for row in rows if isinstance(row, BadRow) and not row.slug.startswith("duplicate")]
        if len(bad) < len(rows):
            found[format] = (len(bad), sum(unread.values()))
        elif bad:
            reasons.append(f"{format}: {bad[0].reason}")
    if not found:
        if trouble is not None and not reasons:
            raise trouble
        raise DataError("no format reads this file", where=path, found="; ".join(reasons[:3]),
                        expected="one of " + ", ".join(FORMATS),
                        hint="--format columns with --column prompt=NAME reads any table")
    best = min(found.values())
    fits = [format for format, cost in found.items() if cost == best]
    if len(fits) > 1:
        raise DataError("several formats read this file equally well", where=path, found=", ".join(fits),
                        expected="--format NAME")
    return fits[0]
