"""A stage of recipe multihop as a state: which requests come next, and what the answers leave. Pure.

    ask() -> requests of a round -> read(answers) -> ... -> answers() -> read_answers -> finals() -> read_finals
    -> paragraphs() -> read_paragraphs -> rows

Comparisons that pass and rows of data sets become items; of each every answer is written greedily. Requests of a round
are made from what earlier rounds kept, and answers are read in the order of the requests, so that nothing depends on
batches or on an interruption. Asks nobody and writes nothing.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from alignment.config import MultiHop, Sampling
from alignment.config.prompts import fill
from alignment.generation import comparison as parts
from alignment.generation.asking import Ask, Said
from alignment.generation.comparison import Comparison
from alignment.generation.labelled import continued
from alignment.generation.novelty import Novelty
from alignment.generation.refused import Bad, Refused
from alignment.records import Record
from alignment.records.importers.retrieval import NO_ANSWER, Retrieval, SubQuestion, record_of, row_of, with_answers
from alignment.rewards.answers import token_f1

T = TypeVar("T")
STEPS = {"yes-no": "reason", **dict.fromkeys(("number", "date", "span", "spans"), "thought")}
"""Kind of a row with one question -> the step that writes its answer; all others: a sentence."""

LABELLED = ("comparison", "reason", "thought", "sentence")
"""Steps whose answers are labelled lines."""
KEPT: tuple[str, ...] = ("group", "kind", "passage", "question", "references")
"""What of a row's meta its answered row keeps."""


@dataclass
class Item:
    """A question whose answers are being written.

    Attributes:
        meta: group, kind and what else its record keeps; origin is added.
        made: the comparison that it was made from; None of a row of a data set.
    """

    id: str
    row: Retrieval
    meta: dict[str, Any]
    origin: dict[str, Any]
    made: Comparison | None = None
    written: list[str] = field(default_factory=list)
    agreement: float = 1.0


