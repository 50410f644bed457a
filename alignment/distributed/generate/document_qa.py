"""A stage of document_qa: passages -> rounds of questions to a teacher, and of its answers -> rows to train on.

Holds the loop alone: what is asked and read is `generation.interview`, who answers `shared.Asking`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from alignment.config import DocumentQa
from alignment.config.stages.generate.document_qa import Branch
from alignment.context import Outcome, StageContext
from alignment.distributed.generate.shared import Asking, apart, finish, prompts_of, teacher, teacher_digest
from alignment.errors import DataError
from alignment.generation.interview import Interview
from alignment.generation.passages import Passage, passages_of, seed_questions
from alignment.records import Record


def document_qa_stage(context: StageContext) -> Outcome:
    """Body of the stages of recipe document_qa; fills rows/train.jsonl and bad.jsonl in `context.out`.

    Raises:
        ConfigError: a prompt file cannot be used.
        DataError: no passages, too few seeds, or no prompt fits.
        StageError: nothing that the teacher said could be kept; bad.jsonl is then in the stage's work folder.
        EndpointStopped: the teacher is an endpoint that cannot be asked any further; what was paid is kept.
    """
    stage = context.stage_as(DocumentQa)
    texts = prompts_of(stage)
    read, passages, unfit = _passages(context, stage)
    seeds, unfit_seeds = seed_questions(
        [record for ref in stage.seeds for record in context.rows(ref)] if stage.seeds else None, texts)
    for branch in stage.branches:
        if len(found := seeds[branch]) < stage.demonstrations:
            raise DataError(f"too few {branch} seed questions for one request", where=f"stage {stage.name}, seeds",
                            found=f"{len(found)}" + (f": {dict(unfit_seeds)}" if unfit_seeds else ""),
                            expected=f"at least {stage.demonstrations} (demonstrations)")
    state = Interview(stage, passages, seeds, context.run.seed, context.run.scaled(stage.take) or stage.take, texts,
                      teacher_digest(context, stage))
    with teacher(context, stage) as asking:
        _make(asking, state)
    records = apart(context, stage, [row.record(stage.recipe, stage.passage_prompt) for row in state.rows], state.bad)
    return finish(context, stage, records, state.bad, asking.took, read=read, unfit=unfit + unfit_seeds,
                  metrics=_metrics(state, records), facts=_facts(state, seeds))


def _passages(context: StageContext, stage: DocumentQa) -> tuple[int, list[Passage], Counter[str]]:
    """(rows read, passages, why other rows have none)."""
    records = [record for ref in stage.passages for record in context.rows(ref)]
    passages, unfit = passages_of(records)
    if not passages:
        raise DataError("no row has a passage", where=f"stage {stage.name}, passages",
                        found=f"{len(records)} rows: {dict(unfit)}",
                        expected="rows of an import with `documents`, or of a format with passages (squad, ...)")
    return len(records), passages, unfit


def _make(asking: Asking, state: Interview) -> None:
    """Rounds of questions, each with its answers."""
    while asks := state.ask():
        kept, proposed = len(state.rows), state.proposed
        said = asking.round(asks, f"questions-{state.round + 1}",
                            "or shorter passages (chunk_words), fewer demonstrations")
        state.read(asks, said)
        questions = len(state.waiting)
        answers = state.answers()
        state.read_answers(answers, asking.answered(answers, f"answers-{state.round}") if answers else {})
        asking.context.event("round", round=state.round, requests=len(asks) + len(answers),
                             proposed=state.proposed - proposed, questions=questions, kept=len(state.rows) - kept)


def _metrics(state: Interview, records: Sequence[Record]) -> dict[str, float]:
    judged = [record for record in records if record.meta["kind"] == "judgmental"]
    yes = [record for record in judged if str(record.completion).startswith(("Yes", "是"))]
    similar = [record.meta["mean_similar"] for record in records]
    return {
        "requests": float(state.asked.total()), "rounds": float(state.round), "proposed": float(state.proposed),
        "passages": float(len({record.meta["origin"]["passage"] for record in records})),
        "kept_share": round(len(records) / max(1, state.proposed), 4),
        "judgmental_share": round(len(judged) / max(1, len(records)), 4),
        "yes_share": round(len(yes) / max(1, len(judged)), 4),
        "mean_similar": round(sum(similar) / max(1, len(similar)), 4),
    }


def _facts(state: Interview, seeds: Mapping[Branch, Sequence[str]]) -> dict[str, Any]:
    return {"passages": len(state.passages), "seeds": {branch: len(own) for branch, own in seeds.items()},
            "requests": dict(state.asked), "trimmed": state.trimmed}
