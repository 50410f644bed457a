"""The import stage for documents: files to passages, with where each stands.

Reads one file after the other, writes rows/SPLIT.jsonl and bad.jsonl. Every passage ends in a split, in bad.jsonl, or
in a count; every file gives passages or a reason. Without `split` nothing is held but digests of texts, and what `take`
draws. Recognises no text in pictures, tokenizes nothing. Launched by the pipeline for stages of kind import with
`documents`.
"""

from __future__ import annotations

import hashlib
import heapq
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from alignment.artifacts import RowCounts
from alignment.config import DocumentFile, ImportDocuments, Run
from alignment.config.stages.documents import ENDINGS
from alignment.context import Outcome, StageContext
from alignment.data.documents.rows import Reading
from alignment.data.splits import by_ratio
from alignment.errors import DataError
from alignment.records import Record, write_records
from alignment.records.importers.rows import BadRow
from alignment.words import word_starts

_NAMED = 20
"""Files that could not be read which the manifest names."""
_EXAMPLES = 3


class _Bad:
    """bad.jsonl, written as it comes."""

    def __init__(self, path: Path) -> None:
        self.path, self.counts, self.first = path, Counter[str](), list[dict[str, str]]()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("w", encoding="utf-8", newline="\n")

    def add(self, row: BadRow) -> None:
        self.file.write(row.to_json() + "\n")
        self.counts[row.slug] += 1
        if row.slug not in ("duplicate", "too-short") and len(self.first) < _NAMED:
            self.first.append({"file": row.source, "reason": row.reason})


def import_documents(context: StageContext) -> Outcome:
    """Make the artifact of one import of documents.

    Raises:
        DataError: a file cannot be opened, more than max_bad of the documents cannot be read, or there is no passage.
            What was refused is then in `bad.jsonl` of the stage's work folder.
    """
    stage = context.stage_as(ImportDocuments)
    listed = stage.listed()
    if not listed.files:
        raise nothing_there(stage)
    reading, bad = Reading(stage), _Bad(context.work / "bad.jsonl")
    shutil.rmtree(context.out / "rows", ignore_errors=True)
    lengths = _Lengths()
    with bad.file:
        rows = lengths.watched(_each(context, reading, listed.files, bad))
        written, outside = _written(context, stage, rows)
    _check(stage, reading, bad, sum(written.values()))
    if empty := [name for name, count in written.items() if not count]:
        raise DataError(f"split {', '.join(empty)} has no passages", where=f"stage {stage.name}", found=str(written),
                        expected="at least one in every split",
                        hint="a document stays whole in one split: read more documents, or leave split out")
    shutil.move(bad.path, context.out / "bad.jsonl")
    dropped = dict(bad.counts) | {reason: count for reason, count in outside.items() if count}
    return Outcome(
        RowCounts(read=lengths.count + bad.counts.total(), written=written, dropped=dropped),
        {"documents": float(sum(reading.kinds.values())), **{f"rows_{name}": float(count)
                                                             for name, count in written.items()},
         "mean_passage_words": round(lengths.words / lengths.count, 2), "max_passage_words": float(lengths.most)},
        {"files": dict(reading.kinds), "skipped": {why: count for why, count in listed.skipped.items() if count},
         "read": dict(reading.counts), "refused": bad.first})


def nothing_there(stage: ImportDocuments) -> DataError:
    """The error for folders and patterns without a file that something reads."""
    skipped = {why: count for why, count in stage.listed().skipped.items() if count}
    return DataError("there is no document to read", where=f"stage {stage.name}, documents",
                     found=", ".join(entry.path for entry in stage.documents) + (f": {skipped}" if skipped else ""),
                     expected=f"a file that ends in {' '.join(ENDINGS)}")


def drawn(rows: Iterable[Record], take: int, seed: int) -> tuple[list[Record], int]:
    """(`take` rows at random in their order, how many there were), in the memory of those that are kept. A smaller
    draw is part of a larger one."""
    heap: list[tuple[int, int, Record]] = []
    count = 0
    for count, row in enumerate(rows, 1):
        place = -int.from_bytes(hashlib.sha256(f"{seed}/{row.id}".encode()).digest()[:8], "big")
        if len(heap) < take:
            heapq.heappush(heap, (place, -count, row))
        elif place > heap[0][0]:
            heapq.heapreplace(heap, (place, -count, row))
    return [row for _, _, row in sorted(heap, key=lambda one: -one[1])], count


def divided_documents(
    run: Run, stage: ImportDocuments, rows: Iterable[Record]
) -> tuple[dict[str, list[Record]], Counter[str]]:
    """(split -> its passages, why others are in none -> how many)."""
    taken, count = (list(rows), None) if stage.take is None else drawn(rows, run.scaled(stage.take) or 1, run.seed)
    left = Counter({"not-taken": 0 if count is None else count - len(taken)})
    if stage.split is None:
        return {"train": taken}, left
    made, outside = by_ratio(taken, stage.split.cut, run.seed)
    return {name: made[name] for name in stage.splits()}, left + Counter({"outside-ratios": len(outside)})


class _Lengths:
    """Passages that go by, their words counted."""

    def __init__(self) -> None:
        self.count = self.words = self.most = 0

    def watched(self, rows: Iterable[Record]) -> Iterator[Record]:
        for row in rows:
            words = len(word_starts(row.meta["passage"]))
            self.count, self.words, self.most = self.count + 1, self.words + words, max(self.most, words)
            yield row


def _each(context: StageContext, reading: Reading, files: list[DocumentFile], bad: _Bad) -> Iterator[Record]:
    with context.track(f"{context.stage.name}: reading", len(files), "files") as tracker:
        for file in files:
            kept, before = 0, bad.counts.copy()
            for row in reading.each(file):
                if isinstance(row, BadRow):
                    bad.add(row)
                else:
                    kept += 1
                    yield row
            context.event("document", name=file.name, passages=kept, refused=dict(bad.counts - before))
            tracker.advance()


def _written(context: StageContext, stage: ImportDocuments, rows: Iterator[Record]) -> tuple[dict[str, int],
                                                                                             Counter[str]]:
    outside: Counter[str] = Counter()
    if stage.split is None and stage.take is None:
        written = {"train": write_records(context.out / "rows" / "train.jsonl", rows)}
    else:
        made, outside = divided_documents(context.run, stage, rows)
        written = {name: write_records(context.out / "rows" / f"{name}.jsonl", some) for name, some in made.items()}
    return written, outside


def _check(stage: ImportDocuments, reading: Reading, bad: _Bad, kept: int) -> None:
    told: dict[str, Any] = {
        "where": f"stage {stage.name}",
        "found": f"{dict(bad.counts)}" + (f", first {bad.first[0]['file']}: {bad.first[0]['reason']}"
                                          if bad.first else ""),
        "hint": f"all that was refused is in {bad.path}"}
    if stage.max_bad is not None and reading.unread > stage.max_bad * reading.parts:
        raise DataError(
            f"{reading.unread} of {reading.parts} documents (of tables, rows) cannot be read", **told,
            expected=f"at most {stage.max_bad:.1%} (max_bad)")
    if not kept:
        raise DataError("the documents give no passage", **told, expected="at least one passage")
