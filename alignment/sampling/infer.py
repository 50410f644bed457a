"""One batch of prompts: a model's answers, unscored. What every process that infers does.

A row that cannot be asked, or that an endpoint gives no answer to, is kept with its reason and the others go on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from alignment.config import Infer
from alignment.context import StageContext
from alignment.errors import DataError
from alignment.inference.draws import draws
from alignment.inference.generator import open_engine
from alignment.inference.requests import Request
from alignment.records import Record, bad_row
from alignment.sampling.prompts import TOO_LONG


@dataclass(frozen=True)
class Inferred:
    """What became of one batch.

    Attributes:
        answers: {"id", "index", "text", "tokens", "finished"} of each; of an endpoint's also "usage".
        bad: rows of bad.jsonl; of an endpoint's failures also index, found and usage.
        seconds: spent answering; the only number here that is not the same when made again.
        engine: who answered (Generator.made_by); empty of an endpoint.
    """

    answers: list[dict[str, Any]] = field(default_factory=list)
    bad: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    engine: dict[str, Any] = field(default_factory=dict)

    def used(self) -> list[dict[str, Any] | None]:
        """What each answer and failure took at an endpoint; None of a model that computes here."""
        return [one.get("usage") for some in (self.answers, self.bad) for one in some]

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Inferred:
        """Inverse of to_json; raises ValueError, TypeError or KeyError on anything else."""
        return cls(**json.loads(text))


class InferBatch:
    """Answers batches of an infer stage: a maker of distributed.batches. The model is loaded at the first batch."""

    def __init__(self, context: StageContext) -> None:
        self.stage, self.seed = context.stage_as(Infer), context.run.seed
        self.engine = open_engine(context, self.stage.model)

    @property
    def ahead(self) -> bool:
        """Whether the model works on several batches at once and would hear of another."""
        return self.engine.ahead

    def begin(self, items: Sequence[Record]) -> None:
        """Have the model begin with a batch that will be made soon."""
        self.engine.begin(self._requests(self._fitting(items)[0]))

    def close(self) -> None:
        """Give back the model's memory."""
        self.engine.close()

    def make(self, items: Sequence[Record]) -> Inferred:
        """Raises ModelError when the model cannot be loaded, EndpointStopped when it is an endpoint that cannot be
        asked any further."""
        self.engine.load()
        fit, bad = self._fitting(items)
        began, answers = time.monotonic(), []
        asked, records = self._requests(fit), {record.id: record for record in fit}
        for request, completions in zip(asked, self.engine.generate(asked) if asked else [], strict=True):
            for index, said in enumerate(completions):
                usage = {} if said.usage is None else {"usage": said.usage._asdict()}
                if said.failure is not None:
                    bad.append({**bad_row(records[request.id], said.failure.reason), "index": index,
                                "found": said.failure.detail, **usage})
                else:
                    answers.append({"id": request.id, "index": index, "text": said.text, "tokens": said.length,
                                    "finished": said.finished, **usage})
        return Inferred(answers, bad, round(time.monotonic() - began, 3), dict(self.engine.made_by))

    def _fitting(self, items: Sequence[Record]) -> tuple[list[Record], list[dict[str, Any]]]:
        """Rows whose prompt fits, and the others; a prompt that the chat template refuses is one of them."""
        fit, bad = [], []
        for record in items:
            try:
                long = self.engine.prompt_tokens(record.prompt) > self.stage.longest_prompt
            except DataError as error:
                bad.append(bad_row(record, error.problem))
                continue
            if long:
                bad.append(bad_row(record, TOO_LONG))
            else:
                fit.append(record)
        return fit, bad

    def _requests(self, records: Sequence[Record]) -> list[Request]:
        return [Request(record.id, record.prompt,
                        draws(record.id, self.seed, self.stage.n, self.stage.sampling, model="infer"))
                for record in records]
