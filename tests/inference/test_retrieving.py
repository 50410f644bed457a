"""The loop that retrieves while a model answers: what is asked at each turn, and how rows end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy
import pytest

from alignment import templates
from alignment.config.stages.retrieve import Retrieve
from alignment.inference.draws import draws
from alignment.inference.endpoint.reply import TOO_LONG
from alignment.inference.nearest import DenseRetriever, Hit, Pool, nearest
from alignment.inference.requests import Completion, Draw, Failure, Request, Usage
from alignment.inference.retrieving import ENDS, Asked, Walk, walk
from alignment.records import Message, Record
from alignment.records.importers.retrieval import (
    Paragraph,
    Retrieval,
    SubQuestion,
    conversation,
    question_turns,
    record_of,
)
from alignment.templates import Spoken
from tests.generation.scripted import Scripted
from tests.templates.test_retrieval import SYSTEM, tokenizer

ROWS = [
    Retrieval("gen_qa.json", "Which is deeper?", "Haven is.", None, (
        SubQuestion("How deep is Haven?", None, "Nine metres.", "Haven is nine metres deep."),
        SubQuestion("How deep is Varde?", None, "Six metres.", "Varde is six metres deep."))),
    Retrieval("squad.json", "Who sang?", "Ann", "Ann", (SubQuestion("Who sang?", "Ann", "Ann", "Ann sang."),)),
]


class Speaker(Scripted):
    """A model of the retrieval template that says these texts, marks as tokens; remembers what it was asked, as ids.

    Args:
        said: row -> what it says, turn by turn.
    """

    def __init__(self, said: dict[str, list[str]], kind: str = "byte-level", *, cut: bool = False) -> None:
        super().__init__(lambda request: ("", True))
        self.said, self.tokenizer, self.cut = {row: list(texts) for row, texts in said.items()}, tokenizer(kind), cut
        self.ids: dict[str, list[list[int]]] = {}
        self.drawn: dict[str, list[Draw]] = {}

    def offered(self, prompt: list[Message]) -> list[Message]:
        return prompt

    def prompt_tokens(self, prompt: list[Message]) -> int:
        return len(templates.encode_prompt(self.tokenizer, prompt))

    def spoken(self, completion: Completion) -> Spoken:
        return templates.read_turn(self.tokenizer, completion.ids, finished=completion.finished)

    def generate(self, requests: Sequence[Request], on_progress: Any = None) -> list[list[Completion]]:
        made = []
        for request in requests:
            assert request.calls
            self.ids.setdefault(request.id, []).append(templates.encode_prompt(self.tokenizer, request.prompt))
            self.drawn.setdefault(request.id, []).extend(request.draws)
            ids = self.tokenizer(self.said[request.id].pop(0), add_special_tokens=False)["input_ids"]
            made.append([Completion(templates.decode_answer(self.tokenizer, ids, finished=not self.cut), ids,
                                    not self.cut)])
        return made


class ByText:
    """Finds the passages of a pool that hold the last word of a query."""

    def find(self, asked: Sequence[tuple[Pool, str]]) -> list[list[Hit]]:
        return [[Hit(one, 1.0) for one in pool.passages if query.strip("?").split()[-1] in one.text][:1]
                for pool, query in asked]


def call(query: str, said: str = "") -> str:
    return f' {said}{chr(10) if said else ""}<|bof|>retrieve:\n{{"query": "{query}"}}<|eof|>'


def drawing(turn: str) -> tuple[Draw, ...]:
    from alignment.config import Sampling

    return draws(turn, 3, 1, Sampling(temperature=(0.1, 0.9)), model="evaluate")


def asked(row: Retrieval, name: str = "r", system: bool = False) -> Asked:
    texts = dict.fromkeys(one.paragraph for one in row.sub_questions)
    pool = Pool(tuple(Paragraph(text, gold=True) for text in texts), numpy.eye(len(texts), dtype=numpy.float32))
    turns = [SYSTEM, *conversation(row)] if system else conversation(row)
    return Asked(name, question_turns(Record(name, "messages", messages=turns)), pool)


def walked(said: list[str], row: Retrieval = ROWS[0], steps: int = 4, most: int = 900, **more: Any) -> Walk:
    [one] = walk(Speaker({"r": said}, **more), [asked(row)], ByText(), steps=steps, most=most, draws=drawing)
    return one


@pytest.mark.parametrize("kind", ["small", "byte-level"])
@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("row", ROWS, ids=["two hops", "one"])
def test_ids_that_are_asked_are_the_ids_that_were_learned(row: Retrieval, system: bool, kind: str) -> None:
    """A model that says what the row teaches is asked, turn by turn, the very tokens that it learned behind."""
    turns = [SYSTEM, *conversation(row)] if system else conversation(row)
    engine = Speaker({}, kind)
    learned, mask = templates.encode_conversation(engine.tokenizer, turns)
    answers = [at for at, turn in enumerate(turns) if turn["role"] == "assistant"]
    said = {at: templates.encode_completion(engine.tokenizer, turns[:at], turns[at])[1][:-1] for at in answers}
    engine.said["r"] = [engine.tokenizer.decode(said[at], skip_special_tokens=False) for at in answers]
    [one] = walk(engine, [asked(row, system=system)], ByText(), steps=4, most=900, draws=drawing)
    assert (one.ended, one.text) == ("answered", turns[-1]["content"])
    assert len(engine.ids["r"]) == len(answers) == one.said
    begins = [at for at in range(len(mask)) if mask[at] and not mask[at - 1]]
    assert [len(ids) for ids in engine.ids["r"]] == begins, "each is asked up to where a learned turn begins"
    assert all(ids == learned[: len(ids)] for ids in engine.ids["r"])
    assert one.turns == turns[:-1]


def test_what_was_said_asked_and_found_is_kept_step_by_step() -> None:
    one = walked([call("How deep is Haven?"), call("How deep is Varde?", "Nine metres."), " Six.\nSummary: Haven."])
    assert [(step.said, step.query, [hit.passage.text for hit in step.found]) for step in one.steps] == [
        ("", "How deep is Haven?", ["Haven is nine metres deep."]),
        ("Nine metres.", "How deep is Varde?", ["Varde is six metres deep."])]
    assert (one.text, one.finished, one.said) == ("Six.\nSummary: Haven.", True, 3)


@pytest.mark.parametrize(("said", "more", "ended", "calls"), [
    (["  "], {}, "empty-answer", 0),
    (["<|bof|>retrieve:\nHaven<|eof|>"], {}, "call-unreadable", 0),
    (['retrieve:\n{"query": "Haven"}'], {}, "call-without-marks", 0),
    ([call("Haven") + call("Varde")], {}, "several-calls", 0),
    ([call("Haven") + " So."], {}, "text-after-call", 0),
    (['<|bof|>retrieve:\n{"query": "Hav'], {"cut": True}, "call-cut", 0),
    (['<|bof|>search:\n{"query": "Haven"}<|eof|>'], {}, "unknown-function", 0),
    (['<|bof|>retrieve:\n{"q": "Haven"}<|eof|>'], {}, "call-without-query", 0),
    (['<|bof|>retrieve:\n{"query": 7}<|eof|>'], {}, "call-without-query", 0),
    (['<|bof|>retrieve:\n{"query": "Haven", "k": 3}<|eof|>'], {}, "call-without-query", 0),
    ([call(" ")], {}, "empty-query", 0),
    ([call("is Haven"), call("Varde"), call("IS  Haven ")], {}, "repeated-query", 2),
    ([call("Haven"), call("Varde"), call("more")], {"steps": 2}, "step-limit", 2),
    ([call("Haven")], {"most": 240}, "context-overflow", 1),
])
def test_a_row_without_an_answer_says_why_and_has_none(
    said: list[str], more: dict[str, Any], ended: str, calls: int
) -> None:
    one = walked(said, **more)
    assert (one.ended, one.text, len(one.steps)) == (ended, "", calls)
    assert one.finished == (ended == "empty-answer")
    assert ended in ENDS


def test_an_answer_that_was_cut_is_kept_as_one() -> None:
    one = walked([" Haven is nine"], cut=True)
    assert (one.ended, one.text, one.finished) == ("answered", "Haven is nine", False)


def test_the_last_of_as_many_calls_as_are_allowed_is_still_answered() -> None:
    one = walked([call("Haven"), call("Varde"), " Haven."], steps=2)
    assert (one.ended, one.text, one.said) == ("answered", "Haven.", 3)


def test_draws_come_from_the_row_and_the_turn_whatever_stands_beside() -> None:
    said = {"r": [call("Haven"), call("Varde"), " Haven."], "s": [" Ann."], "t": [call("sang?"), " Ann."]}
    together, alone = Speaker(said), Speaker(said)
    rows = [asked(ROWS[0], "r"), asked(ROWS[1], "s"), asked(ROWS[1], "t")]
    walk(together, rows, ByText(), steps=4, most=900, draws=drawing)
    for row in reversed(rows):
        walk(alone, [row], ByText(), steps=4, most=900, draws=drawing)
    assert together.drawn == alone.drawn
    assert together.ids == alone.ids
    assert together.drawn["r"][0] == drawing("r")[0], "the first is that of a question that is asked once"
    assert len({draw.seed for draw in together.drawn["r"]}) == 3


class There(Speaker):
    """An endpoint's engine: completions as they are."""

    def __init__(self, *completions: Completion) -> None:
        super().__init__({})
        self.completions = list(completions)

    def spoken(self, completion: Completion) -> Spoken:
        [*calls] = completion.calls
        return Spoken(completion.text, calls[0][0], {"query": calls[0][1]}) if calls else Spoken(completion.text)

    def generate(self, requests: Sequence[Request], on_progress: Any = None) -> list[list[Completion]]:
        return [[self.completions.pop(0)] for _ in requests]


