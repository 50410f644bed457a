"""A run of document_qa as a state: which requests come next, and which rows the answers leave. Pure.

    ask() -> requests for questions -> read -> answers() -> requests to answer them -> read_answers -> ask() -> ...

Requests of a round are made from what the rounds before have kept, and answers are read in the order of the requests,
so that nothing depends on batches, on who answers first, or on an interruption. Asks nobody and writes nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignment.config import DocumentQa, Sampling
from alignment.config.prompts import fill
from alignment.config.stages.generate.document_qa import Branch
from alignment.generation import document_qa as recipe
from alignment.generation.asking import Ask, Said
from alignment.generation.novelty import TOKENS
from alignment.generation.passages import Passage
from alignment.generation.pool import Pool
from alignment.generation.refused import Bad, Refused
from alignment.generation.self_instruct import cut, items
from alignment.records import Record
from alignment.records.importers.passages import fill as fill_passage
from alignment.records.importers.turns import user


@dataclass
class Asked:
    """A question about a passage.

    Attributes:
        answer: "" until it has one.
        origin: what made it: request, prompt, seeds, machine, model, passage, branch; then its answer's request.
        similar: [(id, ROUGE-L F)] of the most similar questions before it; mean_similar over all of them.
    """

    id: str
    branch: Branch
    text: str
    passage: Passage
    origin: dict[str, Any]
    similar: list[tuple[str, float]] = field(default_factory=list)
    mean_similar: float = 0.0
    answer: str = ""

    def record(self, source: str, passage_prompt: str) -> Record:
        """The row that it becomes."""
        meta: dict[str, Any] = {
            "source": source, "group": self.passage.group, "passage": self.passage.text, "question": self.text,
            "kind": self.branch, "origin": self.origin,
            "similar": [[id_, score] for id_, score in self.similar], "mean_similar": self.mean_similar}
        if self.passage.document:
            meta["document"] = self.passage.document
        return Record(self.id, "prompt-completion",
                      [user(fill_passage(passage_prompt, self.passage.text, self.text))], self.answer, meta=meta)


@dataclass
class Interview:
    """The pool of questions and what became of every request.

    Attributes:
        seeds: branch -> its questions; their ids are BRANCH-seed-NUMBER.
        take: rows that are wanted.
        texts: step -> its prompt with slots.
        model: what stands for the teacher in a row's origin.
        rows: questions with an answer; `waiting` have none yet.
        proposed: questions that the teacher has proposed; trimmed: of how many something was cut off.
        idle: rounds in a row that kept nothing; rounds that an endpoint's passing failures left without any answer do
            not count, as they say nothing of the teacher.
    """

    stage: DocumentQa
    passages: Sequence[Passage]
    seeds: Mapping[Branch, Sequence[str]]
    seed: int
    take: int
    texts: Mapping[str, str]
    model: str
    rows: list[Asked] = field(default_factory=list)
    waiting: list[Asked] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    proposed: int = 0
    trimmed: int = 0
    round: int = 0
    idle: int = 0

    def __post_init__(self) -> None:
        self.pool = Pool(TOKENS[self.stage.novelty_tokens or "rouge"], self.stage.novelty, self.stage.similar)
        for branch, questions in self.seeds.items():
            for number, text in enumerate(questions, 1):
                self.pool.add(f"{branch}-seed-{number}", text)
        self.turns: Counter[Branch] = Counter()
        self.order: dict[Branch, list[int]] = {}
        self.about: dict[str, tuple[Branch, Passage]] = {}
        self.passing = False

    @property
    def left(self) -> int | None:
        """Requests that the budget still allows."""
        most = self.stage.max_requests
        return None if most is None else most - self.asked.total()

    # --- questions ---

    def ask(self) -> list[Ask]:
        """The requests of the next round; none where the rows suffice, or the budget does not."""
        wanted = self.take - len(self.rows)
        if wanted <= 0 or self.round >= self.stage.rounds or self.idle >= self.stage.patience:
            return []
        asked = self.turns.total() * self.stage.questions_per_request
        many = self.stage.requests_of_round(wanted, min(1.0, len(self.rows) / asked) if asked else 1.0)
        if self.left is not None:
            # A question that cannot have its answer was asked for in vain.
            many = min(many, max(self.left // (1 + self.stage.questions_per_request), int(self.left >= 2)))
        return [self._for_questions(f"r{self.round + 1}-{number}") for number in range(1, many + 1)]

    def _for_questions(self, id_: str) -> Ask:
        branch = self._next_branch()
        passage = self._next_passage(branch)
        draw = random.Random(f"{self.seed}/questions/{id_}")
        own = [one for one in self.rows if one.branch == branch]
        machine = draw.sample(own, min(self.stage.machine_demonstrations, len(own)))
        seeds = draw.sample(range(len(self.seeds[branch])), self.stage.demonstrations - len(machine))
        shown = [*(one.text for one in machine), *(self.seeds[branch][index] for index in seeds)]
        draw.shuffle(shown)
        count = self.stage.questions_per_request
        values = {"passage": passage.text, "questions": recipe.numbered(shown), "next": str(len(shown) + 1),
                  "count": str(count), "last": str(len(shown) + count)}
        self.about[id_] = (branch, passage)
        return self._ask(id_, f"{branch}_questions", values, self.stage.questions,
                         [f"{branch}-seed-{index + 1}" for index in seeds], [one.id for one in machine])

    def _next_branch(self) -> Branch:
        """Branches take turns by their share."""
        turn, share = self.turns.total(), self.stage.judgmental_share
        branch: Branch = "judgmental" if int((turn + 1) * share + 1e-9) > int(turn * share + 1e-9) else "open"
        self.turns[branch] += 1
        return branch

    def _next_passage(self, branch: Branch) -> Passage:
        """Each passage once, in an order that is drawn anew when all had their turn."""
        turn, many = self.turns[branch] - 1, len(self.passages)
        if turn % many == 0:
            self.order[branch] = list(range(many))
            random.Random(f"{self.seed}/passages/{branch}/{turn // many}").shuffle(self.order[branch])
        return self.passages[self.order[branch][turn % many]]

    def read(self, asks: Sequence[Ask], said: Mapping[str, Said]) -> None:
        """Take in the questions of a round; those that are kept wait for their answers."""
        self.round += 1
        self.passing = all(said[ask.id].passing for ask in asks)
        for ask in asks:
            answer = said[ask.id]
            if (text := self._whole(ask, answer)) is None:
                continue
            found = list(items(text))
            if not found:
                self._refuse(ask, ask.id, "empty-response", answer.text)
            for number, item in enumerate(found, 1):
                self._propose(ask, f"{ask.id}-{number}", item)

    def _whole(self, ask: Ask, answer: Said) -> str | None:
        """The part of a response that is read; None of one that is refused as a whole."""
        last = self.stage.demonstrations + self.stage.questions_per_request + 1
        text, stopped = cut(answer.text, last_item=last, blank_line=self.stage.stop_at_blank_line)
        if answer.refused is not None:
            self.bad.append(Bad(ask.id, ask.step, answer.refused, ask.text, self._origin(ask), answer.found))
        elif not answer.finished and not stopped:
            self._refuse(ask, ask.id, "response-cut", answer.text)
        else:
            return text
        return None

    def _propose(self, ask: Ask, id_: str, item: str | Refused) -> None:
        self.proposed += 1
        if isinstance(item, Refused):
            self._refuse(ask, id_, item.reason, item.text)
            return
        branch, passage = self.about[ask.id]
        question, trimmed = recipe.question_of(item)
        self.trimmed += trimmed
        reason = recipe.refusal(question, branch, self.stage.filters, self.stage.language)
        more: dict[str, Any] = {}
        if reason is None:
            reason, more = self.pool.refusal(question)
        if reason is None and len(self.rows) + len(self.waiting) >= self.take:
            reason = "beyond-take"
        if reason is not None:
            self._refuse(ask, id_, reason, item, more)
            return
        similar, mean = self.pool.similar(question)
        self.waiting.append(Asked(
            id_, branch, question, passage, {**self._origin(ask), "model": self.model},
            similar, mean))
        self.pool.add(id_, question)

    # --- answers ---

    def answers(self) -> list[Ask]:
        """Requests that ask for the answers of the questions that wait; one that the budget leaves out is refused."""
        if self.left is not None:
            for one in self.waiting[max(0, self.left):]:
                self.bad.append(Bad(one.id, f"{one.branch}_questions", "over-budget", one.text, one.origin))
            del self.waiting[max(0, self.left):]
        return [self._ask(f"{one.id}-answer", f"{one.branch}_answer",
                          {"passage": one.passage.text, "question": one.text}, self.stage.answers)
                for one in self.waiting]

    def read_answers(self, asks: Sequence[Ask], said: Mapping[str, Said]) -> None:
        """Take in the answers of a round; a question without a good one is refused."""
        before, waiting, self.waiting = len(self.rows), self.waiting, []
        for one, ask in zip(waiting, asks, strict=True):
            answer = said[ask.id]
            one.origin["answer"] = {"request": ask.id, "prompt": ask.digest}
            made: str | Refused
            if answer.refused is not None:
                made = Refused(answer.refused, one.text)
            elif not answer.finished:
                made = Refused("answer-cut", answer.text)
            else:
                made = recipe.answer_of(answer.text, one.branch, one.text, one.passage.text, self.stage.filters,
                                        self.stage.language)
            if isinstance(made, Refused):
                self.bad.append(Bad(one.id, ask.step, made.reason, made.text, {**one.origin, "question": one.text},
                                    answer.found))
            else:
                one.answer = made
                self.rows.append(one)
        if len(self.rows) > before:
            self.idle = 0
        elif not self.passing and not (asks and all(said[ask.id].passing for ask in asks)):
            self.idle += 1

    # --- requests and refusals ---

    def _ask(self, id_: str, step: str, values: Mapping[str, str], sampling: Sampling, seeds: Sequence[str] = (),
             machine: Sequence[str] = ()) -> Ask:
        self.asked[step] += 1
        return Ask(id_, step, fill(self.texts[step], values), sampling, tuple(seeds), tuple(machine))

    def _origin(self, ask: Ask) -> dict[str, Any]:
        branch, passage = self.about[ask.id]
        return {**ask.origin(), "passage": passage.id, "branch": branch}

    def _refuse(self, ask: Ask, id_: str, reason: str, text: str, more: Mapping[str, Any] | None = None) -> None:
        self.bad.append(Bad(id_, ask.step, reason, text, {**self._origin(ask), **(more or {})}))
