"""The plain function that judges Socratic questions, on written ones and on the shipped seeds."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from alignment.errors import DataError
from alignment.records import Record
from alignment.rewards import FACTS, lacking
from alignment.rewards.socratic import TYPES, socratic_type

SEEDS = Path(__file__).parents[2] / "configs/seeds"
SAID = "The ferry should run all night. Young people leave a town that sleeps."


def _row(kind: object, context: str = SAID) -> Record:
    asked = f"Ask a Socratic question of the type {kind} about what is said below.\n\n### Input:\n{context}"
    return Record("q", "prompt-only", [{"role": "user", "content": asked}], meta={"kind": kind})


@pytest.mark.parametrize(("kind", "answer", "score"), [
    ("reasons_evidence", "What evidence do you have that young people leave?", 1.0),
    ("reasons_evidence", " What evidence is there for it?\n", 0.8),  # of the type, about anything
    ("reasons_evidence", "Are you assuming that the ferry is why?", 0.4),  # about the context, another type
    ("clarity", "What exactly do you mean, and what evidence is there?", 0.5),  # two types at once
    ("clarity", "Is this a true question or not?", 0.2),
    ("clarity", "What do you mean?", 0.8),
    ("clarity", "Explain it?", 0.0),  # three words are none
    ("clarity", "What exactly do you mean. I ask.", 0.0),  # no question
    ("clarity", "What exactly? What do you mean by a ferry?", 0.0),  # two
    ("clarity", "I ask you this:\nWhat exactly do you mean?", 0.0),
    ("clarity", "What exactly " + "is " * 30 + "it?", 0.0),
    ("clarity", "", 0.0),
    ("assumptions", "Do you take it for granted that they leave?", 1.0),
    ("implication_consequences", "What would happen to the crew of the ferry?", 1.0),
    ("alternate_viewpoints_perspectives", "How would the crew of the ferry see that?", 1.0),
    ("alternate_viewpoints_perspectives", "Ask a Socratic question of what would you say?", 0.8),  # words of the prompt
])
def test_socratic_type(kind: str, answer: str, score: float) -> None:
    assert socratic_type(_row(kind), answer) == pytest.approx(score)


@pytest.mark.parametrize("kind", ["style", None, 3])
def test_a_row_without_a_type_is_refused(kind: object) -> None:
    with pytest.raises(DataError) as error:
        socratic_type(_row(kind), "Why?")
    assert error.value.where == "row q"
    assert "clarity" in str(error.value.expected)


def test_what_it_needs_is_known_before_launch() -> None:
    assert FACTS["socratic_type"].needs == ("meta.kind",)
    assert lacking("socratic_type", Record("r", "prompt-only", [])) == ["meta.kind"]
    assert not lacking("socratic_type", _row("clarity"))


def test_the_seeds_are_what_their_readme_says() -> None:
    questions, pairs = (list(csv.DictReader((SEEDS / name).open(encoding="utf-8")))
                        for name in ("socratic.csv", "socratic-pairs.csv"))
    assert {row["Type"] for row in questions} == set(TYPES)
    assert len({row["Question"] for row in questions}) == len(questions) == 180
    scores = sorted(socratic_type(_row(row["Type"], row["Context"]), row["Question"]) for row in questions)
    assert scores[0] > 0.6
    assert scores[1] >= 0.8 - 1e-9
    by_context = {row["Context"]: row["Split"] for row in questions}
    assert [sum(split == wanted for split in by_context.values()) for wanted in ("train", "dev", "test")] == [24, 3, 9]
    for row in pairs:
        asked = _row(row["Type"], row["Context"])
        assert socratic_type(asked, row["Chosen"]) > socratic_type(asked, row["Rejected"])
        assert by_context[row["Context"]] == row["Split"] != "test"
