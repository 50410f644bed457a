"""Texts that lie nearest to a query: exact cosine over the vectors of an embedder, in numpy.

A pool holds what can be found for a row: its own passages, or those of a whole corpus. Exact, since ten thousand texts
take a millisecond and an index would have errors of its own. Loads no model by itself; makes no pools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray

from alignment.config.stages.retrieve import Retrieve
from alignment.inference.generator import Embedder
from alignment.records.importers.retrieval import Paragraph


@dataclass(frozen=True)
class Pool:
    """Texts and their vectors, [texts, H] in float32, each of length 1."""

    passages: tuple[Paragraph, ...]
    vectors: NDArray[numpy.float32]


class Hit(NamedTuple):
    """A text that was found, and its cosine to the query."""

    passage: Paragraph
    score: float


def nearest(pool: Pool, query: NDArray[numpy.float32], top_k: int) -> list[Hit]:
    """The `top_k` texts of a pool that are nearest to a query's vector [H], the nearest first; of equal ones the
    earlier."""
    scores = pool.vectors @ query
    order = numpy.argsort(-scores, kind="stable")[:top_k]
    return [Hit(pool.passages[at], float(scores[at])) for at in order]


class DenseRetriever:
    """Finds texts by an embedder, as a stage's `retrieve` asks."""

    def __init__(self, embedder: Embedder, config: Retrieve) -> None:
        self.embedder, self.config = embedder, config

    def close(self) -> None:
        """Give back the embedder's memory."""
        self.embedder.close()

    def pooled(self, texts: Sequence[str]) -> tuple[NDArray[numpy.float32], list[int]]:
        """Vectors of texts that can be found, [texts, H], and the places of those that were cut."""
        return self._vectors([f"{self.config.passage_prefix or ''}{text}" for text in texts])

    def find(self, asked: Sequence[tuple[Pool, str]]) -> list[list[Hit]]:
        """For each (pool, query) what is found. One query after another: its vector, to the last bit, must not depend
        on which others are asked beside it."""
        return [nearest(pool, self._vectors([f"{self.config.query_prefix or ''}{query}"])[0][0], self.config.top_k)
                for pool, query in asked]

    def _vectors(self, texts: list[str]) -> tuple[Any, list[int]]:
        return self.embedder.embed(texts, pooling=self.config.pooling, max_tokens=self.config.max_tokens,
                                   normalise=True)
