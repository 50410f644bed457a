"""Embeddings as a finished part of a stage's work, as text and back. Makes none."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field

import numpy
from numpy.typing import NDArray


@dataclass(frozen=True)
class Vectors:
    """Embeddings of one batch.

    Attributes:
        ids: of the rows; one that has several texts stands there for each.
        vectors: theirs, [ids, H] in float32.
        cut: ids of rows whose text was longer than the limit.
    """

    ids: list[str]
    vectors: NDArray[numpy.float32]
    cut: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> str:
        data = base64.b64encode(self.vectors.astype("<f4").tobytes()).decode("ascii")
        return json.dumps({"ids": self.ids, "width": self.vectors.shape[1], "vectors": data, "cut": self.cut,
                           "seconds": self.seconds}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Vectors:
        raw = json.loads(text)
        data = numpy.frombuffer(base64.b64decode(raw["vectors"]), dtype="<f4").reshape(len(raw["ids"]), raw["width"])
        return cls(raw["ids"], data, raw["cut"], raw["seconds"])
