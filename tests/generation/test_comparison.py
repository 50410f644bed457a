"""Comparisons: what their steps must say, and which greedy answers agree with what is known."""

from __future__ import annotations

import pytest

from alignment.generation import comparison as parts
from alignment.generation.refused import Refused
from tests.generation.hops import twelve, written

NONE = "The text does not say."


def made(**changes: str) -> parts.Comparison | Refused:
    steps = twelve("Rivers", 3) | {label.replace("_", " "): value for label, value in changes.items()}
    return parts.comparison(written(steps), "Rivers")


def test_twelve_steps_are_a_comparison() -> None:
    found = made(Entities="the Severn; Thames", Question="Is the Severn or the Thames longer?",
                 Question_1="How long is the Severn?", Question_2="How long is the Thames?",
                 Paragraph_1="The Severn is 354 km long.\nIt is in Wales.", Paragraph_2="The Thames is 346 km long.")
    assert isinstance(found, parts.Comparison)
    assert found.entities == ("the Severn", "Thames")
    assert found.paragraphs[0] == "The Severn is 354 km long. It is in Wales."


@pytest.mark.parametrize(("changes", "reason"), [
    ({"Category": "Lakes"}, "other-category"),
    ({"Entities": "Violin A3"}, "not-two-entities"),
    ({"Entities": "Violin A3; Loom B3; Comet C3"}, "not-two-entities"),
    ({"Entities": "Violin A3; ;"}, "not-two-entities"),
    ({"Entities": "The Violin A3; violin a3"}, "same-entity"),
    ({"Entities": "Entity 1; Entity 2"}, "placeholder"),
    ({"Entities": "[a river]; [a lake]"}, "placeholder"),
    ({"Question": "Which is longer, Violin A3 or the other?"}, "entity-not-in-question"),
    ({"Question_1": "How long is it?"}, "entity-not-in-sub-question"),
    ({"Question_1": "How long are Violin A3 and Comet B3?"}, "other-entity-in-sub-question"),
    ({"Paragraph_2": "It is long."}, "entity-not-in-paragraph"),
])
def test_what_is_wrong_with_a_comparison_has_a_name(changes: dict[str, str], reason: str) -> None:
    entities = twelve("Rivers", 3)["Entities"].split("; ")
    changes = {key: value.replace("Violin A3", entities[0]).replace("Comet B3", entities[1])
               for key, value in changes.items()}
    found = made(**changes)
    assert isinstance(found, Refused)
    assert found.reason == reason


def test_a_sub_question_that_is_the_question_asks_nothing_of_its_own() -> None:
    question = twelve("Rivers", 3)["Question"]
    found = made(Entities="Comet; Comet Halley", Question="Is Comet or Comet Halley it?",
                 Question_1="Is Comet or Comet Halley it?", Question_2="Is Comet Halley it?",
                 Paragraph_1="Comet it is.", Paragraph_2="Comet Halley it is.")
    assert isinstance(found, Refused)
    assert found.reason == "same-question", question


@pytest.mark.parametrize(("text", "entity", "expected"), [
    ("How old is the U.S.A.?", "U.S.A", True), ("The Severn's bore", "the Severn", True), ("Yorkshire", "York", False),
    ("new york", "New York", True), ("New Jersey and York", "New York", False), ("長江と黄河", "黄河", True),
])
def test_a_thing_is_named_by_its_words_in_a_row(text: str, entity: str, expected: bool) -> None:
    assert parts.names(text, entity) is expected


def test_the_same_things_are_the_same_in_any_order() -> None:
    one, other = made(), made()
    assert isinstance(one, parts.Comparison)
    assert isinstance(other, parts.Comparison)
    swapped = other._replace(entities=(f"The {other.entities[1]}", other.entities[0]))
    assert parts.same_things(one) == parts.same_things(swapped)


@pytest.mark.parametrize(("text", "references", "expected"), [
    ("The harbour is nine  metres deep.\n", ["nine metres", "9 m"], "The harbour is nine metres deep."),
    ("It is deep.", [], "It is deep."),
    ("It is deep.", ["nine metres"], "answer-differs"),
    ("  ", [], "empty-answer"),
    ("Sadly, the text does not say!", [], "answer-missing"),
    ("The answer is nine metres.", ["nine metres"], "stands-not-alone"),
    ("Is the harbour nine metres deep?", ["nine metres"], "asks-back"),
    ("It is nine metres deep and it is nine metres deep.", ["nine metres"], "repeats-itself"),
])
def test_a_sentence_stands_alone_and_holds_what_is_known(text: str, references: list[str], expected: str) -> None:
    said = parts.sentence(text, "How deep is the harbour?", references, NONE)
    assert (said.reason if isinstance(said, Refused) else said) == expected
    told = parts.told(f"Sentence: {text.strip()}", "How deep is the harbour?", references, NONE)
    if text.strip():
        assert (told.reason if isinstance(told, Refused) else told) == expected
    conclusion = parts.conclusion(text, references, NONE)
    wrong = expected in ("answer-differs", "empty-answer", "answer-missing")
    assert isinstance(conclusion, Refused) is wrong


def test_a_sentence_that_was_told_its_answer_says_what_was_asked() -> None:
    question = "Which actor replaced the main actor, who was suddenly ill, in spring?"
    said = parts.told("Sentence: The main actor was Banks.", question, ["Banks"], NONE)
    assert isinstance(said, Refused)
    assert said.reason == "stands-not-alone"
    said = "The actor Banks replaced the main actor in spring."
    assert parts.told(f"Sentence: {said}", question, ["Banks"], NONE) == said


@pytest.mark.parametrize(("text", "expected"), [
    ("Reason: It freezes.\nAnswer: Yes", "It freezes.\nAnswer: Yes"),
    ("**Reason:** It freezes,\nevery winter.\n**Answer:** yes.", "It freezes, every winter.\nAnswer: Yes"),
    ("Reason: It freezes.\nAnswer: No", "answer-differs"),
    ("Answer: Yes\nReason: It freezes.", "wrong-order"),
    ("Yes, it does.", "no-steps"),
])
def test_a_reason_stands_before_yes_or_no(text: str, expected: str) -> None:
    said = parts.reasoned(text, ["Yes"])
    assert (said.reason if isinstance(said, Refused) else said) == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("Thought: 12 came, 3 left.\nArithmetic: 12 - 3 = 9\nAnswer: 9", "12 came, 3 left.\n12 - 3 = 9\nAnswer: 9"),
    ("Thought: It says so.\nArithmetic: none\nAnswer: nine", "It says so.\nAnswer: 9"),
    ("Thought: 12 came.\nArithmetic: 12 - 4 = 8\nAnswer: 8", "answer-differs"),
    ("Thought: 12 came.\nAnswer: 9", "missing-step"),
])
def test_a_thought_and_its_arithmetic_come_to_the_known_answer(text: str, expected: str) -> None:
    said = parts.thought(text, ["9", "nine"])
    assert (said.reason if isinstance(said, Refused) else said) == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("The Severn has a bore.\nSurfers know it.", "The Severn has a bore. Surfers know it."),
    ("It has a bore.", "entity-not-in-paragraph"), ("The Severn's length is 354 km.", "attribute-in-paragraph"),
    ("", "empty-response"),
])
def test_a_paragraph_about_something_else_names_the_thing_alone(text: str, expected: str) -> None:
    said = parts.about_other(text, "Severn", "length")
    assert (said.reason if isinstance(said, Refused) else said) == expected
