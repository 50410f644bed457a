"""Rows that a served model is held to: what it was asked, and what it said where it was measured, number by number.

An evaluation writes them beside its results (FILE); `serving` asks them again before anybody else is answered. A row
keeps the prompt's ids, the greedy answer's ids with their log-probabilities and the distance to the runner-up, and all
tokens that end an answer; of a reward model a text and its score; of an embedder a text and its vector. Plain values;
runs no model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from alignment.errors import DataError
from alignment.inference.requests import Asked, Told
from alignment.records import Message

FILE = "proof.jsonl"
ROWS = 8
"""For each model."""
TOKENS = 64
"""Of an answer, at most."""


@dataclass(frozen=True)
class ProofRow:
    """A prompt and a policy's greedy answer to it.

    Attributes:
        model: artifact key of who answered.
        prompt: its ids.
        answer: ids of the answer, the stop token last where one ended it.
        log_probs: of `answer`, at temperature 1, in nats.
        runners_up, gaps: the likeliest other token in each place, and how much less likely it was, in nats.
        stop: the token that ended it; None where TOKENS, or the stage's max_new_tokens, did.
        stops: all tokens that would have.
        most: tokens that the answer might have had.
        made_by: engine, version, dtype, adapter.
    """

    id: str
    model: str
    messages: list[Message]
    prompt: list[int]
    answer: list[int]
    log_probs: list[float]
    runners_up: list[int]
    gaps: list[float]
    stop: int | None
    stops: list[int]
    most: int
    made_by: dict[str, Any]


@dataclass(frozen=True)
class ScoreRow:
    """A text and what a reward model gave it."""

    id: str
    model: str
    messages: list[Message]
    answer: str
    score: float
    dtype: str


@dataclass(frozen=True)
class VectorRow:
    """A text and the vector that an embedder made of it.

    Attributes:
        pooling, normalise: as `Embedder.embed` has them.
    """

    id: str
    model: str
    text: str
    vector: list[float]
    pooling: Literal["cls", "mean"]
    normalise: bool
    dtype: str


Row = ProofRow | ScoreRow | VectorRow
_KINDS: Mapping[str, type[Row]] = {"answer": ProofRow, "score": ScoreRow, "vector": VectorRow}
T = TypeVar("T", bound=Asked)


def chosen(batches: Sequence[Sequence[T]], seed: int, count: int = ROWS) -> frozenset[str]:
    """Ids of the rows to record, drawn by the seed: of one batch, where it has as many, so that they are answered
    together and cost one more answer's time."""
    ranked = sorted(batches, key=lambda some: hashlib.sha256(f"{seed}/proof/{some[0].id}".encode()).digest())
    return frozenset([row.id for some in ranked for row in some][:count])


def rows_of(ids: Sequence[str], prompts: Sequence[list[Message]], told: Sequence[Told], most: int, model: str,
            made_by: Mapping[str, Any]) -> list[ProofRow]:
    """What `Generator.told` said of these prompts, as rows."""
    made = []
    for id_, messages, one in zip(ids, prompts, told, strict=True):
        others = [next((place for place in token.top if place[0] != token.id), token.top[0]) for token in one.tokens]
        made.append(ProofRow(
            id_, model, messages, list(one.prompt), [token.id for token in one.tokens],
            [_rounded(token.log_prob) for token in one.tokens], [other for other, _ in others],
            [_rounded((token.log_prob or 0.0) - value) for token, (_, value) in zip(one.tokens, others, strict=True)],
            one.stop, list(one.stops), most, dict(made_by)))
    return made


def _rounded(value: float | None) -> float:
    return round(value or 0.0, 6)


def written(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Each as an object of JSON."""
    names = {kind: name for name, kind in _KINDS.items()}
    for row in rows:
        yield {"kind": names[type(row)], **asdict(row)}


def read(path: Path) -> list[Row]:
    """The rows of a file. Raises DataError where it is no such file."""
    rows: list[Row] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            raw = json.loads(line)
            kind = raw.pop("kind")
            rows.append(_KINDS[kind](**raw))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the record of a model's answers cannot be read: {type(error).__name__}: {error}",
                        where=str(path), expected="a file as evaluate stages write it") from error
    return rows
