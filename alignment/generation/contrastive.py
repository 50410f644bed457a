"""Contrastive pairs: which answers are good, what a teacher is asked for beside them, and when a try is rejected.

State in, requests out, answers and scores in, pairs out. A row that no try serves is refused with all of its tries.
What is drawn comes from the run's seed and the row's id, so that nothing depends on batches, on who answers first, or
on an interruption. Asks nobody, scores nothing and writes nothing.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from alignment.config import Contrastive
from alignment.config.prompts import fill
from alignment.generation.asking import Ask, Said
from alignment.generation.novelty import Novelty
from alignment.generation.refused import Bad
from alignment.inference.judging import Marks
from alignment.records import Message, Record
from alignment.records.importers.checks import same
from alignment.rewards.judge import as_text
from alignment.words import words


@dataclass(frozen=True)
class Try:
    """An answer that was to be an opposite, and what became of it.

    Attributes:
        outcome: kept, or why not.
        said: of the judge, where one scores.
    """

    request: str
    text: str
    outcome: str
    score: float | None = None
    other: str | None = None
    said: dict[str, Any] | None = None
    found: str | None = None

    def line(self) -> dict[str, Any]:
        """What a row keeps of it."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass
class Contrast:
    """Rows on their way to a pair.

    Attributes:
        rows: those that can serve, ids unique.
        texts: step -> its prompt with slots; empty where rows ask by themselves.
        model: what stands for the teacher in a row's origin.
        waiting: row id -> its tries so far.
        outcomes: what became of every try.
    """

    stage: Contrastive
    rows: Sequence[Record]
    seed: int
    texts: Mapping[str, str]
    model: str
    pairs: list[Record] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    good: dict[str, Marks] = field(default_factory=dict)
    waiting: dict[str, list[Try]] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    number: int = 0

    def __post_init__(self) -> None:
        self.by_id = {record.id: record for record in self.rows}
        self.kinds = sorted({str(record.meta["kind"]) for record in self.rows if record.meta.get("kind")})

    def read_good(self, marks: Mapping[str, Marks]) -> None:
        """Take in what the rows' own answers are worth: those that are good wait for an opposite."""
        for record in self.rows:
            own = marks[record.id]
            if not math.isfinite(own.score):
                self._refuse(record, "answers", "no-score", own)
            elif own.score < self.stage.min_score:
                self._refuse(record, "answers", "under-min-score", own)
            else:
                self.good[record.id] = own
                self.waiting[record.id] = []

    def ask(self) -> list[Ask]:
        """The requests of the next try, one for each row that still waits; none where that was the last."""
        if self.number > self.stage.retries:
            self._give_up(list(self.waiting), None)
            return []
        most = self.stage.max_requests
        if most is not None and most - self.asked < len(self.waiting):
            self._give_up(list(self.waiting)[max(0, most - self.asked):], "over-budget")
        self.number += 1
        made = [self._ask(self.by_id[row]) for row in self.waiting]
        self.asked += len(made)
        return made

    def _ask(self, record: Record) -> Ask:
        id_, other = f"{record.id}/try-{self.number}", self._other(record)
        if self.stage.ask == "other_kind":
            kind = str(record.meta["kind"])
            turns: list[Message] = [{**turn, "content": turn["content"].replace(kind, str(other))}
                                    for turn in record.prompt]
            return Ask(id_, "opposites", str(turns[-1]["content"]), self.stage.opposites, (record.id,),
                       turns=tuple(turns))
        values = {"prompt": as_text(record.prompt), "answer": record.completion or "",
                  "kind": str(record.meta.get("kind") or ""), "other": other or ""}
        return Ask(id_, "opposites", fill(self.texts["opposite"], values), self.stage.opposites, (record.id,))

    def _other(self, record: Record) -> str | None:
        """The kind that this try asks for: all others in an order of the row's own, then again."""
        others = [kind for kind in self.kinds if kind != record.meta.get("kind")]
        random.Random(f"{self.seed}/other/{record.id}").shuffle(others)
        return others[(self.number - 1) % len(others)] if others else None

    def answers(self, asks: Sequence[Ask], said: Mapping[str, Said]) -> dict[str, str]:
        """Request id -> the answer, of those that could be an opposite; what is wrong with the others is noted."""
        found = {}
        for ask in asks:
            record, answer = self.by_id[ask.seeds[0]], said[ask.id]
            reason = answer.refused or self._unlike(record, answer)
            if reason is None:
                found[ask.id] = answer.text
                continue
            self._try(record, Try(ask.id, answer.text, reason, other=self._other(record), found=answer.found))
            if answer.refused is not None and not answer.passing and answer.found is None:
                self._give_up([record.id], reason)  # its prompt would be refused again
        return found

    def _unlike(self, record: Record, answer: Said) -> str | None:
        """Why a text cannot stand against the good answer, whatever it scores."""
        if not answer.text.strip():
            return "empty"
        if not answer.finished:
            return "cut"
        good = record.completion or ""
        if _plain(answer.text) == _plain(good):
            return "same-answer"
        if any(same(answer.text, one.text) for one in self.waiting[record.id]):
            return "same-try"  # what it is worth is known
        pool = Novelty(words)
        pool.add(good)
        return "alike" if pool.nearest(answer.text, self.stage.most_alike) is not None else None

    def read(self, asks: Sequence[Ask], answers: Mapping[str, str], marks: Mapping[str, Marks]) -> None:
        """Take in what the answers of a try are worth: an opposite makes a pair, the others wait for another try.

        Args:
            answers, marks: by request id, of those that `answers` gave.
        """
        for ask in asks:
            if ask.id not in answers:
                continue
            record, own = self.by_id[ask.seeds[0]], marks[ask.id]
            outcome = self._outcome(self.good[record.id].score, own.score)
            self._try(record, Try(ask.id, answers[ask.id], outcome or "kept", _number(own.score), self._other(record),
                                  own.judged))
            if outcome is None:
                self._pair(record, ask, answers[ask.id], own)

    def _outcome(self, good: float, score: float) -> str | None:
        stage = self.stage
        if not math.isfinite(score):
            return "no-score"
        if score >= stage.min_score:
            return "still-good"
        if good - score <= stage.min_margin:
            return "gap-too-small"
        return "too-bad" if stage.min_rejected is not None and score < stage.min_rejected else None

    def _try(self, record: Record, made: Try) -> None:
        self.outcomes[made.outcome] += 1
        self.waiting[record.id].append(made)

    def _pair(self, record: Record, ask: Ask, text: str, own: Marks) -> None:
        tries, good = self.waiting.pop(record.id), self.good[record.id]
        meta = {
            **record.meta, "prompt_id": record.id, "chosen_score": good.score, "rejected_score": own.score,
            "gap": good.score - own.score, "tries": len(tries),
            **({} if good.judged is None else {"chosen_judged": good.judged, "rejected_judged": own.judged}),
            "origin": {"request": ask.id, "prompt": ask.digest, "row": record.id, "model": self.model,
                       "tries": [one.line() for one in tries]},
        }
        self.pairs.append(Record(f"{record.id}-contrast", "preference", record.prompt, record.completion, text,
                                 meta=meta))

    def _give_up(self, rows: Sequence[str], reason: str | None) -> None:
        """Rows that get no further try, each kept with all that it had.

        Args:
            reason: why; None: what became of the last try.
        """
        for row in rows:
            tries = self.waiting.pop(row)
            self._refuse(self.by_id[row], "opposites", reason or tries[-1].outcome, self.good[row], tries)

    def _refuse(self, record: Record, step: str, reason: str, good: Marks, tries: Sequence[Try] = ()) -> None:
        judged = {} if good.judged is None else {"chosen_judged": good.judged}
        origin = {"row": record.id, "model": self.model, "prompt": record.prompt, "chosen": record.completion,
                  "chosen_score": _number(good.score), **judged, "tries": [one.line() for one in tries]}
        text = tries[-1].text if tries else record.completion or ""
        self.bad.append(Bad(record.id, step, reason, text, origin, tries[-1].found if tries else None))

    @property
    def in_order(self) -> list[Record]:
        """The pairs in the order of their rows."""
        made = {pair.meta["prompt_id"]: pair for pair in self.pairs}
        return [made[record.id] for record in self.rows if record.id in made]


def _plain(text: str) -> str:
    """What two answers have in common that differ in case and blanks alone; x > 3 and x < 3 are two."""
    return " ".join(text.casefold().split())


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
