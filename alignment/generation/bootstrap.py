"""A run of Self-Instruct as a state: which requests come next, and what the answers leave in the pool. Pure.

    ask() -> requests of a round -> read(answers) -> ... -> kinds() -> read_kinds -> examples() -> read_examples

Requests of a round are made from the pool as the round finds it, and answers are read in the order of the requests, so
that nothing depends on batches, on who answers first, or on an interruption. Asks nobody and writes nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignment.config import Sampling, SelfInstruct
from alignment.config.prompts import fill
from alignment.generation import self_instruct as recipe
from alignment.generation.asking import Ask, Said
from alignment.generation.novelty import TOKENS
from alignment.generation.pool import Pool
from alignment.generation.refused import Bad, Refused
from alignment.generation.tasks import Task


@dataclass
class Bootstrap:
    """The pool and what became of every request.

    Attributes:
        take: tasks that are wanted.
        texts: step -> its prompt with slots.
        model: what stands for the teacher in a row's origin.
        proposed: instructions that the teacher has proposed.
        idle: rounds in a row that kept nothing; rounds that an endpoint's passing failures left without any answer do
            not count, as they say nothing of the teacher.
        unclear: answers about a task's kind that said neither yes nor no.
    """

    stage: SelfInstruct
    seeds: Sequence[Task]
    seed: int
    take: int
    texts: Mapping[str, str]
    model: str
    tasks: list[Task] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    proposed: int = 0
    round: int = 0
    idle: int = 0
    unclear: int = 0

    def __post_init__(self) -> None:
        self.pool = Pool(TOKENS[self.stage.novelty_tokens or "rouge"], self.stage.novelty, self.stage.similar)
        for task in self.seeds:
            self.pool.add(task.id, task.instruction)

    @property
    def left(self) -> int | None:
        """Requests that the budget still allows."""
        most = self.stage.max_requests
        return None if most is None else most - self.asked.total()

    # --- new tasks ---

    def ask(self) -> list[Ask]:
        """The requests of the next round; none where the tasks suffice, or the budget does not."""
        if len(self.tasks) >= self.take or self.round >= self.stage.rounds or self.idle >= self.stage.patience:
            return []
        many = self.stage.requests_per_round
        if self.left is not None:
            # A task needs two requests more, and one that cannot have them was proposed in vain.
            many = min(many, self.left - 2 * len(self.tasks) - 2)
        return [self._for_tasks(f"r{self.round + 1}-{number}") for number in range(1, many + 1)]

    def _for_tasks(self, id_: str) -> Ask:
        draw = random.Random(f"{self.seed}/instructions/{id_}")
        machine = draw.sample(self.tasks, min(self.stage.machine_demonstrations, len(self.tasks)))
        seeds = draw.sample(list(self.seeds), self.stage.demonstrations - len(machine))
        shown = [*machine, *seeds]
        draw.shuffle(shown)
        last = (self.stage.last_item or 2 * len(shown)) - 1
        values = {"tasks": recipe.numbered(shown), "next": str(len(shown) + 1), "last": str(last)}
        return self._ask(id_, "instructions", values, self.stage.instructions, seeds, machine)

    def read(self, asks: Sequence[Ask], said: Mapping[str, Said]) -> None:
        """Take the answers of a round in."""
        before = len(self.tasks)
        self.round += 1
        for ask in asks:
            answer = said[ask.id]
            if (text := self._whole(ask, answer)) is None:
                continue
            found = list(recipe.items(text))
            if not found:
                self._refuse(ask, ask.id, "empty-response", answer.text)
            for number, item in enumerate(found, 1):
                self._propose(ask, f"{ask.id}-{number}", item)
        if len(self.tasks) > before:
            self.idle = 0
        elif not all(said[ask.id].passing for ask in asks):
            self.idle += 1

    def _whole(self, ask: Ask, answer: Said) -> str | None:
        """The part of a response that is read; None of one that is refused as a whole."""
        text, stopped = recipe.cut(answer.text, last_item=self.stage.last_item,
                                   blank_line=self.stage.stop_at_blank_line)
        if answer.refused is not None:
            self.bad.append(Bad(ask.id, "instructions", answer.refused, ask.text, ask.origin(), answer.found))
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
        reason = recipe.refusal(item, self.stage.filters, self.stage.language)
        more: dict[str, Any] = {}
        if reason is None:
            reason, more = self.pool.refusal(item)
        if reason is None and len(self.tasks) >= self.take:
            reason = "beyond-take"
        if reason is not None:
            self._refuse(ask, id_, reason, item, more)
            return
        similar, mean = self.pool.similar(item)
        self.tasks.append(Task(
            id_, item, origin={**ask.origin(), "model": self.model}, similar=similar, mean_similar=mean))
        self.pool.add(id_, item)

    # --- what kind, and examples ---

    def kinds(self) -> list[Ask]:
        """Requests that ask whether each task is a classification; a task that the budget leaves out is refused."""
        self._afford(2)
        yes = [task for task in self.seeds if task.is_classification]
        no = [task for task in self.seeds if not task.is_classification]
        made = []
        for task in self.tasks:
            draw = random.Random(f"{self.seed}/classification/{task.id}")
            most = self.stage.classification_examples
            half = draw.sample(yes, min(len(yes), most // 2))
            shown = [*half, *draw.sample(no, min(len(no), most - len(half)))]
            draw.shuffle(shown)
            values = {"examples": "\n\n".join(recipe.shown_kind(one, self.stage.language) for one in shown),
                      "instruction": task.instruction}
            made.append(self._ask(f"{task.id}-kind", "classification", values, self.stage.classification, shown))
        return made

    def _afford(self, each: int) -> None:
        if self.left is None:
            return
        most = max(0, self.left // each)
        for task in self.tasks[most:]:
            self.bad.append(Bad(task.id, "instructions", "over-budget", task.instruction, task.origin))
        del self.tasks[most:]

    def read_kinds(self, asks: Sequence[Ask], said: Mapping[str, Said]) -> None:
        """Take in what kind each task is. One that was not asked, or not told, is no classification, and counted; one
        that the endpoint failed on is refused."""
        asked, self.tasks = self.tasks, []
        for task, ask in zip(asked, asks, strict=True):
            answer = said[ask.id]
            if answer.refused is not None and answer.found is not None:
                origin = {**ask.origin(), "task": task.id, "instruction": task.instruction}
                self.bad.append(Bad(task.id, "classification", answer.refused, task.instruction, origin, answer.found))
                continue
            self.tasks.append(task)
            kind = None if answer.refused else recipe.says_classification(answer.text, self.stage.language)
            self.unclear += kind is None
            task.is_classification = bool(kind)
            task.origin["classification"] = {**ask.origin(), "said": answer.text[:80], "clear": kind is not None}

    def examples(self) -> list[Ask]:
        """Requests for the examples of each task."""
        made = []
        for task in self.tasks:
            first = bool(task.is_classification)
            draw = random.Random(f"{self.seed}/instances/{task.id}")
            like = [one for one in self.seeds if bool(one.is_classification) == first] or list(self.seeds)
            shown = draw.sample(like, min(len(like), self.stage.instance_examples))
            texts = [recipe.shown_instances(one, self.stage.language, output_first=first) for one in shown]
            values = {"examples": "\n\n".join(texts), "instruction": task.instruction,
                      "count": str(self.stage.max_instances)}
            step = "output_first" if first else "input_first"
            made.append(self._ask(f"{task.id}-examples", step, values, self.stage.instances, shown))
        return made

    def read_examples(self, asks: Sequence[Ask], said: Mapping[str, Said]) -> None:
        """Take in the examples; a task that keeps none is refused."""
        kept = []
        for task, ask in zip(self.tasks, asks, strict=True):
            answer, origin = said[ask.id], {**ask.origin(), "task": task.id, "instruction": task.instruction}
            task.origin["instances"] = ask.origin()
            if answer.refused is not None:
                self.bad.append(Bad(task.id, "instances", answer.refused, task.instruction, origin, answer.found))
                continue
            parse = recipe.output_first if task.is_classification else recipe.input_first
            found = parse(answer.text, self.stage.language)
            draw = random.Random(f"{self.seed}/kept/{task.id}")
            task.instances, refused = recipe.kept_instances(
                found, finished=answer.finished, most=self.stage.max_instances, choose=draw.sample)
            self.bad += (Bad(f"{task.id}-{number}", "instances", one.reason, one.text or answer.text, origin)
                         for number, one in enumerate(refused, 1))
            if task.instances:
                kept.append(task)
        self.tasks = kept

    # --- requests and refusals ---

    def _ask(self, id_: str, step: str, values: Mapping[str, str], sampling: Sampling, seeds: Sequence[Task],
             machine: Sequence[Task] = ()) -> Ask:
        self.asked[step] += 1
        return Ask(id_, step, fill(self.texts[step], values), sampling, tuple(task.id for task in seeds),
                   tuple(task.id for task in machine))

    def _refuse(self, ask: Ask, id_: str, reason: str, text: str, more: Mapping[str, Any] | None = None) -> None:
        self.bad.append(Bad(id_, "instructions", reason, text, {**ask.origin(), **(more or {})}))
