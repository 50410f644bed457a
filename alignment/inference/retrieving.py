"""A model that retrieves while it answers: generate -> read the call -> retrieve -> append -> generate, for a batch.

Each row has a conversation of its own, which grows by what its model says and what is found, in the form that trained
rows have; so the ids that are asked are the ids that were learned. A row ends with an answer, or with the reason why
it has none: whatever cannot be a call and looks like one is never taken for an answer. Rows of a batch take each turn
together; what is drawn depends on the row and the turn alone. Loads nothing: engine and retriever are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from alignment.errors import DataError
from alignment.inference.endpoint.reply import TOO_LONG
from alignment.inference.generator import Generator
from alignment.inference.nearest import Hit, Pool
from alignment.inference.requests import Completion, Draw, Failure, Request, Usage
from alignment.records import Message
from alignment.records.importers.retrieval import RETRIEVE, call_turn, found_turn
from alignment.templates import Spoken
from alignment.templates.calls import PROBLEMS

ANSWERED = "answered"
EMPTY, UNKNOWN, NO_QUERY, EMPTY_QUERY, REPEATED, LIMIT, OVERFLOW, REFUSED = (
    "empty-answer", "unknown-function", "call-without-query", "empty-query", "repeated-query", "step-limit",
    "context-overflow", "turn-refused")
ENDS: Mapping[str, str] = {
    ANSWERED: "an answer, cut by max_new_tokens or not",
    EMPTY: "nothing was said",
    **PROBLEMS,
    UNKNOWN: f"a call of another function than {RETRIEVE}",
    NO_QUERY: "a call whose arguments are not one text, the query",
    EMPTY_QUERY: "a query of blanks",
    REPEATED: "a query that was asked before, but for blanks and capitals: it would find the same again",
    LIMIT: "a call after as many as `steps` allows",
    OVERFLOW: "what was found does not fit the prompt any more",
    REFUSED: "the chat template refuses the conversation with what was said or found",
}
"""How a row ends -> what it means. All but the first leave it without an answer."""


class Searching(Protocol):
    """Finds texts (nearest.py)."""

    def find(self, asked: Sequence[tuple[Pool, str]]) -> list[list[Hit]]:
        """For each (pool, query) what is found, the nearest first."""


@dataclass(frozen=True)
class Asked:
    """A question: the turns before anything is retrieved, and what can be."""

    id: str
    prompt: list[Message]
    pool: Pool


@dataclass(frozen=True)
class Step:
    """One call that was answered."""

    said: str
    query: str
    found: tuple[Hit, ...]


@dataclass
class Walk:
    """What became of one question.

    Attributes:
        turns: the conversation so far.
        steps: calls that were answered, in order.
        said: how often the model spoke, the answer and what cannot be read included.
        ended: a key of ENDS; None while it goes on, and where `failure` is set.
        detail: what was seen of the reason, for people.
        text, finished: of the answer; empty, False without one.
        tokens: generated, over all turns.
        used: what each turn took at an endpoint.
        failure: why an endpoint gave no answer.
    """

    id: str
    turns: list[Message]
    pool: Pool
    steps: list[Step] = field(default_factory=list)
    said: int = 0
    ended: str | None = None
    detail: str = ""
    text: str = ""
    finished: bool = False
    tokens: int = 0
    used: list[Usage] = field(default_factory=list)
    failure: Failure | None = None

    @property
    def over(self) -> bool:
        return self.ended is not None or self.failure is not None

    @property
    def usage(self) -> Usage | None:
        """Over all turns; None of a model that computes here."""
        return added(self.used) if self.used else None

    def end(self, reason: str, detail: str = "") -> None:
        self.ended, self.detail = reason, detail[:400]

    def hear(self, completion: Completion, read: Callable[[Completion], Spoken], steps: int) -> tuple[str, str] | None:
        """Take what the model said; gives (what stands beside, query) of a call that is to be answered."""
        self.said += 1
        self.tokens += completion.length
        if completion.usage is not None:
            self.used.append(completion.usage)
        if completion.failure is not None:
            if completion.failure.reason == TOO_LONG and self.steps:
                self.end(OVERFLOW, completion.failure.detail)
            else:
                self.failure = completion.failure
            return None
        spoken = read(completion)
        called = _query(spoken)
        if spoken.problem is not None:
            self.end(spoken.problem, spoken.text)
        elif isinstance(called, str):
            self.end(called, completion.text)
        elif called is None:
            self.text, self.finished = completion.text if completion.text.strip() else "", completion.finished
            self.end(ANSWERED if self.text else EMPTY)
        elif _same(called[1]) in {_same(step.query) for step in self.steps}:
            self.end(REPEATED, called[1])
        elif len(self.steps) >= steps:
            self.end(LIMIT, called[1])
        else:
            return called
        return None

    def find(self, said: str, query: str, found: Sequence[Hit]) -> None:
        """Go on with what was retrieved."""
        self.steps.append(Step(said, query, tuple(found)))
        self.turns += [call_turn(said, query), found_turn("\n\n".join(hit.passage.text for hit in found))]

    def fits(self, engine: Generator, most: int) -> bool:
        """Whether the model can be asked once more; if not, it has ended."""
        if not self.steps:
            return True  # who asks has left out what is too long, or cannot be rendered
        try:
            tokens = engine.prompt_tokens(self.turns)
        except DataError as error:
            self.end(REFUSED, error.problem)
            return False
        if tokens > most:
            self.end(OVERFLOW, f"{tokens} tokens, at most {most}")
        return not self.over


def walk(engine: Generator, asked: Sequence[Asked], search: Searching, *, steps: int, most: int,
         draws: Callable[[str], tuple[Draw, ...]]) -> list[Walk]:
    """Have a model answer a batch of questions over calls of `retrieve`.

    Args:
        steps: calls at most.
        most: tokens of a prompt at most, with all that was found.
        draws: id of a turn (`turn_id`) -> the one draw of it.

    Returns: one walk for each question, in order, each with `ended` or `failure`.

    Raises:
        ModelError, EndpointStopped: as `Generator.generate`; ModelError where the model's template has no calls.
    """
    walks = [Walk(one.id, list(engine.offered(one.prompt)), one.pool) for one in asked]
    going = walks
    while going := [one for one in going if not one.over and one.fits(engine, most)]:
        completions = engine.generate([request_of(one.id, one.turns, one.said, draws) for one in going])
        calls = [(one, called) for one, (completion,) in zip(going, completions, strict=True)
                 if (called := one.hear(completion, engine.spoken, steps)) is not None]
        found = search.find([(one.pool, query) for one, (_, query) in calls])
        for (one, (said, query)), hits in zip(calls, found, strict=True):
            one.find(said, query, hits)
    return walks


def request_of(row: str, turns: Sequence[Message], said: int, draws: Callable[[str], tuple[Draw, ...]]) -> Request:
    """What is asked after the model has spoken `said` times."""
    return Request(row, list(turns), draws(turn_id(row, said)), calls=True)


def turn_id(row: str, said: int) -> str:
    """What a turn's random numbers come from; of the first the row's own id, as of a question that is asked once."""
    return row if said == 0 else f"{row}/turn-{said}"


def added(used: Sequence[Usage]) -> Usage:
    """What several requests took; tokens and cost None where one of them does not say."""
    def total(name: str) -> Any:
        values = [getattr(one, name) for one in used]
        return None if None in values else sum(values)

    return Usage(total("prompt_tokens"), total("completion_tokens"), total("cost"), sum(one.attempts for one in used),
                 next((one.model for one in reversed(used) if one.model), None), sum(one.lost for one in used))


def _query(spoken: Spoken) -> tuple[str, str] | str | None:
    """(what stands beside, query) of a call; a key of ENDS where it is none that can be answered; None of an answer."""
    if spoken.name is None:
        return None
    if spoken.name != RETRIEVE:
        return UNKNOWN
    query = (spoken.arguments or {}).get("query")
    if not isinstance(query, str) or len(spoken.arguments or {}) != 1:
        return NO_QUERY
    return (spoken.text, query) if query.strip() else EMPTY_QUERY


def _same(query: str) -> str:
    """A query without what no retriever hears."""
    return " ".join(query.split()).casefold()
