"""What a measure is: one answer's number, what it needs of a row, and how rows become the number of the table."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

T = TypeVar("T")
SHARE, POINTS, POSITIVE = "0 to 1", "0 to 100", "0 or more"
"""Spans: what a measure's numbers can be."""


@dataclass(frozen=True)
class Reply:
    """One answer, and what its row says of a good one.

    Attributes:
        finished: whether it ended by itself.
        references: every accepted answer, the row's own first.
        kind: the row's kind, where it has one.
        likelihood: (summed log-probability in nats, tokens) of the row's own reference under the model; None where it
            was not measured.
    """

    text: str
    finished: bool = True
    references: tuple[str, ...] = ()
    kind: str | None = None
    likelihood: tuple[float, int] | None = None


@dataclass(frozen=True)
class Rules:
    """What one evaluation compares by, the same for all its rows.

    Attributes:
        pattern: group `answer` of its first match is the part of an answer that short-answer measures compare.
        language: ISO 639, of the answers.
        segmentation: `jieba`: ROUGE counts Chinese words; None: Chinese characters.
        kinds: every kind among the rows.
        cut: sacrebleu's tokenizer for these references (`bleu.cut_of`).
    """

    pattern: str | None = None
    language: str | None = None
    segmentation: str | None = None
    kinds: frozenset[str] = field(default=frozenset())
    cut: str = "13a"

    def part(self, text: str) -> str:
        """The part of an answer that is compared."""
        return answer_of(text, self.pattern)

    def parts(self, texts: Collection[str]) -> list[str]:
        return [self.part(text) for text in texts]

    def first(self, read: Callable[[str], T | None], texts: Collection[str]) -> T | None:
        """What `read` makes of the first text's part that it makes something of."""
        return next((found for text in self.parts(texts) if (found := read(text)) is not None), None)


@dataclass(frozen=True)
class Pooled:
    """A number of all rows together that is no mean of the rows' own, made from sums over rows.

    Attributes:
        counts: what one row adds to the sums (K numbers).
        total: (B, K) sums of B samples of rows -> (B,) numbers; NaN where there is nothing to divide by.
        alone: what one row adds -> its own number.
    """

    counts: Callable[[Reply, Rules], tuple[float, ...]]
    total: Callable[[Floats], Floats]
    alone: Callable[[tuple[float, ...]], float]


@dataclass(frozen=True)
class Measure:
    """One metric.

    Attributes:
        title: in tables.
        text: what it measures, in a sentence.
        source: where its definition stands.
        span: SHARE, POINTS, ...
        better: which way is better; `neither` where it only describes.
        number: of one answer whose row lacks nothing; None where `pooled` makes it from what the row adds.
        lacks: what the row lacks for it, in words; None where it can be measured. The answer takes no part in that.
        needs: what `lacks` asks for, in words; None: nothing.
        pooled: how the table's number is made, where it is not the mean over rows.
        signature: what decides the number beyond the texts, as its community writes it, from the rules and the numbers
            of references that rows have.
    """

    title: str
    text: str
    source: str
    span: str
    better: Literal["higher", "lower", "neither"]
    number: Callable[[Reply, Rules], float] | None = None
    lacks: Callable[[Reply, Rules], str | None] = lambda reply, rules: None
    needs: str | None = None
    pooled: Pooled | None = None
    signature: Callable[[Rules, Collection[int]], str] | None = None

    def of(self, reply: Reply, rules: Rules, counts: tuple[float, ...] | None = None) -> float:
        """One answer's number; NaN where its row lacks what it takes. `counts`: what the row adds to the sums, where
        that was counted already."""
        if self.lacks(reply, rules):
            return math.nan
        if self.pooled is not None:
            return self.pooled.alone(self.pooled.counts(reply, rules) if counts is None else counts)
        assert self.number is not None
        return self.number(reply, rules)


REFERENCES = "rows have references"


def no_reference(reply: Reply, rules: Rules) -> str | None:
    """`lacks` of what compares with references."""
    return None if reply.references else "no reference answer"


def answer_of(text: str, pattern: str | None) -> str:
    """Group `answer` of the pattern's first match (dot matches newlines), or the whole text without one."""
    match = re.search(pattern, text, re.DOTALL) if pattern is not None else None
    found = match["answer"] if match is not None else None
    return text if found is None else str(found)
