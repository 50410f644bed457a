"""One batch of requests to the teacher, answered. What every process of a generate stage does; reads no answer.

A prompt that is too long for the stage is not asked, and says so in its answer's place; so does a request that an
endpoint gave no answer to. Neither is an empty answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from alignment.artifacts import digest_of
from alignment.config import Generate, Sampling
from alignment.context import StageContext
from alignment.errors import DataError
from alignment.inference.draws import draws
from alignment.inference.endpoint import reply
from alignment.inference.generator import Generator, open_engine
from alignment.inference.requests import Completion, Request
from alignment.records import Message

TOO_LONG = "prompt-too-long"
NO_TEMPLATE = "prompt-refused-by-template"
FOR_GOOD = frozenset({reply.FILTERED, reply.TOO_LONG})
"""Reasons of an endpoint that would come again, though nothing was paid."""


@dataclass(frozen=True)
class Ask:
    """A request to the teacher.

    Attributes:
        id: unique within the stage; its draws come from it and the run's seed.
        seeds, machine: ids of the tasks that the prompt shows.
        turns: the whole conversation, where it is more than `text` as the user's one turn.
    """

    id: str
    step: str
    text: str
    sampling: Sampling
    seeds: tuple[str, ...] = ()
    machine: tuple[str, ...] = ()
    turns: tuple[Message, ...] = ()

    @property
    def prompt(self) -> list[Message]:
        return list(self.turns) or [{"role": "user", "content": self.text}]

    @property
    def digest(self) -> str:
        """Of the whole prompt."""
        return digest_of(list(self.turns) or self.text)[:16]

    def origin(self) -> dict[str, Any]:
        """What is kept of it beside what came of it."""
        return {"request": self.id, "prompt": self.digest, "seeds": list(self.seeds), "machine": list(self.machine)}


@dataclass(frozen=True)
class Said:
    """What the teacher said to a request.

    Attributes:
        finished: False where max_new_tokens cut it.
        refused: why there is no answer: it was not asked, or the endpoint gave none; `text` is empty then.
        found: what was seen of the endpoint's failure; None where there was none.
        passing: whether that failure says nothing of the request: asked at another time it may be answered.
        usage: what it took at an endpoint, failures included; None of a teacher that computes here.
    """

    id: str
    text: str = ""
    finished: bool = True
    tokens: int = 0
    refused: str | None = None
    found: str | None = None
    passing: bool = False
    usage: dict[str, Any] | None = None

    @classmethod
    def of(cls, id_: str, one: Completion) -> Said:
        """What an engine gave."""
        usage = None if one.usage is None else one.usage._asdict()
        if one.failure is not None:
            nothing_came = one.usage is not None and one.usage.prompt_tokens == 0
            return cls(id_, "", False, 0, one.failure.reason, one.failure.detail,
                       nothing_came and one.failure.reason not in FOR_GOOD, usage)
        # An endpoint counts the token that ends an answer itself, and gives no ids.
        return cls(id_, one.text, one.finished, len(one.tokens) if usage is None else one.length, usage=usage)


@dataclass(frozen=True)
class Part:
    """The answers of one batch; `seconds` were spent on them, by `engine` (Generator.made_by)."""

    said: list[Said] = field(default_factory=list)
    seconds: float = 0.0
    engine: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Part:
        raw = json.loads(text)
        return cls([Said(**said) for said in raw["said"]], raw["seconds"], raw.get("engine", {}))


class AskBatch:
    """Answers batches of requests: a maker of distributed.batches.

    Args:
        engine: an open one that stays open; None: one of its own.
    """

    def __init__(self, context: StageContext, engine: Generator | None = None) -> None:
        self.context, stage = context, context.stage_as(Generate)
        self.longest, self.owned = stage.longest_prompt, engine is None
        self.engine = engine or open_engine(context, stage.teacher)

    @property
    def ahead(self) -> bool:
        """Whether the teacher works on several batches at once and would hear of another."""
        return self.engine.ahead

    def begin(self, items: Sequence[Ask]) -> None:
        """Have the teacher begin with a batch that will be made soon."""
        self.engine.begin(self._requests([ask for ask in items if self._refused(ask) is None]))

    def close(self) -> None:
        if self.owned:
            self.engine.close()

    def make(self, items: Sequence[Ask]) -> Part:
        """Raises ModelError, ConfigError: the model cannot be loaded. EndpointStopped: it is an endpoint that cannot be
        asked any further."""
        began = time.monotonic()
        refused = {ask.id: reason for ask in items if (reason := self._refused(ask)) is not None}
        asked = [ask for ask in items if ask.id not in refused]
        requests = self._requests(asked)
        answers = self.engine.generate(requests) if requests else []
        said = [Said(id_, refused=reason) for id_, reason in refused.items()]
        said += [Said.of(ask.id, one) for ask, (one,) in zip(asked, answers, strict=True)]
        return Part(said, round(time.monotonic() - began, 3), dict(self.engine.made_by) if requests else {})

    def _requests(self, asked: Sequence[Ask]) -> list[Request]:
        seed = self.context.run.seed
        return [Request(ask.id, ask.prompt, draws(ask.id, seed, 1, ask.sampling, model="teacher")) for ask in asked]

    def _refused(self, ask: Ask) -> str | None:
        try:
            return TOO_LONG if self.engine.prompt_tokens(ask.prompt) > self.longest else None
        except DataError:
            return NO_TEMPLATE
