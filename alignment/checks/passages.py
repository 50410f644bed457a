"""Whether passages and seed questions can serve a stage of document_qa, as far as the source files tell before anything
is made."""

from __future__ import annotations

from alignment.checks.seen import Sight, Wrong, counted
from alignment.config import DocumentQa, Run
from alignment.config.prompts import read_prompt
from alignment.errors import ConfigError
from alignment.generation.passages import passages_of, seed_questions
from alignment.generation.self_instruct import own_share


def questionable(run: Run, sight: Sight, stage: DocumentQa) -> Wrong:
    """No passages, passages of another language or too long for any prompt, too few seed questions of a branch."""
    yield from _seeds(sight, stage)
    sets = [sight.rows.get(ref) for ref in stage.passages]
    if None in sets:
        return
    records = [record for rows in sets for record in rows or ()]
    passages, unfit = passages_of(records)
    if not passages:
        yield ("passages",), ConfigError(
            "no row has a passage", found=f"{len(records)} rows of type {counted(row.type for row in records)}",
            expected="rows of an import with `documents`, or of a format with passages (squad, passage-qa, ...)")
        return
    sight.note(stage.name, f"{len(passages)} passages")
    if unfit:
        sight.warn(stage.name, f"of {len(records)} rows: {counted(unfit.elements())}")
    own = sum(own_share(passage.text, stage.language) >= stage.filters.own_language for passage in passages)
    if 2 * own < len(passages):
        yield ("language",), ConfigError(
            "most passages are in another language", found=f"{own} of {len(passages)} in {stage.language}",
            expected="the language of the passages")
    # A word is a token or more, whatever the tokenizer; an endpoint says itself what it cannot take.
    lengths = sorted(len(passage.text.split()) for passage in passages)
    if lengths[0] > stage.longest_prompt and run.stage(stage.teacher).endpoint is None:
        yield ("max_prompt_tokens",), ConfigError(
            "every passage is longer than max_prompt_tokens, whatever the tokenizer",
            found=f"{stage.longest_prompt}, the shortest passage has {lengths[0]} tokens or more",
            expected="room for the passages")
    elif (long := sum(length > stage.longest_prompt for length in lengths)) and (
            run.stage(stage.teacher).endpoint is None):
        sight.warn(stage.name, f"{long} of {len(lengths)} passages are longer than max_prompt_tokens and will not be "
                               "asked about")


def _seeds(sight: Sight, stage: DocumentQa) -> Wrong:
    sets = [sight.rows.get(ref) for ref in stage.seeds]
    if None in sets:
        return
    try:
        texts = {} if stage.seeds else {file.step: read_prompt(file, f"stage {stage.name}")
                                        for file in stage.prompt_files() if file.step.endswith("_seeds")}
    except ConfigError:
        return  # said of the prompt files
    seeds, unfit = seed_questions([record for rows in sets for record in rows or ()] if stage.seeds else None, texts)
    for branch in stage.branches:
        if len(found := seeds[branch]) < stage.demonstrations:
            yield ("seeds",) if stage.seeds else ("prompts", f"{branch}_seeds"), ConfigError(
                f"too few {branch} seed questions for one request", found=str(len(found)),
                expected=f"at least {stage.demonstrations} (demonstrations)")
    if unfit:
        sight.warn(stage.name, f"rows of seeds that are no question: {counted(unfit.elements())}")
