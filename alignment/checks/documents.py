"""Whether documents can be read, as far as their names, sizes and first bytes tell; few of them are read whole."""

from __future__ import annotations

import os

from alignment.checks.seen import Sight, Wrong, counted
from alignment.checks.store import nowhere
from alignment.config import DocumentFile, ImportDocuments, Run
from alignment.config.stages.base import plural
from alignment.config.stages.documents import ENDINGS
from alignment.config.stages.fields import on_this_machine
from alignment.errors import ConfigError, KubeAlignError
from alignment.planner.rows import preview_documents


def readable(run: Run, stage: ImportDocuments, sight: Sight) -> Wrong:
    """Files that are not there, folders without a document, more documents without text than max_bad allows."""
    wrong = False
    for index, entry in enumerate(stage.documents):
        listed = entry.listed()
        if skipped := {why: count for why, count in listed.skipped.items() if count}:
            sight.note(stage.name, f"left out of {entry.path}: {counted(listed.skipped.elements())}")
        if not listed.files:
            wrong = True
            yield ("documents", index, "path"), ConfigError(
                "there is no document to read", found=f"{entry.path}: {skipped or 'nothing'}",
                expected=f"files that end in {' '.join(ENDINGS)}")
        for file in listed.files:
            if (error := _wrong(file)) is not None:
                wrong = True
                yield ("documents", index, "path"), error
    if wrong:
        return
    try:
        found = preview_documents(run, stage)
    except KubeAlignError as error:
        yield ("documents",), error
        return
    if found is None:
        sight.note(stage.name, f"{plural(len(stage.listed().files), 'file')}, not read now")
        return
    seen, reading = found
    rows = ", ".join(f"{len(rows)} {split}" for split, rows in seen.splits.items())
    sight.note(stage.name, f"{plural(sum(reading.kinds.values()), 'document')}, passages: {rows}")
    if seen.bad:
        sight.note(stage.name, f"refused: {counted(row.slug for row in seen.bad)}")
    without = [f"{row.source}: {row.reason}" for row in seen.bad if row.slug not in ("duplicate", "too-short")]
    if stage.max_bad is not None and reading.unread > stage.max_bad * reading.parts:
        yield ("documents",), ConfigError(
            f"{reading.unread} of {reading.parts} documents (of tables, rows) cannot be read",
            found="; ".join(without[:3]), expected=f"at most {stage.max_bad:.1%} (max_bad)")
    elif empty := [split for split, records in seen.splits.items() if not records]:
        yield ("documents",) if stage.split is None else ("split",), ConfigError(
            f"split {', '.join(empty)} has no passages", found=rows + (f"; {without[0]}" if without else ""),
            expected="at least one in every split", hint="a document stays whole in one split")
    else:
        if without:
            sight.warn(stage.name, f"cannot be read: {'; '.join(without[:3])}")
        sight.rows |= {f"{stage.name}/{split}": records for split, records in seen.splits.items()}


def _wrong(file: DocumentFile) -> KubeAlignError | None:
    if "://" in file.path:
        return next(nowhere(file.path), None)
    path = on_this_machine(file.path)
    if not path.is_file():
        near = sorted(other.name for other in path.parent.iterdir())[:5] if path.parent.is_dir() else []
        return ConfigError("the document does not exist", found=file.path, expected=f"a file at {path.absolute()}",
                           hint=f"there are {', '.join(near)}" if near else "relative paths start at the working "
                                                                            "directory")
    if not os.access(path, os.R_OK):
        return ConfigError("the document may not be read by this user", found=file.path)
    if file.kind is None:
        return ConfigError("nothing reads a file with this ending", found=file.path,
                           expected=f"one of {' '.join(ENDINGS)}")
    if file.entry.text is not None and file.kind != "csv":
        return ConfigError("`text` is of tables alone, and this is none", found=file.path, expected=".csv or .tsv")
    return None
