"""Token columns made once per disk: by the rank that leads it, into the stage's work folder, mapped by all its ranks.

So several workers on one machine hold one copy of the rows, in the page cache, and a restart makes none anew: the
folder is the stage's own, whose name is the digest of all that the columns follow from. What a row becomes is
`prepare`'s.
"""

from __future__ import annotations

import gc
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from datasets import Dataset
from datasets.arrow_writer import ArrowWriter

from alignment.training.prepare import Columns, Prepared
from alignment.training.ranks import Disk, once

FOLDER = "columns-1"
"""Counted up when what an earlier version left in a work folder must not be used."""
_AT_ONCE = 500
"""Rows in memory before they go to the file."""


class _File:
    """Rows on their way to an Arrow file, in the place of a list."""

    def __init__(self, path: Path) -> None:
        self._writer = ArrowWriter(path=str(path), writer_batch_size=_AT_ONCE)

    def append(self, row: Columns, /) -> None:
        self._writer.write(row)

    def close(self) -> None:
        self._writer.finalize()


@contextmanager
def _heap_left_alone() -> Iterator[None]:
    """What is there already stays out of garbage collections: going through the libraries' objects again and again took
    a quarter of the time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def made_once(
    work: Path, disk: Disk, name: str, make: Callable[[Prepared], None]
) -> tuple[Prepared, Dataset]:
    """The columns of one row set, and what became of its rows (`rows` empty there). To be called by all ranks.

    Args:
        work: the stage's work folder on this disk.
        name: of the row set within the stage.
        make: fills the `Prepared` that it gets; called on one rank per disk, unless an earlier attempt has made them.

    Raises:
        KubeAlignError: of `make`, on all ranks.
    """
    folder = work / FOLDER
    told, arrow = folder / f"{name}.json", folder / f"{name}.arrow"

    def write() -> None:
        if told.exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        rows = _File(folder / f".{name}.arrow")
        prepared = Prepared(rows=rows)
        with _heap_left_alone():
            make(prepared)
        rows.close()
        body = {item.name: getattr(prepared, item.name) for item in fields(Prepared) if item.name != "rows"}
        (folder / f".{name}.json").write_text(json.dumps(body), encoding="utf-8")
        os.replace(folder / f".{name}.arrow", arrow)
        os.replace(folder / f".{name}.json", told)  # last: it says that the other is whole

    once(f"columns-{name}", disk, write)
    body = json.loads(told.read_text(encoding="utf-8"))
    body |= {"dropped": [(record, reason) for record, reason in body["dropped"]], "changed": Counter(body["changed"])}
    return Prepared(**body), Dataset.from_file(str(arrow))
