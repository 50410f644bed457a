"""Pacing and reading of an endpoint: pure functions, held to their laws over many inputs."""

from __future__ import annotations

import json
import math
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.inference.endpoint.messages import to_openai
from alignment.inference.endpoint.pace import BEGIN, LONGEST_PAUSE, WINDOW, Crowd, Minute, pause, retry_after
from alignment.inference.endpoint.reply import Said, message_of, read_reply, refusal
from tests.endpoint_server import answer

NOW = 1_700_000_000.0


@given(st.integers(0, 10**6))
def test_retry_after_reads_seconds(seconds: int) -> None:
    assert retry_after(f" {seconds} ", NOW) == seconds


@given(st.integers(-10**6, 10**6))
def test_retry_after_reads_a_date_as_the_seconds_until_it(ahead: int) -> None:
    assert retry_after(formatdate(NOW + ahead, usegmt=True), NOW) == max(0, ahead)


@given(st.one_of(st.none(), st.text(), st.text("0123456789.eE+-naif ,:GMT"), st.floats().map(str)))
def test_retry_after_of_anything_is_a_finite_wait_or_none(text: str | None) -> None:
    found = retry_after(text, NOW)
    assert found is None or (found >= 0 and math.isfinite(found))


def test_retry_after_of_words_says_nothing() -> None:
    assert [retry_after(text, NOW) for text in ("", "soon", "-", "١٢", "nan", "Thu, 99 Foo 2026")] == [None] * 6
    assert retry_after("-5", NOW) == 0


@given(st.integers(0, 10**6), st.none() | st.floats(0, 1e5), st.floats(0, 1, exclude_max=True))
def test_a_pause_is_never_under_what_retry_after_says_nor_much_over_both(
    attempt: int, asked: float | None, draw: float
) -> None:
    found = pause(attempt, asked, lambda: draw)
    assert found >= (asked or 0)
    assert 0.5 <= found <= max(LONGEST_PAUSE, 1.1 * (asked or 0))


def test_pauses_double_up_to_the_longest() -> None:
    assert [pause(attempt, None, lambda: 0.999999) for attempt in range(8)] == pytest.approx(
        [1, 2, 4, 8, 16, 32, 60, 60], rel=1e-3)


@given(st.integers(1, 8), st.lists(st.tuples(st.floats(0, 40), st.floats(0.1, 8)), max_size=40))
def test_in_no_minute_is_more_taken_than_the_limit(limit: int, asks: list[tuple[float, float]]) -> None:
    minute, now, taken = Minute(limit), 0.0, list[tuple[float, float]]()
    for step, amount in asks:
        now += step
        wait = minute.wait(now, amount)
        if math.isinf(wait):
            assert amount > limit
            continue
        while wait > 0:
            now += wait
            wait = minute.wait(now, amount)
        minute.take(now, amount)
        taken.append((now, amount))
    for begin, _ in taken:
        assert sum(size for when, size in taken if begin <= when < begin + WINDOW - 1e-6) <= limit + 1e-6


def test_what_a_minute_took_too_much_is_given_back() -> None:
    minute = Minute(100)
    entry = minute.take(0.0, 90)
    assert minute.wait(1.0, 50) == pytest.approx(59.0)
    minute.correct(entry, 20)
    assert minute.wait(1.0, 50) == 0
    assert Minute(None).wait(0.0, 10**9) == 0


@given(st.integers(1, 64), st.lists(st.sampled_from([True, False, None]), max_size=200))
def test_a_crowd_stays_between_one_and_its_most(most: int, ends: list[bool | None]) -> None:
    crowd = Crowd(most)
    for jam in ends:
        assert crowd.room
        crowd.leave(crowd.enter(), jam=jam)
        assert 1 <= crowd.bound <= most
        assert crowd.under_way == 0


