"""Models that retrieve while they answer, for one batch; and what their traces are worth. Knows no Ray and no files.

`PassageBatch` embeds what can be found, once for all models; `RetrieveBatch` is `AnswerBatch` over the loop of
inference/retrieving.py. `trace_measures` and `ends` are pure: traces in, numbers out. Everything is joined by row id.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from alignment.config import Evaluate
from alignment.config.stages.retrieve import Retrieve
from alignment.context import StageContext
from alignment.evaluation.answers import AnswerBatch, Answers
from alignment.evaluation.results import Question
from alignment.inference.draws import draws
from alignment.inference.generator import open_embedder
from alignment.inference.nearest import DenseRetriever, Pool
from alignment.inference.requests import Draw, Request
from alignment.inference.retrieving import ANSWERED, Asked, Walk, request_of, walk
from alignment.inference.vectors import Vectors
from alignment.records import Record
from alignment.records.importers.retrieval import Paragraph, paragraphs_of

TOGETHER = 32
"""Passages of a corpus that are embedded together."""


@dataclass(frozen=True)
class Searched(Question):
    """A question with what can be retrieved for it; without a pool, a corpus that all share."""

    pool: Pool | None = None


@dataclass(frozen=True)
class Passages:
    """Texts that are embedded together: those of a row, or some of a corpus."""

    id: str
    passages: tuple[Paragraph, ...]


def passages_of_rows(questions: Sequence[Question]) -> list[Passages]:
    """Each row's own passages."""
    return [Passages(question.id, tuple(paragraphs_of(question.record))) for question in questions]


def passages_of_corpus(records: Sequence[Record]) -> list[Passages]:
    """The passages of a row set, each text once, in the order of the rows, in groups."""
    every = list({one.text: one for record in records for one in paragraphs_of(record)}.values())
    return [Passages(f"corpus-{start}", tuple(every[start: start + TOGETHER]))
            for start in range(0, len(every), TOGETHER)]


class PassageBatch:
    """Embeds passages as a stage's `retrieve` asks. Each group by itself: what a row's vectors are, to the last bit,
    must not depend on the rows beside it."""

    def __init__(self, context: StageContext) -> None:
        self.retriever = retriever_of(context)

    def close(self) -> None:
        """Give back the model's memory."""
        self.retriever.close()

    def make(self, items: Sequence[Passages]) -> Vectors:
        """Vectors of one batch; the id of a group stands for each of its passages. Raises ModelError when the model
        cannot be loaded."""
        began = time.monotonic()
        ids: list[str] = []
        cut: list[str] = []
        made: list[NDArray[numpy.float32]] = []
        for item in items:
            vectors, long = self.retriever.pooled([one.text for one in item.passages])
            ids += [item.id] * len(item.passages)
            cut += [item.id] * len(long)
            made.append(vectors)
        return Vectors(ids, numpy.concatenate(made), cut, round(time.monotonic() - began, 3))


def retriever_of(context: StageContext) -> DenseRetriever:
    """The stage's retriever; loads nothing yet."""
    retrieve = context.stage_as(Evaluate).retrieve
    assert isinstance(retrieve, Retrieve)
    return DenseRetriever(open_embedder(context, retrieve.embedder), retrieve)


class RetrieveBatch(AnswerBatch):
    """Answers of the model `name` that it comes to over calls of `retrieve`, each with its trace. Kept number by number
    is the first turn.

    Args:
        corpus: what is searched for every question, where that is not each row's own.
    """

    def __init__(self, context: StageContext, *, name: str, proof: Collection[str] = (),
                 corpus: Pool | None = None) -> None:
        super().__init__(context, name=name, proof=proof)
        self.corpus, self.retriever = corpus, retriever_of(context)

    def close(self) -> None:
        self.retriever.close()
        super().close()

    def answer(self, items: Sequence[Question], made: Answers) -> None:
        retrieve = self.stage.retrieve
        assert retrieve is not None
        asked = [Asked(one.id, one.prompt, self._pool(one)) for one in items]
        walks = walk(self.engine, asked, self.retriever, steps=retrieve.steps, most=self.stage.longest_prompt,
                     draws=self._draws)
        for item, one in zip(items, walks, strict=True):
            usage = {} if one.usage is None else {"usage": one.usage._asdict()}
            if one.failure is not None:
                made.failed[one.id] = {"reason": one.failure.reason, "found": one.failure.detail, **usage}
            else:
                made.answers[one.id] = {"text": one.text, "finished": one.finished, "tokens": one.tokens, **usage,
                                        **trace_of(one, paragraphs_of(item.record))}

    def _pool(self, item: Question) -> Pool:
        pool = item.pool if isinstance(item, Searched) and item.pool is not None else self.corpus
        assert pool is not None, item.id
        return pool

    def _requests(self, items: Sequence[Question]) -> list[Request]:
        """Of the first turn, for engines that hear of a batch before it is made."""
        return [request_of(one.id, self.engine.offered(one.prompt), 0, self._draws) for one in items]

    def _draws(self, turn: str) -> tuple[Draw, ...]:
        return draws(turn, self.seed, 1, self.stage.sampling, model="evaluate")


def trace_of(one: Walk, paragraphs: Sequence[Paragraph]) -> dict[str, Any]:
    """How a walk went, as JSON: `ended`, `detail`, `turns`, and `steps` with their passages; `gold` is whether the
    row's answer rests on one, whatever pool it came from.

    Args:
        paragraphs: of the row itself.
    """
    gold = {one.text for one in paragraphs if one.gold}
    steps = [{"said": step.said, "query": step.query, "found": [
        {"title": hit.passage.title, "text": hit.passage.text, "score": round(hit.score, 6),
         "gold": hit.passage.text in gold} for hit in step.found]} for step in one.steps]
    return {"ended": one.ended, "detail": one.detail, "turns": one.said, "steps": steps}


def trace_measures(answer: Mapping[str, Any], paragraphs: Sequence[Paragraph]) -> dict[str, float]:
    """Numbers of one trace.

    Returns: answered: 1 where it ended with an answer; turns: how often the model spoke; calls: those that were
        answered; gold_recall: of the row's gold passages the share that was found at any step; fact_recall: of its
        supporting facts (HotpotQA's sentences) the share that stands in a passage that was found. NaN where the row has
        none.
    """
    found = {hit["text"] for step in answer["steps"] for hit in step["found"]}
    gold = [one for one in paragraphs if one.gold]
    facts = sum(len(one.facts) for one in gold)
    return {
        "answered": float(answer["ended"] == ANSWERED),
        "turns": float(answer["turns"]),
        "calls": float(len(answer["steps"])),
        "gold_recall": sum(one.text in found for one in gold) / len(gold) if gold else math.nan,
        "fact_recall": sum(len(one.facts) for one in gold if one.text in found) / facts if facts else math.nan,
    }


def ends(answered: Mapping[str, Answers], questions: Sequence[Question]) -> dict[str, dict[str, int]]:
    """Model -> how its rows ended -> how many, the answered first."""
    counts = {name: Counter(str(own.answers[q.id]["ended"]) for q in questions) for name, own in answered.items()}
    return {name: {ANSWERED: count[ANSWERED], **{reason: many for reason, many in count.most_common()
                                                 if reason != ANSWERED}} for name, count in counts.items()}
