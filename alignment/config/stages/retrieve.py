"""Passages that a model asks for while it answers: the keys of it, for every stage that has a model answer so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from alignment.config.stages.base import ModelRef, RowsPlace
from alignment.config.stages.fields import Name, Positive, RowsRef, Strict


class Retrieve(Strict):
    """The model is asked the question alone and may call `retrieve` before it answers (docs/multihop.md). What it
    is given are the texts whose vectors are nearest to its query, by cosine, over all of them."""

    embedder: Name
    """The stage whose model makes vectors of passages and queries: an import with role: embedder, or any that makes a
    language model."""
    pooling: Literal["cls", "mean"]
    """What of the last hidden layer stands for the text: `cls`, its first token (BERT, BGE), or `mean`, over all tokens
    (MiniLM, E5; language models)."""
    corpus: RowsRef | None = None
    """STAGE/SPLIT whose passages are all searched for every question. Left out: each row's own passages alone, as in
    HotpotQA's distractor setting."""
    steps: Positive = 4
    """Calls at most. A model that calls once more has no answer to the question, and is counted under step-limit."""
    top_k: Positive = 1
    """Passages that one call gives, the nearest first. Rows of HotpotQA teach a call that gives two."""
    max_tokens: Annotated[int, Field(ge=4)] = 256
    """What of a passage or query is embedded, in tokens, marks included; longer ones are cut for that, and counted.
    The model is given them whole."""
    query_prefix: str | None = None
    """Set before every query when it is embedded: "query: " of E5."""
    passage_prefix: str | None = None
    """The same of passages: "passage: " of E5."""

    def model_refs(self) -> Iterator[ModelRef]:
        yield ModelRef(("retrieve", "embedder"), self.embedder, "embedder")

    def row_refs(self, asked: str) -> Iterator[RowsPlace]:
        """The corpus, where it is another row set than the one that is asked."""
        if self.corpus not in (None, asked):
            yield RowsPlace(("retrieve", "corpus"), str(self.corpus))
