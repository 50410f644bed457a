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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.artifacts import RowCounts
from alignment.config import ImportData
from alignment.context import Outcome, StageContext
from alignment.data.overlap import find_overlap
from alignment.data.read import divided, read_sources
from alignment.data.text import prompt_of, units
from alignment.errors import DataError
from alignment.records import Record, write_records
from alignment.records.importers import PASSAGE_FORMATS, BadRow

_EXAMPLES = 3
_SLOT = re.compile(r"\{[A-Za-z_]\w*\}")
_EXAMPLE_LIMIT = 1000
"""Characters of each text of an example in events.jsonl."""


@dataclass
class _Read:
    """What came out of all sources."""

    good: list[Record] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    read: int = 0
    not_taken: int = 0
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)


def import_data(context: StageContext) -> Outcome:
    """Make the artifact of one data import.

    Raises:
        DataError: a file cannot be used, more than max_bad of the rows are bad, or a split has no rows. The bad
            rows are then in `bad.jsonl` of the stage's work folder.
    """
    stage = context.stage_as(ImportData)
    check_template(stage)
    read = _read_all(context, stage)
    bad_path = context.work / "bad.jsonl"
    bad_path.parent.mkdir(parents=True, exist_ok=True)
    bad_path.write_text("".join(row.to_json() + "\n" for row in read.bad), encoding="utf-8", newline="\n")
    _check_bad(stage, read, bad_path)
    splits, outside = divided(context.run, stage, read.good)
    _check_splits(stage, splits, read, bad_path)
    shutil.rmtree(context.out / "rows", ignore_errors=True)
    for name, records in splits.items():
        write_records(context.out / "rows" / f"{name}.jsonl", records)
        context.event("examples", split=name, rows=[_example(record) for record in records[:_EXAMPLES]])
    shutil.move(bad_path, context.out / "bad.jsonl")
    dropped = Counter(row.slug for row in read.bad)
    dropped.update({reason: count for reason, count in
                    (("not-taken", read.not_taken), ("outside-ratios", len(outside))) if count})
    written = {name: len(records) for name, records in splits.items()}
    return Outcome(
        rows=RowCounts(read=read.read, written=written, dropped=dict(dropped)),
        metrics=_metrics(splits),
        facts=_facts(context, read, splits),
    )


def _read_all(context: StageContext, stage: ImportData) -> _Read:
    read = _Read()
    for made in read_sources(context.run, stage):
        source = {"path": made.source.path, "format": made.source.format}
        counts = {"read": len(made.good) + len(made.bad), "bad": len(made.bad), "taken": len(made.taken)}
        unread = dict(made.unread.most_common())
        context.event("source", name=made.name, **source, **counts, unread=unread,
                      reasons=dict(Counter(row.slug for row in made.bad)))
        read.sources[made.name] = {**source, **counts, **({"unread": unread} if unread else {})}
        read.good += made.taken
        read.bad += made.bad
        read.read += counts["read"]
        read.not_taken += len(made.good) - len(made.taken)
    return read


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
    if stage.max_bad is not None and len(read.bad) > stage.max_bad * read.read:
        first = [f"{row.source} row {row.row}: {row.reason}" for row in read.bad[:3]]
        raise DataError(
            f"{len(read.bad)} of {read.read} rows are bad ({len(read.bad) / read.read:.1%})",
            where=f"stage {stage.name}",
            found=f"{dict(Counter(row.slug for row in read.bad))}, first {'; '.join(first)}",
            expected=f"at most {stage.max_bad:.1%} (max_bad)",
            hint=f"all bad rows are in {bad_path}; mend them, correct `format`, or raise max_bad (null: any number)",
        )


def _check_splits(stage: ImportData, splits: dict[str, list[Record]], read: _Read, bad_path: Path) -> None:
    empty = [name for name, records in splits.items() if not records]
    if empty:
        counts = {name: len(records) for name, records in splits.items()}
        raise DataError(
            f"split {', '.join(empty)} has no rows", where=f"stage {stage.name}",
            found=f"{counts} from {read.read} rows read, {len(read.bad)} bad, {read.not_taken} not taken",
            expected="at least one row in every split",
            hint=f"bad rows are in {bad_path}; rows of one text, and of texts that overlap, stay in one split by "
                 "ratio: read more rows (take, scale), or change the split",
        )


def _metrics(splits: dict[str, list[Record]]) -> dict[str, float]:
    """Rows per split; units (words; in scripts without blanks, characters) of prompts and answers over all splits."""
    records = [record for rows in splits.values() for record in rows]
    prompts = [sum(len(units(turn["content"])) for turn in prompt_of(record)) for record in records]
    answers = [len(units(turn[-1]["content"])) for record in records
               if (turn := record.conversation()) and turn[-1]["role"] == "assistant"]
    metrics: dict[str, float] = {f"rows_{name}": len(rows) for name, rows in splits.items()}
    for name, lengths in (("prompt_words", prompts), ("answer_words", answers)):
        if lengths:
            metrics[f"mean_{name}"] = round(sum(lengths) / len(lengths), 2)
            metrics[f"max_{name}"] = max(lengths)
    return metrics


def _facts(context: StageContext, read: _Read, splits: dict[str, list[Record]]) -> dict[str, Any]:
    records = [record for rows in splits.values() for record in rows]
    crossing: Counter[str] = Counter()
    earlier: list[Record] = []
    for name, rows in splits.items():
        overlap = find_overlap(rows, earlier)
        if overlap:
            crossing.update(reason for _, reason in overlap.values())
            context.event("cross_split_overlap", split=name, rows=len(overlap), of=len(rows), examples=[
                {"row": row, "seen": seen, "reason": reason} for row, (seen, reason) in list(overlap.items())[:20]])
        earlier += rows
    return {
        "sources": read.sources,
        "types": dict(Counter(record.type for record in records)),
        "kinds": dict(Counter(str(record.meta["kind"]) for record in records if "kind" in record.meta)),
        "cross_split_overlap": dict(crossing),
    }


def _example(record: Record) -> dict[str, Any]:
    """A row for people to look at: long texts cut."""
    return {key: _cut(value) for key, value in json.loads(record.to_json()).items()}


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= _EXAMPLE_LIMIT else value[:_EXAMPLE_LIMIT] + "..."
    if isinstance(value, dict):
        return {key: _cut(item) for key, item in value.items()}
    return [_cut(item) for item in value] if isinstance(value, list) else value
