"""Labelled steps: what is written comes back, and whatever deviates is a refusal with a name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.generation.comparison import STEPS
from alignment.generation.labelled import continued, steps
from alignment.generation.refused import Refused
from tests.generation.hops import twelve, written

LONG = ("Paragraph 1", "Paragraph 2", "Thought")
quick = settings(max_examples=40, deadline=None)
VALUES = st.lists(st.text("abc ,.;é漢-()", min_size=1, max_size=20).map(lambda text: f"w{text}w"), min_size=12,
                  max_size=12)
LEADS = st.sampled_from(["", "- ", "+ ", "3. ", "## ", "**"])


def lines(values: list[str], leads: list[str]) -> list[str]:
    return [f"{lead}{label}{'**' if lead == '**' else ''}: {value}"
            for label, value, lead in zip(STEPS, values, leads, strict=True)]


def reason(text: str) -> str:
    made = steps(text, STEPS, long=LONG)
    assert isinstance(made, Refused), made
    assert made.text == text
    return made.reason


@quick
@given(VALUES, st.lists(LEADS, min_size=12, max_size=12))
def test_what_is_written_comes_back_whatever_marks_a_list_has(values: list[str], leads: list[str]) -> None:
    made = steps("\n".join(lines(values, leads)), STEPS, long=LONG)
    assert made == dict(zip(STEPS, (" ".join(value.split()) for value in values), strict=True))


@quick
@given(VALUES, st.integers(0, 11))
def test_a_step_less_is_missing(values: list[str], gone: int) -> None:
    left = lines(values, [""] * 12)
    del left[gone]
    assert reason("\n".join(left)) == "missing-step"


@quick
@given(VALUES, st.permutations(range(12)))
def test_another_order_is_wrong(values: list[str], order: list[int]) -> None:
    shuffled = "\n".join(lines(values, [""] * 12)[at] for at in order)
    made = steps(shuffled, STEPS, long=LONG)
    assert isinstance(made, Refused) == (order != list(range(12)))
    assert not isinstance(made, Refused) or made.reason == "wrong-order"


@quick
@given(VALUES, st.integers(0, 11), st.integers(0, 11))
def test_a_step_twice_is_a_duplicate(values: list[str], which: int, at: int) -> None:
    more = lines(values, [""] * 12)
    more.insert(at, more[which])
    assert reason("\n".join(more)) == "duplicate-step"


@quick
@given(VALUES, st.integers(0, 11), st.sampled_from(["", " ", "...", "**", "-"]))
def test_a_step_with_nothing_behind_it_is_empty(values: list[str], which: int, nothing: str) -> None:
    values[which] = nothing
    assert reason("\n".join(lines(values, [""] * 12))) == "empty-field"


@quick
@given(VALUES, st.integers(0, 11))
def test_a_second_line_is_refused_but_in_paragraphs_and_thought(values: list[str], which: int) -> None:
    values[which] += "\nand so on"
    made = steps("\n".join(lines(values, [""] * 12)), STEPS, long=LONG)
    if STEPS[which] in LONG:
        assert isinstance(made, dict)
        assert made[STEPS[which]].endswith("w and so on")
    else:
        assert isinstance(made, Refused)
        assert made.reason == "several-lines"


@quick
@given(st.text(max_size=300))
def test_any_text_is_steps_or_a_refusal(text: str) -> None:
    made = steps(text, STEPS, long=LONG)
    assert isinstance(made, Refused)
    assert made.reason in ("empty-response", "no-steps", "text-before", "unknown-step", "duplicate-step",
                           "missing-step")


@pytest.mark.parametrize(("prompt", "said", "expected"), [
    ("Which?\n\nReason:", "It froze.\nAnswer: Yes", "Reason: It froze.\nAnswer: Yes"),
    ("Which?\n\nReason:\n", "\n Reason: It froze.", "\n Reason: It froze."),
    ("Which?\n\nReason:", "**reason:** It froze.", "**reason:** It froze."),
    ("Which?", "It froze.", "It froze."), ("Which?\nReason:", " ", " "),
])
def test_an_answer_goes_on_from_the_label_that_its_prompt_ends_with(prompt: str, said: str, expected: str) -> None:
    assert continued(prompt, said) == expected


@pytest.mark.parametrize(("change", "expected"), [
    (lambda text: "", "empty-response"),
    (lambda text: "Two rivers are compared.", "no-steps"),
    (lambda text: f"Sure, here it is!\n{text}", "text-before"),
    (lambda text: f"{text}\nQuestion 3: And so?", "unknown-step"),
    (lambda text: f"{text}\n\nLet me know what else you want.", "several-lines"),
])
def test_what_a_chat_model_adds_is_refused_by_its_name(change, expected: str) -> None:
    assert reason(change(written(twelve("Rivers", 3)))) == expected