def test_what_every_turn_took_is_added_up_and_a_failure_is_the_rows() -> None:
    usage = Usage(10, 5, 0.5, 1, "m")
    found = Completion("", [], True, usage=usage, calls=(("retrieve", "Haven"),))
    failed = Completion("", [], False, usage=usage._replace(cost=None, attempts=3),
                        failure=Failure("the endpoint failed", "500"))
    [one] = walk(There(found, failed), [asked(ROWS[0])], ByText(), steps=4, most=900, draws=drawing)
    assert (one.ended, one.failure) == (None, failed.failure)
    assert one.usage == Usage(20, 10, None, 4, "m")
    too_long = Completion("", [], False, usage=usage, failure=Failure(TOO_LONG, "4,097"))
    [one] = walk(There(found, too_long), [asked(ROWS[0])], ByText(), steps=4, most=900, draws=drawing)
    assert (one.ended, one.failure) == ("context-overflow", None), "what was found made it too long"
    [one] = walk(There(too_long), [asked(ROWS[0])], ByText(), steps=4, most=900, draws=drawing)
    assert (one.ended, one.failure) == (None, too_long.failure), "the question itself is"


def test_the_nearest_texts_are_those_of_plain_cosine() -> None:
    source = numpy.random.default_rng(4)
    vectors = source.normal(size=(50, 8)).astype(numpy.float32)
    vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[7] = vectors[3]
    pool = Pool(tuple(Paragraph(str(number)) for number in range(50)), vectors)
    hits = nearest(pool, vectors[3], 4)
    cosines = [sum(a * b for a, b in zip(one, vectors[3].tolist(), strict=True)) for one in vectors.tolist()]
    plain = sorted(range(50), key=lambda at: (-round(cosines[at], 5), at))
    assert [hit.passage.text for hit in hits] == [str(at) for at in plain[:4]]
    assert [hit.passage.text for hit in hits[:2]] == ["3", "7"], "of equal ones the earlier"
    assert hits[0].score == pytest.approx(1.0)
    assert len(nearest(pool, vectors[0], 99)) == 50


