"""Scores of answers: a function's, a reward model's, a judge's, and their weighted sum. One place for every stage that
chooses between answers.

`AnswerScorer` opens what a `score` names and says what each answer is worth. A judge is a language model that is asked
by a rubric; what cannot be read of it makes the answer's score NaN, with the reason counted, and never a number of our
own. Equal answers to one prompt are asked about once. Does not generate the answers, choose or write.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any, NamedTuple, TypeVar, cast

from alignment.artifacts import digest_of
from alignment.config import Judge, JudgedScorer
from alignment.config.prompts import fill, read_prompt
from alignment.context import StageContext
from alignment.errors import DataError, StageError
from alignment.inference.draws import draws
from alignment.inference.generator import Generator, Scorer, open_engine, open_scorer
from alignment.inference.requests import Completion, Request, batches
from alignment.records import Record
from alignment.rewards import RewardFunction, combine, resolve
from alignment.rewards.judge import CUT, Unread, Verdict, agreed, as_text, parse_score, parse_verdict

TOO_LONG, NO_TEMPLATE = "judge's prompt too long", "judge's prompt refused by its template"
SAID, EXAMPLES = 300, 3
"""Characters of a judge's answer that are kept with a row; answers that could not be read which are kept of a batch."""


_Key = tuple[str, str]
"""(row id, answer without outer blanks)."""
_Judged = tuple[float | None, dict[str, Any] | None]
"""An answer's score, and what is kept beside it."""
_K = TypeVar("_K")
_R = TypeVar("_R")


class Answered(NamedTuple):
    """An answer to a record's prompt."""

    record: Record
    text: str


_UNREAD = "unread: "
_SHARES: dict[Verdict | None, float] = {"first": 1.0, "second": 0.0, "tie": 0.5, None: 0.5}


class Compared(NamedTuple):
    """What a judge says of two answers that it was shown in both orders, or why that could not be read.

    Attributes:
        said: with the first answer in the first place; swapped: with the second answer there, so that "first" is it.
    """

    said: Verdict | Unread
    swapped: Verdict | Unread

    @property
    def unread(self) -> Unread | None:
        """Why there is no verdict, where there is none."""
        return next((one for one in self if isinstance(one, Unread)), None)

    @property
    def verdict(self) -> Verdict | None:
        """Which answer is better; None where the orders disagree, and where a verdict could not be read."""
        if isinstance(self.said, Unread) or isinstance(self.swapped, Unread):
            return None
        return agreed(self.said, self.swapped)

    @property
    def share(self) -> float | None:
        """The first answer's: 1 where it is better, 0, 0.5 for a tie and where the orders disagree; None where a
        verdict could not be read."""
        return None if self.unread is not None else _SHARES[self.verdict]

    @property
    def written(self) -> tuple[str, str]:
        """`said` and `swapped` as texts; `read_back` is the inverse."""
        said, swapped = (f"{_UNREAD}{one.reason}" if isinstance(one, Unread) else one for one in self)
        return said, swapped

    @classmethod
    def read_back(cls, said: str, swapped: str) -> Compared:
        """Of texts that `written` made."""
        return cls(*(Unread(text.removeprefix(_UNREAD)) if text.startswith(_UNREAD) else cast("Verdict", text)
                     for text in (said, swapped)))


@dataclass(frozen=True)
class Marks:
    """What an answer is worth.

    Attributes:
        score: the weighted sum; NaN where a part that is asked for could not be had.
        function, model, judge: its parts, None where not asked for or not had.
        judged: what the judge said, or of what it compared how much was won; None without one.
    """

    score: float
    function: float | None = None
    model: float | None = None
    judge: float | None = None
    judged: dict[str, Any] | None = None


