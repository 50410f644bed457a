"""Whether a contrastive stage's rows can serve it, as far as the source files tell before anything is asked."""

from __future__ import annotations

from alignment.checks.seen import Sight, Wrong, counted
from alignment.config import Contrastive
from alignment.config.prompts import read_prompt
from alignment.errors import ConfigError, KubeAlignError
from alignment.generation.good_rows import ONE_KIND, Needs, good_row
from alignment.records import Record
from alignment.rewards import BUILT_IN, lacking

SCORED = 10_000
"""Rows up to which a built-in function scores the good answers now."""


def contrastable(sight: Sight, stage: Contrastive) -> Wrong:
    """Rows without a good answer, of one kind alone, that cannot be scored, or whose answers are not good."""
    sets = [sight.rows.get(ref) for ref in stage.rows]
    if None in sets:
        return
    needs = Needs.of(stage, _prompt(stage))
    made = [good_row(record, needs) for records in sets for record in records or ()]
    rows, unfit = [one for one in made if not isinstance(one, str)], [one for one in made if isinstance(one, str)]
    if not rows:
        yield ("rows",), ConfigError("no row has a prompt and a good answer", found=counted(unfit),
                                     expected="rows with a prompt and an answer" + (
                                         ", and a kind (meta.kind)" if needs.kind else ""))
        return
    if unfit:
        sight.warn(stage.name, f"{len(unfit)} of {len(made)} rows get no pair: {counted(unfit)}")
    if not needs.met(rows):
        yield ("ask",), ConfigError(ONE_KIND, found=rows[0].meta["kind"],
                                    expected="rows of two kinds or more, or a prompt without {other}")
    yield from _good(sight, stage, rows)


def _prompt(stage: Contrastive) -> str:
    """Of its prompt file; nothing where there is none, or none that can be read, which another check says."""
    try:
        return "".join(read_prompt(prompt, "") for prompt in stage.prompt_files())
    except ConfigError:
        return ""


def _good(sight: Sight, stage: Contrastive, rows: list[Record]) -> Wrong:
    name = stage.score.function
    lacks = [lack for row in rows for lack in (lacking(name, row) if name is not None else ())]
    if lacks:
        yield ("score", "function"), ConfigError(
            f"{name} cannot score every row", found=counted(f"no {lack}" for lack in lacks),
            expected="rows with what the function needs (kubealign explain reward)")
        return
    if name not in BUILT_IN or stage.score.model is not None or stage.score.judge is not None or len(rows) > SCORED:
        return
    weight, function = stage.score.function_weight, BUILT_IN[name]
    try:
        good = sum(weight * function(row, row.completion or "") >= stage.min_score for row in rows)
    except KubeAlignError:
        return  # the stage's to say
    if not good:
        yield ("min_score",), ConfigError(f"no row's answer is good by {name}", found=stage.min_score,
                                          expected="a score that the rows' own answers reach")
        return
    sight.note(stage.name, f"{good} of {len(rows)} answers are good by {name}")
