"""A multihop stage: rounds of comparisons, then every answer greedily, then negatives -> conversations with retrieval
calls, and the same rows in qa_expert's format.

Holds the loop alone: what is asked and read is `generation.multihop`, who answers `shared.Asking`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from alignment.config import MultiHop
from alignment.context import Outcome, StageContext
from alignment.distributed.generate.shared import Asking, apart, finish, prompts_of, teacher, teacher_digest
from alignment.errors import ConfigError, DataError
from alignment.generation.multihop import MultiHopRun
from alignment.records import Record

ROWS = "multihop.jsonl"
"""The rows in qa_expert's format, for other programs; `format: multihop` reads them."""


def multihop_stage(context: StageContext) -> Outcome:
    """Body of the stages of recipe multihop; fills rows/train.jsonl, multihop.jsonl and bad.jsonl in `context.out`.

    Raises:
        ConfigError: a prompt file cannot be used, or names no category.
        DataError: no row can be used, or no prompt fits.
        StageError: nothing that the teacher said could be kept; bad.jsonl is then in the stage's work folder.
        EndpointStopped: the teacher is an endpoint that cannot be asked any further; what was paid is kept.
    """
    stage = context.stage_as(MultiHop)
    state = MultiHopRun(stage, context.run.seed, context.run.scaled(stage.take) or stage.take, prompts_of(stage),
                        teacher_digest(context, stage))
    if not state.categories:
        raise ConfigError("the list of categories is empty", where=f"stage {stage.name}, prompts.categories",
                          expected="a category a line")
    read = [record for ref in stage.rows for record in context.rows(ref)]
    unfit = state.add_rows(read)
    if read and unfit.total() == len(read):
        raise DataError("no row can be answered", where=f"stage {stage.name}, rows", found=dict(unfit),
                        expected="rows of an import with retrieve: true, or of format multihop")
    with teacher(context, stage) as asking:
        _make(asking, state)
    records = apart(context, stage, state.records(), state.bad)
    outcome = finish(context, stage, records, state.bad, asking.took, read=len(read), unfit=unfit,
                     metrics=_metrics(state, records), facts=_facts(state))
    lines = (json.dumps({"id": one.id, **one.meta["multihop"]}, ensure_ascii=False) + "\n" for one in records)
    (context.out / ROWS).write_text("".join(lines), encoding="utf-8", newline="\n")
    return outcome


def _make(asking: Asking, state: MultiHopRun) -> None:
    while asks := state.ask():
        kept = len(state.made)
        said = asking.round(asks, f"comparisons-{state.round + 1}", "or a lower avoid")
        state.read(asks, said)
        asking.context.event("round", round=state.round, requests=len(asks), kept=len(state.made) - kept,
                             comparisons=len(state.made))
    asks = state.answers()
    state.read_answers(asks, asking.answered(asks, "answers") if asks else {})
    asks = state.finals()
    state.read_finals(asks, asking.answered(asks, "finals") if asks else {})
    if asks := state.paragraphs():
        state.read_paragraphs(asks, asking.answered(asks, "paragraphs"))


def _metrics(state: MultiHopRun, records: Sequence[Record]) -> dict[str, float]:
    written = {record.id for record in records}
    kept = [item for item in state.kept if item.made is not None and item.id in written]
    comparisons, negatives = len(kept), sum(item.id in written for item in state.negatives)
    compared = [item.agreement for item in kept]
    return {
        "requests": float(state.asked.total()), "rounds": float(state.round), "proposed": float(state.proposed),
        "comparisons": float(comparisons), "kept_share": round(comparisons / max(1, state.proposed), 4),
        "negatives": float(negatives), "answered": float(len(records) - comparisons - negatives),
        **({"agreement": round(sum(compared) / len(compared), 4)} if compared else {}),
    }


def _facts(state: MultiHopRun) -> dict[str, Any]:
    return {"requests": dict(state.asked), "categories": len(state.categories), "no_negative": dict(state.skipped)}
