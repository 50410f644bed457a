"""The engine for endpoints against a server of faults on loopback: what is tried again, given up, kept and paid."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from alignment.artifacts import Store
from alignment.config import parse_run
from alignment.context import StageContext
from alignment.errors import ConfigError, DataError, ModelError
from alignment.inference.endpoint.asking import Clock
from alignment.inference.endpoint.generator import EndpointGenerator
from alignment.inference.requests import Completion, Draw, EndpointStopped, Request
from alignment.templates import Spoken
from tests.endpoint_server import Asked, Reply, Script, answer, endpoint, error, teacher

KEY = "sk-canary-0123456789"


class Passing:
    """A clock whose pauses pass at once; `slept` has their lengths."""

    def __init__(self) -> None:
        self.time, self.slept = 0.0, list[float]()

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)

    def clock(self) -> Clock:
        return Clock(lambda: self.time, self.sleep, lambda: 0.5)


@pytest.fixture
def passing() -> Passing:
    return Passing()


def context(folder: Path, url: str, **model: Any) -> StageContext:
    tree = {"name": "r", "store": str(folder / "store"), "stages": [
        teacher(url, **model), {"name": "data", "kind": "import", "data": [{"path": "x", "format": "prompt-only"}],
                                "split": {"by": "ratio", "ratios": {"train": 1.0}}},
        {"name": "rs", "kind": "sample", "model": "teacher", "prompts": ["data/train"], "n": 2,
         "score": {"function": "brevity"}}]}
    run = parse_run(yaml.safe_dump(tree))
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    artifact: Any = SimpleNamespace(key="import-endpoint-0")
    return StageContext(run, run.stage("rs"), Store(str(folder / "store")), "sample-0", "0" * 64, {"teacher": artifact},
                        work)


def requests(count: int, n: int = 1, **draw: Any) -> list[Request]:
    return [Request(f"r{index}", [{"role": "user", "content": f"question {index}"}],
                    tuple(Draw(max_new_tokens=40, seed=100 * index + one, **draw) for one in range(n)))
            for index in range(count)]


def ask(folder: Path, script: Script, passing: Passing, asked: list[Request], **model: Any
        ) -> tuple[list[list[Completion]], list[Asked]]:
    with endpoint(script) as server, EndpointGenerator(
            context(folder, server.url, **model), "teacher", passing.clock()) as engine:
        return engine.generate(asked), server.asked


def test_every_draw_is_a_request_of_its_own_with_its_seed_and_parameters(tmp_path: Path, passing: Passing) -> None:
    made, asked = ask(tmp_path, lambda one: answer(f"{one.last} {one.body['seed']}", completion=7), passing,
                      requests(3, n=2, temperature=0.5, top_p=0.9, stop=("\n\n",), presence_penalty=1.5),
                      extra_body={"reasoning_effort": "low"})
    assert [[one.text for one in own] for own in made] == [
        [f"question {index} {100 * index + draw}" for draw in range(2)] for index in range(3)]
    assert all(one.finished and one.ids == [] and one.length == 7 for own in made for one in own)
    body = asked[0].body
    assert {key: body[key] for key in ("model", "temperature", "top_p", "max_tokens", "stop", "presence_penalty",
                                       "reasoning_effort")} == {
        "model": "teacher-1", "temperature": 0.5, "top_p": 0.9, "max_tokens": 40, "stop": ["\n\n"],
        "presence_penalty": 1.5, "reasoning_effort": "low"}
    assert asked[0].path == "/v1/chat/completions"


def test_what_is_at_its_default_or_not_taken_is_not_sent(tmp_path: Path, passing: Passing) -> None:
    _, asked = ask(tmp_path, lambda one: answer(), passing, requests(1), takes=["top_k"],
                   length_key="max_completion_tokens")
    assert set(asked[0].body) == {"model", "messages", "temperature", "max_completion_tokens"}


def test_parameters_that_the_endpoint_is_not_known_to_take_are_refused(tmp_path: Path, passing: Passing) -> None:
    for draw in ({"top_k": 5}, {"repetition_penalty": 1.1}):
        with pytest.raises(ConfigError, match="not known to take"):
            ask(tmp_path, lambda one: answer(), passing, requests(1, **draw))
    _, asked = ask(tmp_path, lambda one: answer(), passing, requests(1, top_k=5), takes=["top_k"])
    assert asked[0].body["top_k"] == 5


def test_log_probabilities_are_refused_and_empty_requests_too(tmp_path: Path, passing: Passing) -> None:
    engine = EndpointGenerator(context(tmp_path, "http://127.0.0.1:9/v1"), "teacher", passing.clock())
    with pytest.raises(ModelError, match="no log-probabilities"):
        engine.log_probs([([{"role": "user", "content": "a"}], "b")])
    with pytest.raises(DataError, match="at least one draw"):
        engine.generate([Request("r", [{"role": "user", "content": "a"}], ())])


FAULTS = {
    "429": error(429), "429 with Retry-After": error(429, retry_after="5"), "500": error(500),
    "503": error(503, retry_after="7"), "dropped": Reply({}, fault="drop"),
    "truncated": Reply(answer().body, fault="truncate"), "malformed": Reply(b'{"choices": [{"mess'),
    "a page": Reply(b"<html>busy</html>", headers={"Content-Type": "text/html"}),
    "no choices": Reply({"choices": []}), "a list": Reply([1]), "no finish_reason": answer("x", None),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_may_pass_is_asked_again_after_a_pause_and_no_row_is_lost(
    tmp_path: Path, passing: Passing, name: str
) -> None:
    made, asked = ask(tmp_path, lambda one: FAULTS[name] if one.again < 2 else answer(one.last), passing, requests(6))
    assert [own[0].text for own in made] == [f"question {index}" for index in range(6)]
    assert [own[0].usage.attempts for own in made if own[0].usage] == [3] * 6
    assert len(asked) == 18
    assert len([one for one in passing.slept if one > 0]) >= 12
    wait = FAULTS[name].headers.get("retry-after")
    if wait is not None:
        assert max(passing.slept) == pytest.approx(float(wait) * 1.05)
        assert passing.time >= 2 * float(wait)


def test_silence_ends_at_the_timeout_and_is_asked_again(tmp_path: Path, passing: Passing) -> None:
    made, asked = ask(tmp_path, lambda one: answer() if one.again else Reply({}, fault="hang"), passing, requests(2),
                      limits={"timeout_s": 0.3})
    assert [own[0].failure for own in made] == [None, None]
    assert len(asked) == 4


def test_a_storm_of_429_halves_what_is_under_way_and_every_row_is_answered(tmp_path: Path, passing: Passing) -> None:
    load = Counter[str]()

    def script(one: Asked) -> Reply:
        load["all"] += 1
        return error(429, retry_after="1") if 20 <= load["all"] < 36 else answer(one.last)

    with endpoint(script) as server:
        engine = EndpointGenerator(context(tmp_path, server.url, limits={"concurrency": 32, "retries": 20}), "teacher",
                                   passing.clock())
        made = engine.generate(requests(50))
        assert engine._opened is not None
        crowd = engine._opened[1].crowd
        engine.close()
    assert [own[0].text for own in made] == [f"question {index}" for index in range(50)]
    assert crowd.halvings >= 1
    assert server.most <= 32


def test_at_most_concurrency_requests_are_open_at_once(tmp_path: Path, passing: Passing) -> None:
    with endpoint(lambda one: answer()) as server, EndpointGenerator(
            context(tmp_path, server.url, limits={"concurrency": 3}), "teacher", passing.clock()) as engine:
        engine.generate(requests(30))
    assert 1 <= server.most <= 3


def test_no_minute_has_more_requests_or_tokens_than_the_run_file_allows(tmp_path: Path, passing: Passing) -> None:
    ask(tmp_path / "a", lambda one: answer(), passing, requests(25), limits={"requests_per_minute": 10})
    assert passing.time >= 120
    before = passing.time
    ask(tmp_path / "b", lambda one: answer(prompt=60, completion=40), passing, requests(25),
        limits={"tokens_per_minute": 1000, "concurrency": 1})
    assert 60 <= passing.time - before <= 240  # 2,500 tokens
    with pytest.raises(EndpointStopped, match="more tokens than tokens_per_minute"):
        ask(tmp_path / "c", lambda one: answer(), passing, requests(1), limits={"tokens_per_minute": 10})


@pytest.mark.parametrize(("reply", "problem"), [
    (error(401, "Incorrect API key provided"), "does not accept the key"),
    (error(404, "The model `teacher-1` does not exist", "model_not_found"), "no model of this name"),
    (error(404, "Not Found"), "no chat interface at this address"),
    (error(429, "You exceeded your current quota", "insufficient_quota"), "no credit left"),
    (Reply({}, 302, {"Location": "http://127.0.0.1:9/"}), "no chat interface at this address"),
    (error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'"), "name for the longest answer"),
    (error(429, retry_after="9999"), "asks to wait for 9999 s"),
])
def test_what_no_retry_mends_stops_at_once_with_one_sentence(
    tmp_path: Path, passing: Passing, reply: Reply, problem: str
) -> None:
    with endpoint(lambda one: reply) as server:
        engine = EndpointGenerator(context(tmp_path, server.url, limits={"concurrency": 2}), "teacher", passing.clock())
        with pytest.raises(EndpointStopped, match=problem) as stopped:
            engine.generate(requests(20))
        engine.close()
    assert len(server.asked) <= 2
    assert passing.slept == []
    assert "teacher-1 at http://127.0.0.1" in str(stopped.value)


def test_429_to_the_end_stops_the_stage_and_loses_no_row(tmp_path: Path, passing: Passing) -> None:
    with pytest.raises(EndpointStopped, match="refuses for load, asked 3 times"):
        ask(tmp_path, lambda one: error(429), passing, requests(2), limits={"retries": 2})


def test_rows_that_the_endpoint_refuses_or_fails_on_have_their_reason_and_the_others_their_answers(
    tmp_path: Path, passing: Passing
) -> None:
    replies = {
        "question 1": answer("", "content_filter"), "question 2": error(400, "content management policy"),
        "question 3": error(500, "boom"), "question 4": Reply(b"{}"), "question 5": error(422, "roles must alternate"),
        "question 6": answer(None, refusal="I may not"), "question 7": answer("cut", "length"),
    }
    made, asked = ask(tmp_path, lambda one: replies.get(one.last, answer("fine")), passing, requests(12),
                      limits={"retries": 2, "price": {"input": 1, "output": 2}})
    failures = {index: own[0].failure for index, own in enumerate(made) if own[0].failure is not None}
    assert {index: failure.reason for index, failure in failures.items()} == {
        1: "refused by the endpoint's content filter", 2: "refused by the endpoint's content filter",
        3: "the endpoint failed", 4: "no answer that can be read", 5: "the endpoint refuses the request",
        6: "the endpoint's model declined to answer"}
    assert failures[3].detail == "500: boom"
    assert all(made[index][0].text == "" for index in failures)
    assert (made[7][0].text, made[7][0].finished) == ("cut", False)
    assert made[1][0].usage is not None
    assert made[1][0].usage.cost == pytest.approx(30e-6)
    assert Counter(one.last for one in asked)["question 3"] == 3
    assert Counter(one.last for one in asked)["question 5"] == 1


def test_a_stage_where_every_row_fails_stops_within_its_retries_with_reasons_and_examples(
    tmp_path: Path, passing: Passing
) -> None:
    with endpoint(lambda one: Reply(b"oops")) as server:
        engine = EndpointGenerator(context(tmp_path, server.url, limits={"retries": 1}), "teacher", passing.clock())
        with pytest.raises(EndpointStopped, match=r"gives no answers: no answer that can be read \(10\)") as stopped:
            engine.generate(requests(150))
        engine.close()
    assert len(server.asked) < 70
    assert str(stopped.value.found).count("row r") == 3
    assert "oops" in str(stopped.value.found)


def test_an_outage_in_the_middle_stops_the_stage_instead_of_losing_the_rest(tmp_path: Path, passing: Passing) -> None:
    down = False

    def script(one: Asked) -> Reply:
        return error(500, "down") if down else answer(one.last)

    with endpoint(script) as server:
        engine = EndpointGenerator(context(tmp_path, server.url, limits={"retries": 1}), "teacher", passing.clock())
        engine.generate(requests(5))
        down = True
        with pytest.raises(EndpointStopped, match=r"the endpoint failed \(10\)"):
            engine.generate(requests(60)[5:])
        with pytest.raises(EndpointStopped):  # it stays so
            engine.generate(requests(61)[60:])
        engine.close()


def test_nobody_at_the_address_is_a_failure_of_the_connection(tmp_path: Path, passing: Passing) -> None:
    with endpoint(lambda one: answer()) as server:
        url = server.url
    engine = EndpointGenerator(context(tmp_path, url, limits={"retries": 1}), "teacher", passing.clock())
    made = engine.generate(requests(2))
    engine.close()
    assert [own[0].failure.reason for own in made if own[0].failure] == ["the connection failed"] * 2
    assert made[0][0].usage is not None
    assert made[0][0].usage.lost == 0


def test_a_context_error_asks_for_less_and_a_prompt_that_never_fits_is_a_row_failure(
    tmp_path: Path, passing: Passing
) -> None:
    def script(one: Asked) -> Reply:
        fits = one.body["max_tokens"] <= (26 if one.last == "question 0" else 0)
        return answer("short") if fits else error(400, "Please reduce your prompt; or completion length.")

    made, asked = ask(tmp_path, script, passing, requests(2))
    assert made[0][0].text == "short"
    assert [one.body["max_tokens"] for one in asked if one.last == "question 0"] == [40, 32, 25]
    assert made[1][0].failure is not None
    assert made[1][0].failure.reason == "the prompt does not fit the endpoint's context"
    assert len([one for one in asked if one.last == "question 1"]) == 7
    assert passing.slept == []


def test_what_was_paid_is_never_asked_again_and_what_only_failed_is(tmp_path: Path, passing: Passing) -> None:
    bad = {"question 1": answer("", "content_filter"), "question 2": error(500)}
    first, _ = ask(tmp_path, lambda one: bad.get(one.last, answer(one.last)), passing, requests(6),
                   limits={"retries": 0})
    second, asked = ask(tmp_path, lambda one: answer(one.last), passing, requests(8))
    assert sorted(one.last for one in asked) == ["question 2", "question 6", "question 7"]
    assert second[0] == first[0]
    assert second[1] == first[1]
    assert second[2][0].text == "question 2"


def test_a_call_is_an_answer_where_it_was_offered_and_is_kept_and_read_like_one(
    tmp_path: Path, passing: Passing
) -> None:
    said = answer("Wait.", "tool_calls", tool_calls=[{"id": "a", "type": "function", "function": {
        "name": "retrieve", "arguments": '{"query": "depth"}'}}])
    [offered], [plain] = ([replace(one, calls=calls) for one in requests(1)] for calls in (True, False))
    first, _ = ask(tmp_path / "a", lambda one: said, passing, [offered])
    again, asked = ask(tmp_path / "a", lambda one: said, passing, [offered])
    assert asked == [], "what was paid is found in the ledger, its calls with it"
    assert first == again
    [[completion]] = again
    engine = EndpointGenerator(context(tmp_path / "c", "http://127.0.0.1:9/v1"), "teacher", passing.clock())
    assert engine.spoken(completion) == Spoken("Wait.", "retrieve", {"query": "depth"})
    assert engine.spoken(replace(completion, calls=completion.calls * 2)).problem == "several-calls"
    lost = replace(completion, calls=(), text='retrieve:\n{"query": "depth"}')
    assert engine.spoken(lost).problem == "call-without-marks", "its server does not read the calls of its model"
    [[failed]], _ = ask(tmp_path / "b", lambda one: said, passing, [plain])
    assert failed.failure is not None, "nobody offered one"


def test_a_ledger_line_that_a_kill_cut_is_asked_again(tmp_path: Path, passing: Passing) -> None:
    ask(tmp_path, lambda one: answer("a\u2028b"), passing, requests(3), limits={"concurrency": 1})
    file = next((tmp_path / "work" / "paid-import-endpoint-0").glob("*.jsonl"))
    file.write_bytes(file.read_bytes()[:-20])
    made, asked = ask(tmp_path, lambda one: answer("a\u2028b"), passing, requests(3))
    assert len(asked) == 1
    assert [own[0].text for own in made] == ["a\u2028b"] * 3


def test_other_parameters_or_another_prompt_are_another_answer(tmp_path: Path, passing: Passing) -> None:
    ask(tmp_path, lambda one: answer(), passing, requests(2))
    _, asked = ask(tmp_path, lambda one: answer(), passing, requests(2, temperature=0.3))
    assert len(asked) == 2


def test_a_budget_is_never_passed_and_more_of_it_goes_on_without_paying_twice(tmp_path: Path, passing: Passing) -> None:
    price = {"input": 1000.0, "output": 1000.0}  # a token is a thousandth; an answer 0.05, at worst about 0.06
    served: list[Asked] = []

    def script(one: Asked) -> Reply:
        served.append(one)
        return answer(one.last, prompt=20, completion=30)

    with pytest.raises(EndpointStopped, match="budget for the endpoint is spent") as stopped:
        ask(tmp_path, script, passing, requests(20), limits={"price": price, "budget": 0.5})
    paid = len(served)
    assert 5 <= paid <= 10
    assert paid * 0.05 <= 0.5
    assert f"{paid} answers are paid" in str(stopped.value)
    with pytest.raises(EndpointStopped, match="budget"):  # the same budget is spent for good
        ask(tmp_path, script, passing, requests(20), limits={"price": price, "budget": 0.5})
    assert len(served) == paid
    made, _ = ask(tmp_path, script, passing, requests(20), limits={"price": price, "budget": 5.0})
    assert len(served) == 20
    assert Counter(one.last for one in served).most_common(1)[0][1] == 1
    assert sum(own[0].usage.cost or 0 for own in made if own[0].usage) == pytest.approx(20 * 0.05)


def test_a_reply_that_never_came_counts_against_the_budget_at_its_worst(tmp_path: Path, passing: Passing) -> None:
    made, _ = ask(tmp_path, lambda one: answer() if one.again else Reply({}, fault="drop"), passing, requests(1),
                  limits={"price": {"input": 0, "output": 1e6}, "budget": 1000.0})
    assert made[0][0].usage is not None
    assert made[0][0].usage.lost == 40  # max_new_tokens at 1 each
    assert made[0][0].usage.cost == 5
    with pytest.raises(EndpointStopped, match=r"spent[^9]*45 of 80"):
        ask(tmp_path, lambda one: answer(), passing, requests(2),
            limits={"price": {"input": 0, "output": 1e6}, "budget": 80.0})


def test_without_usage_an_answer_is_uncounted_and_a_budget_cannot_be_held(tmp_path: Path, passing: Passing) -> None:
    silent = answer()
    del silent.body["usage"]
    made, _ = ask(tmp_path / "a", lambda one: silent, passing, requests(1), limits={"price": {"input": 1, "output": 1}})
    assert made[0][0].usage is not None
    assert made[0][0].usage[:3] == (None, None, None)
    with pytest.raises(EndpointStopped, match="no budget can be held"):
        ask(tmp_path / "b", lambda one: silent, passing, requests(1),
            limits={"price": {"input": 1, "output": 1}, "budget": 9.0})


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """At DEBUG, from every logger that there is."""
    names = ["", "openai", "openai._base_client", "httpx2", "httpcore2", "httpcore2.http11", "httpcore2.connection"]
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.DEBUG)
    caplog.set_level(logging.DEBUG)
    yield caplog
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize("reply", [
    error(401, f"Incorrect API key provided: {KEY}"), error(500, f"auth was {KEY}"), Reply(f"<{KEY}>".encode()),
    Reply({}, fault="drop"), answer(f"your key is {KEY}"), error(400, f"bad: Bearer {KEY}"),
    error(429, f"key {KEY} is over its limit"),
], ids=["401", "500", "no JSON", "dropped", "quoted", "400", "429"])
def test_the_key_is_sent_and_stands_in_no_log_error_file_or_row(
    tmp_path: Path, passing: Passing, monkeypatch: pytest.MonkeyPatch, reply: Reply,
    everything_logged: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    seen: list[str] = []
    with endpoint(lambda one: reply) as server:
        engine = EndpointGenerator(
            context(tmp_path, server.url, key_env="TEACHER_KEY", limits={"retries": 1}), "teacher", passing.clock())
        try:
            seen.append(repr(engine.generate(requests(12))))
        except EndpointStopped as stopped:
            seen += [str(stopped), repr(stopped), repr(vars(stopped)), repr(pickle.loads(pickle.dumps(stopped)).found)]
            seen += traceback.format_exception(stopped)
            chained: BaseException | None = stopped
            while chained is not None:
                assert "openai" not in type(chained).__module__  # whose errors hold the request and its headers
                chained = chained.__cause__ or chained.__context__
        seen.append(repr(engine) + repr(engine._opened and engine._opened[1].client))
        engine.close()
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    seen += [file.read_text(encoding="utf-8") for file in tmp_path.rglob("*") if file.is_file()]
    seen += [record.getMessage() + repr(record.args) for record in everything_logged.records]
    seen += capfd.readouterr()
    assert everything_logged.records
    assert not [text for text in seen if KEY in text]


def test_a_key_of_another_endpoint_is_never_sent(
    tmp_path: Path, passing: Passing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ADMIN_KEY", KEY)
    _, asked = ask(tmp_path, lambda one: answer(), passing, requests(1))
    assert KEY not in json.dumps(asked[0].headers)
    assert "authorization" not in asked[0].headers


@pytest.mark.parametrize("value", [None, "", "ключ"])
def test_without_its_key_nothing_is_asked(
    tmp_path: Path, passing: Passing, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("TEACHER_KEY", value)
    with pytest.raises(ConfigError, match="key is not in the environment"):
        ask(tmp_path, lambda one: answer(), passing, requests(1), key_env="TEACHER_KEY")


def test_another_model_that_answers_is_said(
    tmp_path: Path, passing: Passing, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = ask(tmp_path, lambda one: answer(model="other-7b"), passing, requests(3))
    assert made[0][0].usage is not None
    assert made[0][0].usage.model == "other-7b"
    assert capsys.readouterr().err.count("other-7b answers, where teacher-1 was asked") == 1
