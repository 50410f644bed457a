"""What the models of an evaluate stage can retrieve, embedded once for all of them, in batches that are resumed.

Called by evaluate.py. Which texts there are, and what is done with them, is `evaluation.retrieving`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from alignment.config import Evaluate
from alignment.context import StageContext
from alignment.distributed.batches import make_parts, plan
from alignment.errors import DataError
from alignment.evaluation.results import Question
from alignment.evaluation.retrieving import PassageBatch, passages_of_corpus, passages_of_rows
from alignment.inference.nearest import Pool
from alignment.inference.vectors import Vectors
from alignment.progress import console

GROUPS = 16
"""Rows, or groups of a corpus, in one part."""


@dataclass(frozen=True)
class Pools:
    """What can be retrieved: of each row by its id, or one for all; and what the manifest says of it."""

    own: dict[str, Pool]
    corpus: Pool | None
    facts: dict[str, int]


def pools_of(context: StageContext, stage: Evaluate, questions: Sequence[Question]) -> Pools:
    """Embed what can be retrieved, once for all models."""
    assert stage.retrieve is not None
    ref = stage.retrieve.corpus
    groups = passages_of_rows(questions) if ref is None else passages_of_corpus(context.rows(ref))
    if not groups:
        raise DataError("no row of the corpus has a passage", where=f"stage {stage.name}, retrieve.corpus", found=ref,
                        expected="rows of a passage format, of documents, or of an import with retrieve: true")
    together = [groups[start: start + GROUPS] for start in range(0, len(groups), GROUPS)]
    planned = plan(context, together, lambda group: [group.id, [one.text for one in group.passages]])
    parts = make_parts(context, planned, PassageBatch, Vectors, folder="passages",
                       label=f"{stage.name}: passages", unit="rows" if ref is None else "groups of passages")
    made: dict[str, list[Any]] = {}
    cut = 0
    for part in parts:
        cut += len(part.cut)
        for id_, vector in zip(part.ids, part.vectors, strict=True):
            made.setdefault(id_, []).append(vector)
    count = sum(len(group.passages) for group in groups)
    if cut:
        console.print(f"! {stage.name}: {cut:,} of {count:,} passages have over {stage.retrieve.max_tokens} tokens and "
                      "are found by what stands before that", markup=False)
    context.event("passages", passages=count, cut=cut, corpus=ref)
    facts = {"passages": count, "passages_cut": cut}
    if ref is None:
        return Pools({group.id: Pool(group.passages, numpy.stack(made[group.id])) for group in groups}, None, facts)
    every = [vector for group in groups for vector in made[group.id]]
    return Pools({}, Pool(tuple(one for group in groups for one in group.passages), numpy.stack(every)), facts)