class MultiHopRun:
    """Everything that came of a stage's requests.

    Args:
        seed: of the run. take: comparisons that are wanted.
        texts: step -> its prompt with slots. model: what stands for the teacher in a row's origin.

    Attributes:
        kept: items with all of their answers; made: comparisons that passed their checks, whatever became of them.
        proposed: comparisons that were asked for and answered.
        idle: rounds in a row that kept nothing, but for those that an endpoint's passing failures left unanswered.
        skipped: negatives that could not be made -> how many. about: request -> its category.
    """

    def __init__(self, stage: MultiHop, seed: int, take: int, texts: Mapping[str, str], model: str) -> None:
        self.stage, self.seed, self.take, self.texts, self.model = stage, seed, take, texts, model
        self.no_answer = stage.no_answer or NO_ANSWER
        self.categories = [line.strip() for line in texts["categories"].splitlines() if line.strip()]
        self.items: list[Item] = []
        self.kept: list[Item] = []
        self.made: list[Item] = []
        self.negatives: list[Item] = []
        self.bad: list[Bad] = []
        self.skipped: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.about: dict[str, str] = {}
        self.proposed = self.round = self.idle = self.reserved = 0
        self.pool = Novelty()
        self.known: set[tuple[frozenset[str], str]] = set()
        for shown in re.findall(r"^Question:(.+)$", texts["comparison"], re.M):  # what the prompt shows is not new
            self.pool.add(shown.strip())

    @property
    def left(self) -> int | None:
        """Requests that the budget still allows, beside what the rows to answer need."""
        most = self.stage.max_requests
        return None if most is None else most - self.asked.total() - self.reserved

    # --- rows of data sets ---

    def add_rows(self, records: Sequence[Record]) -> Counter[str]:
        """Take rows to answer in; returns why others cannot be used."""
        unfit: Counter[str] = Counter()
        for record in records:
            row = row_of(record)
            if row is None:
                unfit["row: no question with retrieved paragraphs"] += 1
                continue
            origin = {"row": record.id}
            if self.left is not None and row.to_answer > self.left:
                self.bad.append(Bad(record.id, "answers", "over-budget", row.question, origin))
                continue
            self.reserved += row.to_answer
            meta = {key: record.meta[key] for key in KEPT if key in record.meta}
            self.items.append(Item(f"{record.id}-answered", row, meta, origin))
        return unfit

    # --- comparisons ---

    def ask(self) -> list[Ask]:
        """The requests of the next round; none where the comparisons suffice, or the budget does not."""
        if len(self.made) >= self.take or self.round >= self.stage.rounds or self.idle >= self.stage.patience:
            return []
        many = self.stage.requests_per_round
        if self.left is not None:
            # Whatever a request brings must be answered within the budget, or it was made in vain.
            many = min(many, (self.left - self.stage.each * len(self.made)) // (1 + self.stage.each))
        return [self._for_comparison(number) for number in range(1, many + 1)]

    def _for_comparison(self, number: int) -> Ask:
        at = self.round * self.stage.requests_per_round + number - 1
        # Every category once before one comes again, each time in another order.
        times, place = divmod(at, len(self.categories))
        order = list(self.categories)
        random.Random(f"{self.seed}/categories/{times}").shuffle(order)
        category = order[place]
        taken = [entity for item in self.made if item.made is not None and item.made.category == category
                 for entity in item.made.entities]
        values = {"category": category, "avoid": ", ".join(taken[-self.stage.avoid:] if self.stage.avoid else [])
                  or "(none)"}
        ask = self._ask(f"r{self.round + 1}-{number}", "comparison", values, self.stage.comparison)
        self.about[ask.id] = category
        return ask

    def read(self, asks: Sequence[Ask], said: Mapping[str, Said]) -> None:
        """Take the answers of a round in."""
        before = len(self.made)
        self.round += 1
        for ask in asks:
            answer = said[ask.id]
            self.proposed += answer.refused is None
            found = self._whole(ask, answer, partial(parts.comparison, category=self.about[ask.id]))
            if found is None:
                continue
            if reason := self._not_new(found):
                self._refuse(ask, Refused(reason, answer.text))
                continue
            self.pool.add(found.question)
            self.known.add(parts.same_things(found))
            item = self._item(ask, found)
            self.made.append(item)
            self.items.append(item)
        if len(self.made) > before:
            self.idle = 0
        elif not all(said[ask.id].passing for ask in asks):
            self.idle += 1

    def _not_new(self, made: Comparison) -> str | None:
        if parts.same_things(made) in self.known:
            return "duplicate"
        if self.pool.nearest(made.question, self.stage.novelty) is not None:
            return "not-novel"
        return "beyond-take" if len(self.made) >= self.take else None

    def _item(self, ask: Ask, made: Comparison) -> Item:
        subs = tuple(SubQuestion(*one) for one in zip(
            made.questions, (None, None), made.answers, made.paragraphs, strict=True))
        info = {"category": made.category, "entities": list(made.entities), "attribute": made.attribute,
                "drawn_answers": list(made.answers), "drawn_final_answer": made.final}
        row = Retrieval("gen_qa.json", made.question, made.final, None, subs, True, info, "comparison")
        return Item(ask.id, row, {"group": f"multihop-{ask.id}", "kind": "gen-comparison"}, ask.origin(), made)

    # --- answers, all of them greedy ---

    def answers(self) -> list[Ask]:
        """A request for each answer that is to be written."""
        asks = []
        for item in self.items:
            for number, one in enumerate(item.row.sub_questions, 1):
                if not one.unanswerable:
                    values = {"question": one.question, "paragraph": one.paragraph, "no_answer": self.no_answer,
                              "answer": one.answer or ""}
                    asks.append(self._ask(f"{item.id}-{number}", self._step(item, one), values, self.stage.answers))
        self.reserved = 0
        return asks

    @staticmethod
    def _step(item: Item, one: SubQuestion) -> str:
        usual = "answer" if one.answer is None else "sentence"
        single = item.made is None and not item.row.hops
        return STEPS.get(str(item.meta.get("kind")), usual) if single else usual

    def read_answers(self, asks: Sequence[Ask], said: Mapping[str, Said]) -> None:
        """Take the answers in; an item with one that is refused is refused."""
        by_id, items = {ask.id: ask for ask in asks}, []
        for item in self.items:
            item.written = []
            for number, one in enumerate(item.row.sub_questions, 1):
                if one.unanswerable:
                    item.written.append(self.no_answer)
                    continue
                ask = by_id[f"{item.id}-{number}"]
                written = self._whole(ask, said[ask.id], self._reader(item, one, ask.step), item)
                if written is None:
                    break
                item.written.append(written)
            else:
                if self._agrees(item):
                    items.append(item)
        self.items = items

    def _reader(self, item: Item, one: SubQuestion, step: str) -> Callable[[str], str | Refused]:
        single = item.made is None and not item.row.hops
        known, own = item.meta.get("references", ()), item.row.answer
        # What stands in a row as its final answer is what is to be written.
        references = [ref for ref in known if single and (ref == own or ref != item.row.final_answer)] or (
            [one.answer] if one.answer else [])
        if step in ("answer", "sentence"):
            read = parts.sentence if step == "answer" else parts.told
            return partial(read, question=one.question, references=references, no_answer=self.no_answer)
        return partial(parts.reasoned if step == "reason" else parts.thought, references=references)

    def _agrees(self, item: Item) -> bool:
        if item.made is None:
            return True
        item.agreement = min(token_f1(new, [drawn]) for new, drawn in zip(item.written, item.made.answers, strict=True))
        if item.agreement >= self.stage.min_agreement:
            return True
        text = " | ".join(f"{drawn} -> {new}" for new, drawn in zip(item.written, item.made.answers, strict=True))
        self.bad.append(Bad(item.id, "answers", "answers-disagree", text, item.origin))
        return False

    def finals(self) -> list[Ask]:
        """A request for what follows from the answers, where there are several and all were found."""
        return [self._ask(f"{item.id}-final", "final", {
            "question": item.row.question, "facts": parts.facts(item.written)}, self.stage.answers)
            for item in self.items if item.row.sums_up]

    def read_finals(self, asks: Sequence[Ask], said: Mapping[str, Said]) -> None:
        """Take the final answers in: items that have one are kept."""
        by_id = {ask.id: ask for ask in asks}
        for item in self.items:
            ask, final = by_id.get(f"{item.id}-final"), item.written[-1] if not item.row.hops else self.no_answer
            if ask is not None:
                references = [item.row.answer] if item.row.answer else []
                read = partial(parts.conclusion, references=references, no_answer=self.no_answer)
                found = self._whole(ask, said[ask.id], read, item)
                if found is None:
                    continue
                final = found
            item.row = with_answers(item.row, item.written, final)
            self.kept.append(item)
        self.items = []

    # --- negatives ---

    def paragraphs(self) -> list[Ask]:
        """Make the negatives; those whose paragraph the teacher has to write are requests."""
        asks = []
        kept = [item for item in self.kept if item.made is not None]
        for item in kept:
            draw = random.Random(f"{self.seed}/negative/{item.id}")
            if draw.random() >= self.stage.negative_share:
                continue
            swap, at = draw.choice(self.stage.negatives), draw.randrange(2)
            if swap != "attribute":
                self._swapped(item, swap, at, draw, kept)
                continue
            assert item.made is not None
            others = sorted({other.made.attribute for other in kept if other.made is not None}
                            - {item.made.attribute})
            if not others:
                self.skipped["no other attribute"] += 1
            elif self.left is not None and self.left < 1:
                self.skipped["over the budget"] += 1
            else:
                values = {"entity": item.made.entities[at], "attribute": draw.choice(others),
                          "other": item.made.attribute}
                asks.append(self._ask(f"{item.id}-paragraph-{at + 1}", "paragraph", values, self.stage.comparison))
        return asks

    def _swapped(self, item: Item, swap: str, at: int, draw: random.Random, kept: Sequence[Item]) -> None:
        assert item.made is not None
        if swap == "entity":
            found = [item.made.paragraphs[1 - at]]
        else:
            found = [other.made.paragraphs[side] for other in kept if other.made is not None and other is not item
                     and other.made.attribute != item.made.attribute for side in (0, 1)]
        found = [one for one in found if not parts.names(one, item.made.entities[at])]
        if found:
            self._negative(item, swap, at, draw.choice(found))
        else:
            self.skipped["every paragraph names the thing" if swap == "entity" else "no other paragraph"] += 1

    def _negative(self, item: Item, swap: str, at: int, paragraph: str, origin: dict[str, Any] | None = None) -> None:
        subs = list(item.row.sub_questions)
        subs[at] = replace(subs[at], answer=None, long_answer=self.no_answer, paragraph=paragraph, unanswerable=True)
        row = replace(item.row, sub_questions=tuple(subs), final_answer=self.no_answer, tag=f"negative-{swap}",
                      meta_info={**item.row.meta_info, "swapped": at + 1})
        meta = {"group": item.meta["group"], "kind": f"negative-{swap}"}
        self.negatives.append(Item(f"{item.id}-negative", row, meta, {**item.origin, **(origin or {})}, item.made))

    def read_paragraphs(self, asks: Sequence[Ask], said: Mapping[str, Said]) -> None:
        """Take paragraphs about other attributes in."""
        kept = {item.id: item for item in self.kept}
        for ask in asks:
            id_, _, number = ask.id.rpartition("-paragraph-")
            item, at = kept[id_], int(number) - 1
            assert item.made is not None
            entity, attribute = item.made.entities[at], item.made.attribute
            found = self._whole(ask, said[ask.id], partial(parts.about_other, entity=entity, attribute=attribute))
            if found is not None:
                self._negative(item, "attribute", at, found, {"paragraph": ask.origin()})

    # --- rows ---

    def records(self) -> list[Record]:
        """Every row that is kept, with what made it."""
        return [record_of(item.row, item.id, {
            **item.meta, "source": self.stage.recipe, "origin": {**item.origin, "model": self.model}})
            for item in [*self.kept, *self.negatives]]

    # --- requests and refusals ---

    def _ask(self, id_: str, step: str, values: Mapping[str, str], sampling: Sampling) -> Ask:
        self.asked[step] += 1
        return Ask(id_, step, fill(self.texts[step], values), sampling)

    def _whole(self, ask: Ask, answer: Said, read: Callable[[str], T | Refused], item: Item | None = None) -> T | None:
        """What is read of an answer; None of one that is refused."""
        if answer.refused is not None:
            self.bad.append(Bad(ask.id, ask.step, answer.refused, ask.text, ask.origin(), answer.found))
            return None
        text = continued(ask.text, answer.text) if ask.step in LABELLED else answer.text
        found = read(text) if answer.finished else Refused("response-cut", text)
        if not isinstance(found, Refused):
            return found
        self._refuse(ask, found, item)
        return None

    def _refuse(self, ask: Ask, refused: Refused, item: Item | None = None) -> None:
        more = {} if item is None else {"question": item.row.question, **item.origin}
        self.bad.append(Bad(ask.id, ask.step, refused.reason, refused.text, {**ask.origin(), **more}))
