"""Whether a select stage's rows can serve it, as far as the source files tell before anything is made.

Asks what the stages themselves ask (selection/rows.py). Rows that only show when an earlier stage is made are left to
their stage; so are those that a quality or a coverage will choose.
"""

from __future__ import annotations

from collections.abc import Sequence

from alignment.checks.seen import Sight, Wrong, counted
from alignment.config import Run, Select, SelectCoverage, SelectMerge, SelectNecessity, SelectQuality, SelectRandom
from alignment.errors import ConfigError
from alignment.records import Record
from alignment.rewards import lacking
from alignment.selection.rows import chosen_at_random, instruction_of, judged_of, merged_rows, size_of, together


def _seen(sight: Sight, stage: Select) -> list[Record] | None:
    """The stage's rows, each id once; None where they are not all known."""
    sets = [sight.rows.get(ref) for ref in stage.rows]
    if None in sets:
        return None
    records, bad = together([records or [] for records in sets])
    if bad:
        sight.warn(stage.name, f"{len(bad)} rows have the id of an earlier row and are left out")
    return records


def judgeable(sight: Sight, stage: SelectQuality) -> Wrong:
    """No row has an answer to score, or none what the scoring function needs."""
    records = _seen(sight, stage)
    if records is None:
        return
    made = [judged_of(record) for record in records]
    refused = [one for one in made if isinstance(one, str)]
    name = stage.score.function
    if name is not None:
        refused += [f"no {', '.join(lacks)}" for record, one in zip(records, made, strict=True)
                    if not isinstance(one, str) and (lacks := lacking(name, record))]
    if len(refused) == len(records):
        yield ("rows",), ConfigError("no row has an answer that can be scored", found=counted(refused) or "no rows",
                                     expected="rows with answers, and what the scoring function needs")
    elif refused:
        sight.warn(stage.name, f"{len(refused)} of {len(records)} rows cannot be scored: {counted(refused)}")


def coverable(run: Run, stage: SelectCoverage, sight: Sight) -> Wrong:
    """Fewer rows with an instruction than are to be taken."""
    records = _seen(sight, stage)
    if records is not None:
        usable = [record for record in records if instruction_of(record, whole=stage.text == "prompt") is not None]
        yield from _enough(run, sight, stage, usable, "rows with an instruction")


def drawable(run: Run, stage: SelectRandom, sight: Sight) -> Wrong:
    """Fewer rows than are to be taken; remembers those that will be drawn."""
    records = _seen(sight, stage)
    if records is None:
        return
    yield from _enough(run, sight, stage, records, "rows")
    take = size_of(len(records), run.scaled(stage.take), stage.share)
    if take <= len(records):
        sight.rows[f"{stage.name}/train"] = chosen_at_random(records, take, run.seed)


def _enough(
    run: Run, sight: Sight, stage: SelectCoverage | SelectRandom, usable: Sequence[Record], what: str
) -> Wrong:
    take = size_of(len(usable), run.scaled(stage.take), stage.share)
    if take > len(usable) or not usable:
        yield ("take" if stage.take is not None else "rows",), ConfigError(
            "more rows are asked for than there are", found=f"{take:,}",
            expected=f"at most {len(usable):,}, the {what}", hint="or share: 0.5, a share of what there is")
    else:
        sight.note(stage.name, f"{take:,} of {len(usable):,} rows")


def answerable(run: Run, stage: SelectNecessity, sight: Sight) -> Wrong:
    """Answers to other rows than those that are to be chosen from."""
    records, answers = _seen(sight, stage), sight.rows.get(stage.answers)
    if records is None or answers is None:
        return
    asked = {record.meta.get("prompt_id") or record.id.removesuffix("-best") for record in answers}
    if not asked & {record.id for record in records}:
        yield ("answers",), ConfigError("no row of the stage was asked",
                                        found=f"answers to other rows than {', '.join(stage.rows)}",
                                        expected="a sample stage with these rows as prompts")


def mergeable(run: Run, stage: SelectMerge, sight: Sight) -> Wrong:
    """Nothing can fail; remembers what will be written."""
    sets = [sight.rows.get(ref) for ref in stage.rows]
    if None not in sets:
        made = merged_rows([records or [] for records in sets])
        sight.rows[f"{stage.name}/train"] = made.records
        sight.note(stage.name, f"{len(made.records):,} rows, {len(made.left):,} of them twice")
    yield from ()
