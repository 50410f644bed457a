"""A comparison of two things, as qa_expert (github.com/khaimt/qa_expert) has it made: what is read of a teacher's
twelve steps, what is asked of them, and which answers agree. Pure; asks nobody.

Beyond qa_expert's own checks (two things, both named in the question, each in its own sub-question) we ask that the
category is the one asked for, that a sub-question names its own thing alone, and that each paragraph names its thing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from alignment.generation.labelled import steps
from alignment.generation.refused import Refused
from alignment.rewards.answers import exact_match, normalize_answer
from alignment.words import words

STEPS = ("Category", "Entities", "Attribute", "Question", "Question 1", "Question 2", "Paragraph 1", "Paragraph 2",
         "Answer 1", "Answer 2", "Thought", "Final answer")
REASON = ("Reason", "Answer")
SENTENCE = ("Sentence",)
THOUGHT = ("Thought", "Arithmetic", "Answer")
_LONG = ("Paragraph 1", "Paragraph 2", "Thought", "Reason")
_NONE = ("none", "n/a", "no", "-")
LETTERS = 3
"""A word of a question that has no more letters says little of what is asked."""
_PLACEHOLDER = re.compile(r"\b(?:entity|thing|item) ?(?:1|2|one|two|a|b)\b|^\W*(?:entity|x|y)?\W*$|[\[\]<>{}]", re.I)


class Comparison(NamedTuple):
    """A question that compares `attribute` of two things, and what answers it."""

    category: str
    entities: tuple[str, str]
    attribute: str
    question: str
    questions: tuple[str, str]
    paragraphs: tuple[str, str]
    answers: tuple[str, str]
    final: str


def comparison(text: str, category: str) -> Comparison | Refused:
    """What a response says about a category, or why it is refused."""
    made = steps(text, STEPS, long=_LONG)
    if isinstance(made, Refused):
        return made
    pair = tuple(part.strip(" .\"'“”") for part in re.split("[;；]", made["Entities"]))
    found = Comparison(
        category, (pair[0], pair[-1]), made["Attribute"], made["Question"], (made["Question 1"], made["Question 2"]),
        (made["Paragraph 1"], made["Paragraph 2"]), (made["Answer 1"], made["Answer 2"]), made["Final answer"])
    reason = _two(pair, made["Category"], category) or _named(found)
    return found if reason is None else Refused(reason, text)


def _two(pair: Sequence[str], said: str, category: str) -> str | None:
    if words(said) != words(category):
        return "other-category"
    if len(pair) != 2 or not all(words(one) for one in pair):
        return "not-two-entities"
    if any(_PLACEHOLDER.search(one) for one in pair):
        return "placeholder"
    return "same-entity" if _key(pair[0]) == _key(pair[1]) else None


def _named(made: Comparison) -> str | None:
    first, second = made.entities
    one, two = made.questions
    if not (names(made.question, first) and names(made.question, second)):
        return "entity-not-in-question"
    if not (names(one, first) and names(two, second)):
        return "entity-not-in-sub-question"
    # York is in New York, whichever of them is meant.
    within = names(first, second) or names(second, first)
    if not within and (names(one, second) or names(two, first)):
        return "other-entity-in-sub-question"
    if len({tuple(words(text)) for text in (made.question, one, two)}) < 3:
        return "same-question"
    if not (names(made.paragraphs[0], first) and names(made.paragraphs[1], second)):
        return "entity-not-in-paragraph"
    return None


def names(text: str, entity: str) -> bool:
    """Whether a text has all words of an entity in a row; case, signs and a leading article do not count."""
    wanted, found = _key(entity), words(text)
    return any(found[at : at + len(wanted)] == wanted for at in range(len(found) - len(wanted) + 1))


def _key(entity: str) -> list[str]:
    found = words(entity)
    return found[1:] if len(found) > 1 and found[0] in ("the", "a", "an") else found


def same_things(made: Comparison) -> tuple[frozenset[str], str]:
    """What two comparisons have in common that ask the same of the same, in any order."""
    return frozenset(" ".join(_key(one)) for one in made.entities), " ".join(words(made.attribute))


# --- answers that are written greedily ---


def told(text: str, question: str, references: Sequence[str], no_answer: str) -> str | Refused:
    """What stands behind `Sentence:`, as `sentence` has it. Who is told the answer shows by half of the question's
    words that more than that was written."""
    made = steps(text, SENTENCE)
    if isinstance(made, Refused):
        return made
    return sentence(made["Sentence"], question, references, no_answer, share=0.5)


def sentence(
    text: str, question: str, references: Sequence[str], no_answer: str, *, share: float = 0.0
) -> str | Refused:
    """An answer as a sentence that can stand alone: it has one of the references in it, where there are any, and a word
    of the question, or such a share of them."""
    said = conclusion(text, references, no_answer)
    if isinstance(said, Refused):
        return said
    if _repeats(said):
        return Refused("repeats-itself", text)
    if "?" in said:
        return Refused("asks-back", text)
    asked = {word for word in words(question) if len(word) > LETTERS}
    if asked and len(asked & set(words(said))) < max(1, share * len(asked)):
        return Refused("stands-not-alone", text)
    return said


def conclusion(text: str, references: Sequence[str], no_answer: str) -> str | Refused:
    """What follows from several answers; it has one of the references in it, where there are any."""
    said = " ".join(text.split())
    if not said:
        return Refused("empty-answer", text)
    if _says(said, no_answer):
        return Refused("answer-missing", text)
    if references and not any(holds(said, one) for one in references):
        return Refused("answer-differs", text)
    return said


def _repeats(text: str) -> bool:
    """Whether four words come again as they were."""
    found = words(text)
    runs = list(zip(*(found[start:] for start in range(4)), strict=False))
    return len(set(runs)) < len(runs)


def reasoned(text: str, references: Sequence[str]) -> str | Refused:
    """A reason, then Yes or No."""
    made = steps(text, REASON, long=_LONG)
    if isinstance(made, Refused):
        return made
    if not exact_match(made["Answer"].rstrip("."), references):
        return Refused("answer-differs", text)
    return f"{made['Reason']}\nAnswer: {references[0]}"


def thought(text: str, references: Sequence[str]) -> str | Refused:
    """A thought, the arithmetic where there is any, then the answer."""
    made = steps(text, THOUGHT, long=_LONG)
    if isinstance(made, Refused):
        return made
    if not exact_match(made["Answer"].rstrip("."), references):
        return Refused("answer-differs", text)
    counted = made["Arithmetic"].rstrip(".")
    lines = (made["Thought"], "" if counted.lower() in _NONE else counted, f"Answer: {references[0]}")
    return "\n".join(line for line in lines if line)


def holds(text: str, reference: str) -> bool:
    """Whether an answer contains a reference, both as SQuAD's script makes them alike."""
    wanted = normalize_answer(reference)
    return bool(wanted) and f" {wanted} " in f" {normalize_answer(text)} "


def _says(text: str, sentence: str) -> bool:
    return normalize_answer(sentence) in normalize_answer(text)


# --- negatives ---


def about_other(text: str, entity: str, attribute: str) -> str | Refused:
    """A paragraph about the entity that says nothing of the attribute by its name, white space squeezed."""
    paragraph = " ".join(text.split())
    if not paragraph:
        return Refused("empty-response", text)
    if not names(paragraph, entity):
        return Refused("entity-not-in-paragraph", text)
    return Refused("attribute-in-paragraph", text) if names(paragraph, attribute) else paragraph


def facts(answers: Sequence[str]) -> str:
    """Answers as a list, for the prompt that asks what follows from them."""
    return "\n".join(f"- {' '.join(one.split())}" for one in answers)