def test_a_crowd_grows_by_one_a_round_and_one_jam_halves_it_once() -> None:
    crowd = Crowd(64)
    assert int(crowd.bound) == BEGIN
    for _ in range(60):
        crowd.leave(crowd.enter(), jam=False)
    grown = crowd.bound
    assert BEGIN + 5 < grown < 20
    together = [crowd.enter() for _ in range(int(grown))]
    assert not crowd.room
    for one in together:
        crowd.leave(one, jam=True)
    assert crowd.bound == grown / 2
    assert crowd.halvings == 1


@given(st.binary(max_size=300) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["choices", "message", "content", "finish_reason", "usage", "prompt_tokens", "x"]), inner),
    max_leaves=12).map(lambda value: json.dumps(value).encode()))
def test_anything_at_all_is_an_answer_or_a_sentence(content: bytes) -> None:
    assert isinstance(read_reply(content), Said | str)
    assert message_of(content.decode("utf-8", "replace")) is not None


@pytest.mark.parametrize(("reason", "finished"), [("stop", True), ("length", False), ("eos_token", True)])
def test_finish_reasons_say_whether_an_answer_ended(reason: str, finished: bool) -> None:
    said = read_reply(json.dumps(answer("so", reason).body).encode())
    assert isinstance(said, Said)
    assert (said.text, said.finished, said.failure, said.tokens) == ("so", finished, None, (20, 5))


@pytest.mark.parametrize("reason", ["content_filter", "tool_calls"])
def test_a_reply_without_an_answer_has_no_text_and_a_reason(reason: str) -> None:
    said = read_reply(json.dumps(answer("half of", reason).body).encode())
    assert isinstance(said, Said)
    assert said.text == ""
    assert said.failure is not None


def test_a_model_that_declines_is_a_failure_and_an_unknown_finish_reason_is_asked_again() -> None:
    declined = read_reply(json.dumps(answer(None, "stop", refusal="I may not").body).encode())
    assert isinstance(declined, Said)
    assert declined.failure is not None
    assert declined.failure.detail == "I may not"
    assert "finish_reason" in str(read_reply(json.dumps(answer("x", None).body).encode()))


@pytest.mark.parametrize(("status", "content", "kind"), [
    (401, "Incorrect API key provided", "key"), (403, "no access", "key"),
    (403, "blocked by content policy", "filter"),
    (404, "The model `x` does not exist", "model"), (404, "Not Found", "address"), (301, "", "address"),
    (400, '{"error": {"code": "model_not_found"}}', "model"),
    (429, "Rate limit reached", "load"), (429, "You exceeded your current quota", "credit"), (402, "", "credit"),
    (503, "overloaded", "server"), (500, "", "server"), (408, "", "load"),
    (400, "This model's maximum context length is 512 tokens, max_tokens or max_completion_tokens is too large",
     "context"),
    (400, "Please reduce your prompt; or completion length.", "context"),
    (400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "length key"),
    (400, "triggered our content management policy", "filter"), (422, "roles must alternate", "request"),
])
def test_a_refusal_is_the_endpoints_the_rows_or_the_moments(status: int, content: str, kind: str) -> None:
    assert refusal(status, content) == kind


def test_conversations_with_tools_are_sent_as_openai_takes_them() -> None:
    call = {"type": "function", "function": {"name": "find", "arguments": {"q": "blå"}}}
    sent = to_openai([
        {"role": "user", "content": "where?", "tools": [{"type": "function"}], "learn": False},
        {"role": "assistant", "content": "", "tool_calls": [call, call], "reasoning_content": "hm"},
        {"role": "tool", "content": "here"}, {"role": "tool", "content": "there"}])
    assert sent["tools"] == [{"type": "function"}]
    user, assistant, first, second = sent["messages"]
    assert user == {"role": "user", "content": "where?"}
    assert json.loads(assistant["tool_calls"][0]["function"]["arguments"]) == {"q": "blå"}
    assert [first["tool_call_id"], second["tool_call_id"]] == [one["id"] for one in assistant["tool_calls"]]
    assert set(assistant) == {"role", "content", "tool_calls"}
