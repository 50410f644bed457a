"""A scripted teacher of multi-hop questions; what it is not asked of those, `good_teacher` answers."""

from __future__ import annotations

import re

from alignment.generation.comparison import STEPS
from alignment.inference.requests import Request
from tests.generation.scripted import NOUNS, VERBS, good_teacher


def twelve(category: str, number: int) -> dict[str, str]:
    """The steps of a comparison; another number, other things and another question."""
    one, two = f"{NOUNS[number % 11].title()} A{number}", f"{NOUNS[(number + 4) % 11].title()} B{number}"
    verb, other = VERBS[number % 8].lower(), NOUNS[(number * 5 + 2) % 11]
    attribute = f"{other} count {number}"
    said = f"for the {attribute} they keep, they {verb} {number + 10}"
    return dict(zip(STEPS, (
        category, f"{one}; {two}", attribute,
        f"Of {one} and {two}, which may {verb} more as to its {attribute}?",
        f"How much does {one} {verb}?", f"How much does {two} {verb}?",
        f"{one} is old. In {one} {said}.", f"{two} is new. In {two} {said} more.",
        f"{one} may {verb} {number + 10}.", f"{two} may {verb} {number + 11}.",
        "The second number is higher.", f"{two} may {verb} more."), strict=True))


def written(steps: dict[str, str]) -> str:
    return "\n".join(f"{label}: {value}" for label, value in steps.items())


def hop_teacher(request: Request) -> tuple[str, bool]:
    """Comparisons that pass every check, answers that hold what the paragraph says, by the words of the prompts."""
    text = request.prompt[-1]["content"]
    if "twelve lines" in text:
        category = re.search(r"for this category: (.+?)\. Choose", text)
        assert category is not None
        number = sum(int(part) * 37 ** place for place, part in enumerate(re.findall(r"\d+", request.id)))
        return written(twelve(category[1], number)), True
    if text.startswith("Put each question"):
        question, answer = re.findall(r"^(?:Question|Answer): (.*)$", text, re.MULTILINE)[-2:]
        return f"To {question.rstrip('?')} the answer is {answer}.", True
    found = re.search(r"Text: (.*)\n\nQuestion: (.*)", text)
    if text.startswith("Answer the question from the text, in one"):
        assert found is not None
        return f"As the text says: {found[1]}", True
    if text.startswith("Answer the question from the text with Yes or No"):
        return "Reason: The text says that it freezes.\nAnswer: Yes", True
    if text.startswith("Answer the question from the text. Think"):
        return "Thought: Twelve boats came and three left.\nArithmetic: 12 - 3 = 9\nAnswer: 9", True
    if text.startswith("Answer the question from these facts"):
        facts = re.findall(r"^- (.*)$", text, re.MULTILINE)
        return f"Taken together: {' '.join(facts)}", True
    if text.startswith("Write one paragraph"):
        entity = re.search(r"about (.+?), all", text)
        assert entity is not None
        return f"{entity[1]} is a place of which other things are told. It is quiet there.", True
    return good_teacher(request)