@dataclass
class JudgeTally:
    """What asking the judge came to, over some answers.

    Attributes:
        requests: answers that it was asked for; read: those that were read.
        refused: why the others were not -> how many; `examples` has the first of them, with reason and text.
        compared, disagreed: pairs of answers with two verdicts, and those of them on which the two orders disagree.
        used: what each request took at an endpoint, failures included.
    """

    requests: int = 0
    read: int = 0
    tokens: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    examples: list[dict[str, str]] = field(default_factory=list)
    compared: int = 0
    disagreed: int = 0
    used: list[dict[str, Any]] = field(default_factory=list)

    def add(self, other: JudgeTally) -> None:
        """Take another's counts in."""
        for name in ("requests", "read", "tokens", "compared", "disagreed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.refused = dict(Counter(self.refused) + Counter(other.refused))
        self.examples = [*self.examples, *other.examples][:EXAMPLES]
        self.used = [*self.used, *other.used]

    def demand(self, where: str) -> None:
        """Raises StageError: nothing that the judge said could be read."""
        if self.read:
            return
        raise StageError("nothing that the judge said could be read", where=f"{where}, score.judge",
                         found=self.refused or "it was asked nothing",
                         expected="a score or a verdict in the form that its rubric asks for",
                         hint="; ".join(f"{one['id']} ({one['reason']}): {one['text'][:80]!r}" for one in self.examples)
                         or None)

    @property
    def read_share(self) -> float:
        """Share of what was to be asked that could be read."""
        return round(self.read / max(1, self.read + sum(self.refused.values())), 4)

    def facts(self) -> dict[str, Any]:
        """For a manifest."""
        return {key: value for key, value in asdict(self).items() if key != "used"}


class AnswerScorer:
    """What a stage's `score` names, opened.

    Args:
        engines: models that are open already, by stage: a judge among them is not opened again, so that an endpoint has
            one count of what was spent.
        batch: requests in one generation batch of a judge that computes here.
        place: the key of the stage that says `score`, for errors.

    Raises:
        ConfigError: the function, or the rubric, cannot be found or used.
    """

    def __init__(self, context: StageContext, score: JudgedScorer, engines: Mapping[str, Generator],
                 batch: int, place: str = "score") -> None:
        self.context, self.score, self.batch, judge = context, score, batch, score.judge
        self.function: RewardFunction | None = None
        if score.function is not None:
            self.function = resolve(score.function, f"{place}.function")
        self.reward: Scorer | None = None if score.model is None else open_scorer(context, score.model)
        self.judge: Judge | None = judge
        self.engine: Generator | None = None
        self.owned: list[Generator | Scorer] = [] if self.reward is None else [self.reward]
        if judge is not None:
            self.rubric = read_prompt(judge.file, f"stage {context.stage.name}, {place}.judge.prompt")
            self.engine = engines.get(judge.model)
            if self.engine is None:
                self.engine = open_engine(context, judge.model)
                self.owned.append(self.engine)
            known = context.inputs[judge.model].manifest.facts.get("context_length")
            self.longest: int | None = None if known is None else known - judge.sampling.max_new_tokens

    def load(self) -> None:
        """Load its models now. Raises ModelError, ConfigError as `Opened.load`."""
        for opened in self.owned:
            opened.load()

    def close(self) -> None:
        """Give back the memory of the models that it opened itself."""
        for opened in self.owned:
            opened.close()

    def marks(self, answers: Sequence[Answered]) -> tuple[list[Marks], JudgeTally]:
        """What each answer is worth, in order, and what asking the judge came to.

        Raises:
            DataError: a record lacks what a function needs, or the reward model's template refuses a conversation.
            EndpointStopped: the judge is an endpoint that cannot be asked any further.
            Exception: what a function of the user's raises.
        """
        judged, tally = self._judged(answers)
        return [Marks(combine(self.score, value, reward, score, self.judge), value, reward, score, said)
                for (value, reward), (score, said) in zip(self.unjudged(answers), judged, strict=True)], tally

    def unjudged(self, answers: Sequence[Answered]) -> list[tuple[float | None, float | None]]:
        """(function's value, reward model's score) of each answer, without a word of the judge. Raises as `marks`."""
        rewards: Sequence[float | None] = [None] * len(answers)
        if self.reward is not None and answers:
            rewards = self.reward.score([(one.record.prompt, one.text) for one in answers])
        return [(None if self.function is None else float(self.function(one.record, one.text)), reward)
                for one, reward in zip(answers, rewards, strict=True)]

    def compare(self, pairs: Sequence[tuple[Answered, Answered]]) -> tuple[list[Compared | None], JudgeTally]:
        """What the judge of mode compare says of two answers to one row each, in both orders; None of two that are the
        same but for outer blanks: it is not asked about these. Raises EndpointStopped as `marks`."""
        keys: list[tuple[_Key, _Key] | None] = []
        records = dict[_Key, Record]()
        for one, other in pairs:
            first, second = ((answered.record.id, answered.text.strip()) for answered in (one, other))
            keys.append((first, second) if first != second else None)
            records |= {first: one.record, second: other.record}
        tally = JudgeTally()
        told = self._both_orders(list(dict.fromkeys(filter(None, keys))), records, tally)
        for compared in told.values():
            _count(compared, tally)
        return [None if pair is None else told[pair] for pair in keys], tally

    def _judged(self, answers: Sequence[Answered]) -> tuple[list[_Judged], JudgeTally]:
        if self.judge is None:
            return [(None, None)] * len(answers), JudgeTally()
        # By row id and text: a score can never land on another row's answer, and equal answers are asked about once.
        distinct = {(one.record.id, one.text.strip()): one.record for one in answers if one.text.strip()}
        told, tally = (self._scored if self.judge.mode == "score" else self._compared)(distinct)
        return [told.get((one.record.id, one.text.strip()), (None, None)) for one in answers], tally

    def _scored(self, distinct: Mapping[_Key, Record]) -> tuple[dict[_Key, _Judged], JudgeTally]:
        assert self.judge is not None
        low, high = self.judge.bounds
        tally, told = JudgeTally(), dict[_Key, _Judged]()
        asked = {key: self._request(record, {"answer": key[1], "low": f"{low:g}", "high": f"{high:g}"}, key[1])
                 for key, record in distinct.items()}
        said = self._said(asked, tally)
        for key, answer in said.items():
            found = _read(answer, lambda text: parse_score(text, low, high), asked[key].id, tally)
            text = {"said": answer.text[:SAID]} if isinstance(answer, Completion) else {}
            told[key] = (None, {**text, "refused": found.reason}) if isinstance(found, Unread) else (found, text)
        return told, tally

    def _compared(self, distinct: Mapping[_Key, Record]) -> tuple[dict[_Key, _Judged], JudgeTally]:
        tally, rows = JudgeTally(), dict[str, list[_Key]]()
        for key in distinct:
            rows.setdefault(key[0], []).append(key)
        pairs = [pair for keys in rows.values() for pair in combinations(keys, 2)]
        counts = {key: {"won": 0, "lost": 0, "tied": 0, "orders_disagree": 0, "unread": 0} for key in distinct}
        for (first, second), compared in self._both_orders(pairs, distinct, tally).items():
            _count(compared, tally)
            of_first, of_second = ("unread",) * 2 if compared.unread else {
                "first": ("won", "lost"), "second": ("lost", "won"), "tie": ("tied", "tied"),
                None: ("orders_disagree",) * 2}[compared.verdict]
            counts[first][of_first] += 1
            counts[second][of_second] += 1
        return {key: (_share(own), own) for key, own in counts.items()}, tally

    def _both_orders(self, pairs: Sequence[tuple[_Key, _Key]], records: Mapping[_Key, Record], tally: JudgeTally
                     ) -> dict[tuple[_Key, _Key], Compared]:
        asked = {(first, second): self._request(
            records[first], {"first": first[1], "second": second[1]}, [first[1], second[1]])
            for first, second in [*pairs, *((second, first) for first, second in pairs)]}
        read: dict[tuple[_Key, _Key], Verdict | Unread] = {
            pair: _read(answer, parse_verdict, asked[pair].id, tally)
            for pair, answer in self._said(asked, tally).items()}
        return {(first, second): Compared(read[first, second], read[second, first]) for first, second in pairs}

    def _request(self, record: Record, values: Mapping[str, str], texts: object) -> Request:
        assert self.judge is not None
        # Named by what it asks about and by nothing else, so that it is found again whatever batch it is made in.
        id_ = f"{record.id}/judge/{digest_of(texts)[:16]}"
        text = fill(self.rubric, {"prompt": as_text(record.prompt), "reference": record.completion or "", **values})
        return Request(id_, [{"role": "user", "content": text}],
                       draws(id_, self.context.run.seed, 1, self.judge.sampling, model="judge"))

    def _said(self, asked: Mapping[_K, Request], tally: JudgeTally) -> dict[_K, Completion | Unread]:
        """What the judge says to each request, or why it was not asked."""
        assert self.engine is not None
        assert self.judge is not None
        said: dict[_K, Completion | Unread] = {key: reason for key, request in asked.items()
                                               if (reason := self._unfit(request)) is not None}
        names = {request.id: key for key, request in asked.items() if key not in said}
        fit = [asked[key] for key in names.values()]
        # An endpoint has a pace of its own, and is asked for all of them at once.
        there = self.context.run.stage(self.judge.model).endpoint is not None
        for some in ([fit] if fit else []) if there else batches(fit, self.batch):
            for request, (made,) in zip(some, self.engine.generate(some), strict=True):
                said[names[request.id]] = made
                tally.requests, tally.tokens = tally.requests + 1, tally.tokens + made.length
                tally.used += [] if made.usage is None else [made.usage._asdict()]
        return {key: said[key] for key in asked}

    def _unfit(self, request: Request) -> Unread | None:
        assert self.engine is not None
        try:
            length = self.engine.prompt_tokens(request.prompt)
        except DataError:
            return Unread(NO_TEMPLATE)
        return Unread(TOO_LONG) if self.longest is not None and length > self.longest else None


def _read(answer: Completion | Unread, parse: Callable[[str], _R | Unread], id_: str, tally: JudgeTally) -> _R | Unread:
    """What is read of an answer, counted."""
    text = ""
    if isinstance(answer, Unread):
        found: _R | Unread = answer
    elif answer.failure is not None:
        found, text = Unread(answer.failure.reason), answer.failure.detail
    else:
        text = answer.text
        found = parse(text) if answer.finished else Unread(CUT)
    if not isinstance(found, Unread):
        tally.read += 1
    else:
        tally.refused[found.reason] = tally.refused.get(found.reason, 0) + 1
        if len(tally.examples) < EXAMPLES:
            tally.examples.append({"id": id_, "reason": found.reason, "text": text[:SAID]})
    return found


def _count(compared: Compared, tally: JudgeTally) -> None:
    if compared.unread is None:
        tally.compared, tally.disagreed = tally.compared + 1, tally.disagreed + (compared.verdict is None)


def _share(counts: Mapping[str, int]) -> float | None:
    """The share of its comparisons that an answer won, a tie counting half; None where none could be read."""
    read = sum(counts.values()) - counts["unread"]
    return (counts["won"] + (counts["tied"] + counts["orders_disagree"]) / 2) / read if read else None
