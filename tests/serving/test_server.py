"""One server of tiny models as its users meet it: the openai client, curl, malformed requests, many at once, clients
that go away."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignment.artifacts import Artifact
from alignment.config.serve import Limits
from alignment.inference.live.opened import merged_policy
from alignment.inference.requests import Draw, Request
from alignment.records.importers import read_source
from alignment.serving.app import build
from alignment.serving.run import listening, wait_until_proved
from alignment.serving.service import Service
from alignment.serving.wire import server_of
from tests.serving.built import CPU, service_of
from tests.waiting import until

KEY = "a-key-of-tests-0123"
HI: list[Any] = [{"role": "user", "content": "What colour is the boat?"}]


class Running:
    """A server in a thread of this process, all of whose models are proved, or `whole` is false."""

    def __init__(self, service: Service, *, whole: bool = True) -> None:
        self.service = service
        listener = listening("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self.server = server_of(build(service, hosts=[]))
        self.thread = threading.Thread(target=lambda: self.server.run([listener]), daemon=True)
        self.thread.start()
        assert wait_until_proved(service, 240) is whole

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()

    def client(self, **more: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=KEY, max_retries=0, **more)

    def raw(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON (or text), headers."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        given = {"authorization": f"Bearer {KEY}", "content-type": "application/json", **headers}
        connection.request(method, path, body, given)
        answer = connection.getresponse()
        said, told = answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        connection.close()
        return answer.status, json.loads(said) if told.get("content-type") == "application/json" else said, told

    def chat(self, **body: Any) -> tuple[int, Any, dict[str, str]]:
        return self.raw("POST", "/v1/chat/completions",
                        json.dumps({"model": "sft", "messages": HI, "max_tokens": 4, **body}).encode())


@pytest.fixture(scope="module")
def running(models: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    made = Running(service_of(models, Limits(in_flight=24, body=20_000, tokens=32), key=KEY,
                              votes=str(tmp_path_factory.mktemp("votes") / "votes.jsonl")))
    yield made
    made.close()


# --- answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["base", "sft"])
def test_the_openai_client_gets_what_stages_get(running: Running, models: dict[str, Artifact], name: str) -> None:
    with merged_policy(models[name], CPU) as stage:
        [[wanted]] = stage.generate([Request("r", HI, (Draw(temperature=0.0, max_new_tokens=12),))])
    client = running.client()
    whole = client.chat.completions.create(model=name, messages=HI, temperature=0, max_tokens=12)
    assert whole.choices[0].message.content == wanted.text
    assert whole.choices[0].finish_reason == ("stop" if wanted.finished else "length")
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len(wanted.tokens)
    chunks = list(client.chat.completions.create(model=name, messages=HI, temperature=0, max_tokens=12, stream=True,
                                                 stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == wanted.text
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage


def test_models_are_listed_with_what_they_are(running: Running, models: dict[str, Artifact]) -> None:
    client = running.client()
    assert {model.id: model.model_extra["root"] for model in client.models.list() if model.model_extra} == {
        name: artifact.key for name, artifact in models.items()}
    assert client.models.retrieve("sft").id == "sft"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("sft2")


def test_seeds_choices_and_log_probabilities(running: Running) -> None:
    client = running.client()

    def texts(seed: int) -> list[str | None]:
        answer = client.chat.completions.create(model="sft", messages=HI, max_tokens=6, n=3, seed=seed, logprobs=True,
                                                top_logprobs=2, presence_penalty=0.5, extra_body={"top_k": 40})
        for choice in answer.choices:
            assert choice.logprobs is not None
            assert choice.logprobs.content is not None
            assert all(len(token.top_logprobs) == 2 and token.logprob <= token.top_logprobs[0].logprob
                       for token in choice.logprobs.content)
        return [choice.message.content for choice in answer.choices]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)
    assert len(set(texts(1))) > 1


def test_text_and_ids_are_continued(running: Running) -> None:
    client = running.client()
    by_text = client.completions.create(model="base", prompt="The boat", temperature=0, max_tokens=5, logprobs=1,
                                        extra_body={"return_token_ids": True})
    assert by_text.choices[0].model_extra is not None
    ids = by_text.choices[0].model_extra["prompt_token_ids"]
    both = client.completions.create(model="base", prompt=[ids, ids], temperature=0, max_tokens=5)
    assert [choice.text for choice in both.choices] == [by_text.choices[0].text] * 2
    stream = client.completions.create(model="base", prompt="The boat", temperature=0, max_tokens=5, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == by_text.choices[0].text


def test_a_stop_text_ends_an_answer_and_is_no_part_of_it(running: Running) -> None:
    client = running.client()
    whole = client.chat.completions.create(model="base", messages=HI, temperature=0, max_tokens=12)
    text = str(whole.choices[0].message.content)
    stop = text[4:6]
    cut = client.chat.completions.create(model="base", messages=HI, temperature=0, max_tokens=12, stop=[stop])
    assert cut.choices[0].message.content == text[: text.find(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].model_extra == {"stop_reason": stop}


def test_a_reward_model_scores_and_chooses(running: Running) -> None:
    status, said, _ = running.raw("POST", "/v1/score", json.dumps(
        {"model": "rm", "messages": HI, "answers": ["red", "I do not know"]}).encode())
    assert status == 200
    scores = [one["score"] for one in said["data"]]
    assert scores[0] != scores[1]
    _, pair, _ = running.raw("POST", "/v1/score", json.dumps(
        {"model": "rm", "text_1": HI[0]["content"], "text_2": ["red", "I do not know"]}).encode())
    assert [one["score"] for one in pair["data"]] == pytest.approx(scores, abs=1e-5)
    status, best, _ = running.chat(best_of=4, seed=3)
    assert status == 200
    assert len(best["best_of"]) == 4
    chosen = best["choices"][0]["message"]["content"]
    _, again, _ = running.raw("POST", "/v1/score", json.dumps(
        {"model": "rm", "messages": HI, "answers": [chosen]}).encode())
    assert again["data"][0]["score"] == pytest.approx(max(best["best_of"]), abs=1e-4)


def test_curl_gets_an_answer(running: Running) -> None:
    done = subprocess.run(
        ["curl", "-sN", f"http://127.0.0.1:{running.port}/v1/chat/completions", "-H", "Content-Type: application/json",
         "-H", f"Authorization: Bearer {KEY}", "-d",
         json.dumps({"model": "sft", "messages": HI, "max_tokens": 3, "stream": True})],
        capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[1].removeprefix("data: "))["object"] == "chat.completion.chunk"


# --- who gets none -------------------------------------------------------------------------------------------


def test_an_unknown_model_is_no_other_models_answer(running: Running) -> None:
    client = running.client()
    with pytest.raises(openai.NotFoundError, match="'sfT' is not served here; there are base, sft, rm"):
        client.chat.completions.create(model="sfT", messages=HI)
    status, said, _ = running.chat(model="rm")
    assert (status, said["error"]["code"]) == (400, "wrong_kind")


def test_without_the_key_nothing_is_told(running: Running) -> None:
    for header in ("Bearer wrong-key-of-tests", f"Basic {KEY}", KEY, "Bearer ", "Bearer \xfc"):
        status, said, told = running.raw("GET", "/v1/models", authorization=header)
        assert (status, said["error"]["code"]) == (401, "invalid_api_key")
        assert told["www-authenticate"] == "Bearer"
    assert running.raw("GET", "/health", authorization="")[0] == 200
    status, said, _ = running.raw("GET", "/ready", authorization="")
    assert status == 200
    assert said["models"]["sft"] == {"state": "ready"}
    assert running.raw("GET", "/ready")[1]["models"]["sft"]["proof"]["proved"] is True


def test_what_would_not_be_honoured_is_refused_by_name(running: Running) -> None:
    wrong: dict[str, Any] = {
        "frequency_penalty": 0.5, "logit_bias": {"5": 1}, "temprature": 0.5, "temperature": -1, "top_p": 0,
        "max_tokens": 0, "n": 99, "top_logprobs": 3, "response_format": {"type": "json_object"}, "stop": ["a"] * 5,
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        "best_of": 40, "tool_choice": "required", "seed": "five", "model": 5,
    }
    for key, value in wrong.items():
        status, said, _ = running.chat(**{key: value})
        assert status == 400, key
        assert said["error"]["type"] == "invalid_request_error"
        assert key in said["error"]["message"], said
    assert running.chat(messages=[*HI, {"role": "assistant", "content": "red"}])[0] == 400
    assert running.chat(logit_bias={}, frequency_penalty=0, response_format={"type": "text"}, user="me",
                        temperature=None, n=None)[0] == 200


def test_a_context_that_is_exceeded_says_by_how_much(running: Running) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        running.client().chat.completions.create(model="sft", messages=HI, max_tokens=2048)
    assert error.value.code == "context_length_exceeded"
    assert "this model takes 2048 tokens, and the prompt has" in error.value.message
    long = [{"role": "user", "content": "boat " * 3000}]
    status, said, _ = running.chat(messages=long)
    assert (status, said["error"]["code"]) == (400, "context_length_exceeded")


def test_a_body_is_json_and_not_too_long(running: Running) -> None:
    path = "/v1/chat/completions"
    assert running.raw("POST", path, b"x" * 30_000)[0] == 413
    assert running.raw("POST", path, iter([b"x" * 15_000] * 2))[0] == 413  # type: ignore[arg-type]
    assert running.raw("POST", path, b"{}", **{"content-type": "text/plain"})[0] == 415
    assert running.raw("GET", path)[0] == 405
    status, said, _ = running.raw("GET", "/v1/nothing")
    assert (status, said["error"]["code"]) == (404, "no_such_call")


JSON = st.recursive(st.none() | st.booleans() | st.integers(-10**20, 10**20) | st.floats() | st.text(max_size=20),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
                    max_leaves=8)
KEYS = ("model", "messages", "prompt", "temperature", "top_p", "top_k", "n", "stop", "max_tokens", "seed", "stream",
        "logprobs", "top_logprobs", "tools", "answers", "text_1", "text_2", "stream_options", "best_of")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["chat/completions", "completions", "score"]),
       st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6) | JSON, st.binary(max_size=3), st.booleans())
def test_no_request_breaks_the_server(running: Running, call: str, body: Any, junk: bytes, whole: bool) -> None:
    if whole and isinstance(body, dict):
        body = {"model": "rm" if call == "score" else "sft", "messages": HI, "max_tokens": 2} | body
    raw = json.dumps(body).encode("utf-8", "surrogatepass") + junk
    status, said, _ = running.raw("POST", f"/v1/{call}", raw)
    assert status in (200, 400, 404, 413)
    if status != 200:
        assert set(said["error"]) == {"message", "type", "param", "code"}


# --- many, and those who go ----------------------------------------------------------------------------------


def test_many_at_once_are_answered_or_told_to_come_again(running: Running) -> None:
    with ThreadPoolExecutor(80) as pool:
        found = list(pool.map(lambda number: running.chat(max_tokens=20, seed=number), range(160)))
    statuses = [status for status, _, _ in found]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 24
    assert all(told["retry-after"] == "1" for status, _, told in found if status == 429)
    until(lambda: running.service.in_flight == 0)
    assert running.chat()[0] == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_answer(running: Running, stream: bool) -> None:
    model = running.service.models["base"].live
    assert model is not None
    engine: Any = model.engine
    body = json.dumps({"model": "base", "messages": HI, "max_tokens": 1900, "temperature": 0, "stream": stream,
                       "stop": ["there is no such text"]}).encode()
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer "
                           + KEY.encode() + b"\r\ncontent-type: application/json\r\ncontent-length: "
                           + str(len(body)).encode() + b"\r\n\r\n" + body)
        if stream:
            assert b"200" in connection.recv(4096)
        until(lambda: bool(engine._open))
    until(lambda: not engine._open and running.service.in_flight == 0)
    assert running.chat()[0] == 200
    text = running.raw("GET", "/metrics")[1].decode()
    assert 'kubealign_clients_gone_total{model="base"}' in text
    assert "kubealign_requests_in_flight 0.0" in text


def test_time_that_is_over_ends_an_answer(running: Running) -> None:
    limits, running.service.limits = running.service.limits, running.service.limits.model_copy(update={"seconds": 0.2})
    try:
        status, said, _ = running.chat(max_tokens=1900, temperature=0, model="base")
        assert (status, said["error"]["code"]) == (504, "timeout")
        _, raw, _ = running.chat(max_tokens=1900, temperature=0, model="base", stream=True)
        events = [line for line in raw.decode().split("\n\n") if line]
        assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "timeout"
        assert events[-1] == "data: [DONE]"
    finally:
        running.service.limits = limits
    until(lambda: running.service.in_flight == 0)


def test_votes_are_kept_as_rows_to_learn_from(running: Running) -> None:
    def turn(text: str) -> dict[str, str]:
        return {"role": "assistant", "content": text}

    vote = {"messages": HI, "chosen": turn("It is red."), "rejected": turn("No."),
            "models": {"a": "sft", "b": "base"}, "vote": "a", "time": "yesterday"}

    def post(**more: Any) -> int:
        return running.raw("POST", "/votes", json.dumps(vote | more).encode())[0]

    assert post() == 200
    assert post(chosen=turn("Red — rot 红"), vote="b") == 200
    assert post(chosen=None, rejected=None, vote="tie") == 200
    wrong = ({"rejected": turn("It is red. ")}, {"chosen": turn("")}, {"models": None}, {"messages": []}, {"more": 1},
             {"vote": "tie"}, {"chosen": None}, {"vote": "c"}, {"chosen": "It is red."})
    assert [post(**more) for more in wrong] == [400] * len(wrong)
    kept = [json.loads(line) for line in Path(str(running.service.votes)).read_text(encoding="utf-8").splitlines()]
    assert [(row["vote"], row["chosen"]) for row in kept] == [
        ("a", turn("It is red.")), ("b", turn("Red — rot 红")), ("tie", None)]
    assert kept[0]["messages"] == HI
    rows: list[Any] = list(read_source(str(running.service.votes), "votes", "votes"))
    assert [(row.completion, row.rejected, row.meta["chosen_by"]) for row in rows[:2]] == [
        ("It is red.", "No.", "sft"), ("Red — rot 红", "No.", "base")]
    assert rows[2].reason == "tie: sft and base"
    assert all(row["time"].startswith("20") for row in kept)


def test_the_page_is_served_without_a_key_and_may_call_nobody_else(running: Running) -> None:
    status, page, told = running.raw("GET", "/", authorization="")
    assert status == 200
    assert b"/v1/chat/completions" in page
    assert told["content-type"].startswith("text/html")
    assert "default-src 'none'" in told["content-security-policy"]


def test_no_page_of_another_site_calls_a_server_without_a_key(models: dict[str, Artifact]) -> None:
    made = Running(service_of({"sft": models["sft"]}))
    try:
        assert made.chat()[0] == 200
        status, said, _ = made.raw("GET", "/v1/models", host="evil.example:80")
        assert (status, said["error"]["code"]) == (403, "unknown_host")
        assert made.raw("GET", "/v1/models", host=f"localhost:{made.port}")[0] == 200
        assert made.raw("POST", "/votes", b"{}")[1]["error"]["code"] == "votes_off"
        # at the end no request is taken, and those in flight have their answers
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(made.chat, max_tokens=200, temperature=0)
            until(lambda: made.service.in_flight == 1, pause=0.005)
            draining = threading.Thread(target=made.service.drain, args=(30,))
            draining.start()
            until(lambda: made.service.draining, pause=0.005)
            status, said, told = made.chat()
            assert (status, said["error"]["code"], told["retry-after"]) == (503, "draining", "1")
            assert made.raw("GET", "/ready")[0] == 503
            assert slow.result()[0] == 200
            draining.join()
        begun = time.monotonic()
        assert made.service.drain(30) == "all answers were ended"
        assert time.monotonic() - begun < 30
    finally:
        made.close()
