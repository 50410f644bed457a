"""What is read of a judge's answers: one clear score or verdict, or the reason why there is none; never a guess."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.rewards.judge import Unread, agreed, as_text, parse_score, parse_verdict

FORMS = ["Score: {}", "{}", "[[{}]]", "It is clear.\nScore: {}", "**Score:** {}", "score = {}", "Score: {}/10",
         "{}/10", "Rating: {} out of 10", '{{"score": {}}}', '{{"reason": "x", "score": "{}"}}',
         "```json\n{{\"score\": {}}}\n```", "Score (1-10): {}", "The overall score is {}.", "评分：{}",
         "评分：{}分", "得分（1-10）：{}", "Score: {}\n[[{}]]"]


@pytest.mark.parametrize("form", FORMS)
@given(value=st.integers(1, 10) | st.decimals(1, 10, places=1))
def test_every_form_gives_the_number_that_stands_in_it(form: str, value: object) -> None:
    assert parse_score(form.replace("{}", str(value)).replace("{{", "{").replace("}}", "}"), 1, 10) == float(str(value))


@given(text=st.text(), low=st.integers(-5, 5), width=st.integers(1, 100))
def test_whatever_is_said_gives_a_score_on_the_scale_or_a_reason(text: str, low: int, width: int) -> None:
    for said in (text, f"Score: {text}", f"[[{text}]]"):
        found = parse_score(said, low, low + width)
        assert isinstance(found, Unread) or low <= found <= low + width
        assert isinstance(parse_verdict(said.replace("Score", "Verdict")), str | Unread)


@given(value=st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_a_number_off_the_scale_is_refused(value: float) -> None:
    found = parse_score(f"Score: {value:f}", 1, 10)
    assert found == (round(value, 6) if 1 <= float(f"{value:f}") <= 10 else Unread("score-off-scale"))


@given(st.integers(1, 10), st.integers(1, 10), st.sampled_from(["Score: {}\nScore: {}", "[[{}]] or [[{}]]",
                                                                "Style score: {}\nOverall score: {}"]))
def test_two_scores_are_read_where_they_say_the_same_alone(one: int, other: int, form: str) -> None:
    found = parse_score(form.format(one, other), 1, 10)
    assert found == (float(one) if one == other else Unread("several-scores"))


@pytest.mark.parametrize(("text", "reason"), [
    ("seven", "no-score"), ("Score: seven", "no-score"), ("I would give it a 7", "no-score"),
    ("Score: 7th", "no-score"), ("Score: 70%", "no-score"), ("Score: 7,5", "no-score"), ("Score: 7e1", "no-score"),
    ("Score: 7/10/2020", "no-score"),
    ('{"scores": {"style": 7}}', "no-score"), ('{"max_score": 7}', "no-score"), ('{"score": null}', "no-score"),
    ("Score: 7-8", "several-scores"), ("Score: 7 to 8", "several-scores"), ("Score: 70/100", "score-of-other-scale"),
    ("7/5", "score-of-other-scale"), ("Score: 11", "score-off-scale"), ("0", "score-off-scale"),
    ("Score: " + "9" * 400, "score-off-scale"), ("", "empty-judgement"), (" \n", "empty-judgement"),
])
def test_what_is_not_one_score_is_refused_with_the_reason(text: str, reason: str) -> None:
    assert parse_score(text, 1, 10) == Unread(reason)


def test_the_rubrics_own_form_is_no_score() -> None:
    assert parse_score("Score: <number>\nScore: 7", 1, 10) == 7
    assert parse_score("Score: <number>", 1, 10) == Unread("no-score")


@pytest.mark.parametrize(("text", "found"), [
    ("A", "first"), ("B.", "second"), ("Verdict: A", "first"), ("It is better put.\nVerdict: B\n", "second"),
    ("[[B]]", "second"), ("[[C]]", "tie"), ("Verdict: tie", "tie"), ("Winner: Answer B", "second"),
    ("verdict is **A**", "first"), ('{"verdict": "B"}', "second"), ("结论：A", "first"), ("结论：平局", "tie"),
    ("Verdict: A is better.", "first"), ("Verdict: B\n[[B]]", "second"),
    ("Verdict: A better one is hard to think of", Unread("no-verdict")), ("Verdict: AB", Unread("no-verdict")),
    ("Verdict: neither", Unread("no-verdict")), ("A is better than B", Unread("no-verdict")),
    ("Verdict: A\nVerdict: B", Unread("several-verdicts")), ("[[A]] [[B]]", Unread("several-verdicts")),
    ("", Unread("empty-judgement")), ("Verdict: <A, B or tie>\nVerdict: A", "first"),
])
def test_a_verdict_is_read_where_one_is_said(text: str, found: object) -> None:
    assert parse_verdict(text) == found


def test_a_verdict_counts_where_both_orders_agree() -> None:
    assert agreed("first", "second") == "first"
    assert agreed("second", "first") == "second"
    assert agreed("tie", "tie") == "tie"
    for one, other in [("first", "first"), ("second", "second"), ("first", "tie"), ("tie", "second")]:
        assert agreed(one, other) is None  # type: ignore[arg-type]


def test_a_conversation_is_shown_with_who_says_what() -> None:
    assert as_text([{"role": "user", "content": "Why?"}]) == "Why?"
    assert as_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]) == (
        "system: Be brief.\n\nuser: Why?")
    assert json.dumps(as_text([{"role": "user", "content": "{slot}"}])) == '"{slot}"'
