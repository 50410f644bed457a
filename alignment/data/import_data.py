"""The import stage for data: files to checked, split row files.

Reads every source, draws `take` rows, splits, counts what crosses the splits, and writes rows/SPLIT.jsonl and
bad.jsonl. Every row read ends in a split, in bad.jsonl, or in a count of rows left out on purpose. Does not change
texts, tokenize or download. Launched by the pipeline for stages of kind import with `data`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.artifacts import RowCounts
from alignment.config import ImportData
from alignment.config.stages.hygiene import REFUSALS
from alignment.context import Outcome, StageContext
from alignment.data.divide import Divided, SplitTally, divide, facts_of, metrics_of, taken_lines
from alignment.data.hygiene import Cleaner
from alignment.data.read import drawn_of, each_source, lacks_answer
from alignment.errors import DataError
from alignment.records import Record
from alignment.records.importers import PASSAGE_FORMATS, BadRow

_EXAMPLES = 3
_SLOT = re.compile(r"\{[A-Za-z_]\w*\}")
_EXAMPLE_LIMIT = 1000
"""Characters of each text of an example in events.jsonl."""


@dataclass
class _Read:
    """What came out of all sources; the good rows are in a file, as they will be written.

    Attributes:
        bad: reason -> rows; first_bad: the first of them.
        taken: of each good row, whether it was drawn.
    """

    bad: Counter[str] = field(default_factory=Counter)
    first_bad: list[BadRow] = field(default_factory=list)
    taken: list[NDArray[np.bool_]] = field(default_factory=list)
    read: int = 0
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def not_taken(self) -> int:
        return sum(int((~part).sum()) for part in self.taken)


def import_data(context: StageContext) -> Outcome:
    """Make the artifact of one data import: rows are read into a file in the work folder, divided by what is compared
    of them, and copied to their splits.

    Raises:
        DataError: a file cannot be used, more than max_bad of the rows are bad, or a split has no rows. The bad
            rows are then in `bad.jsonl` of the stage's work folder.
    """
    stage = context.stage_as(ImportData)
    check_template(stage)
    cleaner = None if stage.hygiene is None else Cleaner(stage.hygiene, f"stage {stage.name}")
    context.work.mkdir(parents=True, exist_ok=True)
    bad_path, good_path = context.work / "bad.jsonl", context.work / "good.jsonl"
    try:
        read = _read_all(context, stage, cleaner, good_path, bad_path)
        _check_bad(stage, read, bad_path)
        divided = _divided(context, stage, read, good_path)
        _check_splits(stage, divided.counts(), read, bad_path)
        splits = _write(context, divided, taken_lines(good_path, read.taken))
    finally:
        good_path.unlink(missing_ok=True)
    shutil.move(bad_path, context.out / "bad.jsonl")
    dropped = Counter(read.bad)
    dropped.update({reason: count for reason, count in
                    (("not-taken", read.not_taken), ("outside-ratios", divided.outside)) if count})
    return Outcome(
        rows=RowCounts(read=read.read, written=divided.counts(), dropped=dict(dropped)),
        metrics=metrics_of(splits),
        facts={"sources": read.sources, **facts_of(splits), "cross_split_overlap": _crossing(context, divided),
               **({} if cleaner is None else {"hygiene": cleaner.found.to_json()})},
    )


def _read_all(
    context: StageContext, stage: ImportData, cleaner: Cleaner | None, good_path: Path, bad_path: Path,
) -> _Read:
    read = _Read()
    with (good_path.open("wb") as good_file, bad_path.open("wb") as bad_file,
          context.track(f"{stage.name}: read", None, "rows") as tracker):
        for made, rows in each_source(context.run, stage, cleaner):
            bad, lacks = Counter[str](), bytearray()
            for row in tracker.counted(rows):
                if isinstance(row, BadRow):
                    bad_file.write(f"{row.to_json()}\n".encode())
                    bad[row.slug] += 1
                    if len(read.first_bad) < _EXAMPLES and row.slug not in REFUSALS:
                        read.first_bad.append(row)
                else:
                    good_file.write(f"{row.to_json()}\n".encode())
                    lacks.append(lacks_answer(row))
            read.taken.append(_taken(len(lacks), drawn_of(context.run, made, lacks)))
            source = {"path": made.source.place, "format": made.source.format,
                      **({} if made.commit is None else {"commit": made.commit})}
            counts = {"read": len(lacks) + bad.total(), "bad": bad.total(), "taken": int(read.taken[-1].sum())}
            unread = dict(made.unread.most_common())
            context.event("source", name=made.name, **source, **counts, unread=unread, reasons=dict(bad))
            read.sources[made.name] = {**source, **counts, **({"unread": unread} if unread else {})}
            read.bad.update(bad)
            read.read += counts["read"]
    return read


def _taken(rows: int, drawn: Sequence[int] | None) -> NDArray[np.bool_]:
    taken = np.full(rows, drawn is None)
    if drawn is not None:
        taken[np.array(drawn, np.int64)] = True
    return taken


def _divided(context: StageContext, stage: ImportData, read: _Read, good_path: Path) -> Divided:
    count = sum(int(part.sum()) for part in read.taken)
    with context.track(f"{stage.name}: divide", count, "rows") as tracker:
        rows = map(Record.from_json, taken_lines(good_path, read.taken))
        return divide(tracker.counted(rows), stage.splits(), stage.split, context.run.seed, context.work)


def _write(context: StageContext, divided: Divided, lines: Iterable[bytes]) -> dict[str, SplitTally]:
    """Every row into the file of its split, as it was read."""
    folder = context.out / "rows"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tallies = {name: SplitTally() for name in divided.names}
    with (ExitStack() as stack,
          context.track(f"{context.stage.name}: write", len(divided.split), "rows") as tracker):
        files = [stack.enter_context((folder / f"{name}.jsonl").open("wb")) for name in divided.names]
        each = list(tallies.values())
        for line, number in zip(tracker.counted(lines), divided.split.tolist(), strict=True):
            if number >= 0:
                files[number].write(line)
                each[number].add(Record.from_json(line))
    for name, tally in tallies.items():
        context.event("examples", split=name, rows=[_example(record) for record in tally.first])
    return tallies


def _crossing(context: StageContext, divided: Divided) -> dict[str, int]:
    """Reason -> rows of a split that overlap rows of the splits before it."""
    crossing: Counter[str] = Counter()
    for name, rows, overlap in divided.crossing():
        crossing.update(reason for _, reason in overlap.values())
        context.event("cross_split_overlap", split=name, rows=len(overlap), of=rows, examples=[
            {"row": row, "seen": seen, "reason": reason} for row, (seen, reason) in list(overlap.items())[:20]])
    return dict(crossing)


def check_template(stage: ImportData) -> None:
    """Raises DataError where a stage with passages has a passage_prompt that lacks a slot or has a strange one."""
    asked = any(source.format in PASSAGE_FORMATS or "passage" in source.columns for source in stage.data)
    if stage.retrieve or not asked:
        return
    missing = [name for name in ("{passage}", "{question}") if name not in stage.passage_prompt]
    if missing:
        raise DataError(f"passage_prompt lacks {' and '.join(missing)}", where=f"stage {stage.name}",
                        found=stage.passage_prompt, expected="a text with {passage} and {question}")
    others = [slot for slot in _SLOT.findall(stage.passage_prompt) if slot not in ("{passage}", "{question}")]
    if others:
        raise DataError(f"passage_prompt has {' and '.join(others)}, which nothing fills", where=f"stage {stage.name}",
                        found=stage.passage_prompt, expected="a text with {passage} and {question}",
                        hint="format columns takes prompts with any column of a file")


def _check_bad(stage: ImportData, read: _Read, bad_path: Path) -> None:
    bad = sum(broken(read.bad).values())
    if stage.max_bad is not None and bad > stage.max_bad * read.read:
        first = [f"{row.source} row {row.row}: {row.reason}" for row in read.first_bad]
        raise DataError(
            f"{bad} of {read.read} rows are bad ({bad / read.read:.1%})",
            where=f"stage {stage.name}",
            found=f"{broken(read.bad)}, first {'; '.join(first)}",
            expected=f"at most {stage.max_bad:.1%} (max_bad)",
            hint=f"all bad rows are in {bad_path}; mend them, correct `format`, or raise max_bad (null: any number)",
        )


def broken(bad: Mapping[str, int]) -> dict[str, int]:
    """Reasons with their rows, without those that `hygiene` left out, as it was asked to."""
    return {reason: count for reason, count in bad.items() if reason not in REFUSALS}


def _check_splits(stage: ImportData, counts: dict[str, int], read: _Read, bad_path: Path) -> None:
    empty = [name for name, count in counts.items() if not count]
    if empty:
        raise DataError(
            f"split {', '.join(empty)} has no rows", where=f"stage {stage.name}",
            found=f"{counts} from {read.read} rows read, {read.bad.total()} bad, {read.not_taken} not taken",
            expected="at least one row in every split",
            hint=f"bad rows are in {bad_path}; rows of one text, and of texts that overlap, stay in one split by "
                 "ratio: read more rows (take, scale), or change the split",
        )


def _example(record: Record) -> dict[str, Any]:
    """A row for people to look at: long texts cut."""
    return {key: _cut(value) for key, value in json.loads(record.to_json()).items()}


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= _EXAMPLE_LIMIT else value[:_EXAMPLE_LIMIT] + "..."
    if isinstance(value, dict):
        return {key: _cut(item) for key, item in value.items()}
    return [_cut(item) for item in value] if isinstance(value, list) else value
