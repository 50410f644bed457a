"""Whether rows can be answered by a multihop stage, as far as the source files tell before anything is asked."""

from __future__ import annotations

from alignment.checks.seen import Sight, Wrong, counted
from alignment.config import MultiHop, Run
from alignment.config.prompts import read_prompt
from alignment.errors import ConfigError
from alignment.records.importers.retrieval import row_of


def answerable(run: Run, sight: Sight, stage: MultiHop) -> Wrong:
    """Rows that are no questions with retrieved paragraphs, a list without a category, and what there is to do."""
    try:
        texts = {prompt.step: read_prompt(prompt, "") for prompt in stage.prompt_files()}
    except ConfigError:
        return  # said already
    categories = [line for line in texts["categories"].splitlines() if line.strip()]
    if not categories:
        yield ("prompts", "categories"), ConfigError("the list of categories is empty", expected="a category a line")
    if stage.rounds:
        sight.note(stage.name, f"comparisons of {len(categories)} categories")
    sets = [sight.rows.get(ref) for ref in stage.rows]
    if None in sets or not sets:
        return
    records = [record for records in sets for record in records or ()]
    rows = [row for record in records if (row := row_of(record)) is not None]
    if not rows:
        yield ("rows",), ConfigError("no row can be answered", found=f"{len(records)} rows without a question with "
                                     "retrieved paragraphs", expected="rows of an import with retrieve: true, or of "
                                                                      "format multihop")
        return
    if len(rows) < len(records):
        sight.warn(stage.name, f"{len(records) - len(rows)} of {len(records)} rows have no retrieved paragraphs")
    kinds = counted(str(record.meta.get("kind")) for record in records)
    sight.note(stage.name, f"{len(rows)} rows to answer: {kinds}")
    if stage.max_requests is not None:
        needs = sum(row.to_answer for row in rows)
        if needs > stage.max_requests:
            sight.warn(stage.name, f"max_requests {stage.max_requests} is less than the {needs} answers that the rows "
                                   "need: some are refused")