class Counting:
    """An embedder of letters that remembers its texts."""

    def __init__(self) -> None:
        self.texts: list[list[str]] = []

    def embed(self, texts: Sequence[str], **options: Any) -> tuple[Any, list[int]]:
        assert options == {"pooling": "mean", "max_tokens": 9, "normalise": True}
        self.texts.append(list(texts))
        made = numpy.array([[text.count(letter) for letter in "abn"] for text in texts], dtype=numpy.float32)
        return made / numpy.linalg.norm(made, axis=1, keepdims=True), []


def test_prefixes_stand_before_what_is_embedded_and_queries_are_embedded_one_by_one() -> None:
    embedder: Any = Counting()
    config = Retrieve(embedder="e", pooling="mean", max_tokens=9, top_k=2, query_prefix="query: ",
                      passage_prefix="passage: ")
    retriever = DenseRetriever(embedder, config)
    vectors, _ = retriever.pooled(["anna", "bob", "nan"])
    pool = Pool(tuple(map(Paragraph, ["anna", "bob", "nan"])), vectors)
    found: Callable[[int], list[str]] = lambda at: [hit.passage.text for hit in hits[at]]  # noqa: E731
    hits = retriever.find([(pool, "bb"), (pool, "nn")])
    assert embedder.texts == [["passage: anna", "passage: bob", "passage: nan"], ["query: bb"], ["query: nn"]]
    assert (found(0)[0], found(1)[0]) == ("bob", "nan")
    assert len(found(0)) == 2


def test_a_record_says_what_can_be_retrieved_for_it() -> None:
    from alignment.records.importers.retrieval import paragraphs_of

    made = record_of(ROWS[0], "x", {})
    assert [(one.text, one.gold) for one in paragraphs_of(made)] == [
        ("Haven is nine metres deep.", True), ("Varde is six metres deep.", True)]
    assert paragraphs_of(Record("y", "passage", meta={"passage": "Ann sang."})) == [Paragraph("Ann sang.", gold=True)]
    assert paragraphs_of(Record("z", "prompt-only")) == []
    assert [turn["role"] for turn in question_turns(made)] == ["user"]
