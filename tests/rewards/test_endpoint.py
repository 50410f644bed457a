"""A reward endpoint on the loopback, that does what endpoints do: answer, refuse, fail, drip and lie."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from alignment.config import RewardPart
from alignment.errors import ConfigError, StageError
from alignment.records import Record
from alignment.rewards.endpoint import Endpoint

ROWS = [Record(f"r{index}", "prompt-completion", [{"role": "user", "content": "?"}], f"ref {index}",
               meta={"passage": "P"}) for index in range(5)]
ANSWERS = ["a", "bb", "ccc", "dddd", "ééééé"]
Reply = tuple[int, bytes]


class Judge:
    """A server whose next replies are `planned`; then it gives each row the length of its answer."""

    def __init__(self) -> None:
        self.planned: list[Callable[[Any], Reply | None]] = []
        self.bodies: list[Any] = []
        self.keys: list[str | None] = []
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                judge.bodies.append(body)
                judge.keys.append(self.headers.get("Authorization"))
                plan = judge.planned.pop(0) if judge.planned else None
                reply = plan(self) if plan is not None else (
                    200, json.dumps({"scores": [len(row["answer"]) for row in body["rows"]]}).encode())
                if reply is None:
                    return
                code, text = reply
                self.send_response(code)
                self.send_header("Content-Length", str(len(text)))
                if code == 302:
                    self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/judge"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def judge() -> Iterator[Judge]:
    made = Judge()
    yield made
    made.server.shutdown()
    made.server.server_close()


def asked(url: str, pauses: list[float] | None = None, **keys: Any) -> Endpoint:
    said = [] if pauses is None else pauses
    part = RewardPart.model_validate({"url": url, "retries": 2, "timeout": 5.0, **keys})
    return Endpoint(part, "stage g, reward.parts.http", said.append)


def test_rows_go_in_bounded_batches_and_scores_come_back_in_order(judge: Judge) -> None:
    assert asked(judge.url, batch_size=2)(ROWS, ANSWERS) == [1, 2, 3, 4, 5]
    assert [len(body["rows"]) for body in judge.bodies] == [2, 2, 1]
    assert judge.bodies[0]["rows"][1] == {"id": "r1", "prompt": [{"role": "user", "content": "?"}], "answer": "bb",
                                          "reference": "ref 1", "meta": {"passage": "P"}}
    assert judge.keys == [None] * 3


@pytest.mark.parametrize("code", [429, 500, 503])
def test_what_may_pass_is_tried_again_after_growing_pauses(judge: Judge, code: int) -> None:
    pauses: list[float] = []
    judge.planned = [lambda h: (code, b"busy"), lambda h: (code, b"busy")]
    assert asked(judge.url, pauses)(ROWS[:1], ANSWERS[:1]) == [1]
    assert pauses == [0.5, 1.0]


def _hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def _drip(handler: BaseHTTPRequestHandler) -> None:
    """A byte now and then: no single read is slow, the whole is."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(40):
        try:
            handler.wfile.write(b" ")
            handler.wfile.flush()
        except OSError:
            return
        time.sleep(0.05)


def test_a_connection_that_breaks_is_tried_again(judge: Judge) -> None:
    judge.planned = [_hang_up]
    assert asked(judge.url)(ROWS[:2], ANSWERS[:2]) == [1, 2]


def test_an_endpoint_that_is_down_is_one_error_that_says_how_often_it_was_asked() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    with pytest.raises(StageError, match="does not answer, asked 3 times") as caught:
        asked(url)(ROWS, ANSWERS)
    assert caught.value.where == "stage g, reward.parts.http, rows r0 to r4"
    assert "refused" in str(caught.value.found).lower()
    assert "checkpoints are kept" in str(caught.value.hint)


def test_an_endpoint_that_is_slow_is_given_up_even_where_it_sends_something_all_the_time(judge: Judge) -> None:
    judge.planned = [_drip, _drip]
    with pytest.raises(StageError, match="does not answer, asked 2 times") as caught:
        asked(judge.url, timeout=0.3, retries=1)(ROWS[:1], ANSWERS[:1])
    assert caught.value.found == "no answer within 0.3 s"
    assert caught.value.where.endswith("row r0")


@pytest.mark.parametrize(("reply", "problem"), [
    ((200, b"<html>oops"), "is no JSON"),
    ((200, b"[1, 2]"), "has no scores"),
    ((200, b'{"scores": 3}'), "has no scores"),
    ((200, b'{"scores": [1]}'), "another number of scores"),
    ((200, b'{"scores": [' + b" " * 100_000), "too long"),
    ((400, b"what is this"), "refuses the request"),
    ((401, b"who are you"), "refuses the request"),
    ((302, b""), "refuses the request"),
])
def test_what_no_further_attempt_mends_ends_it_at_once(judge: Judge, reply: Reply, problem: str) -> None:
    judge.planned = [lambda h: reply]
    with pytest.raises(StageError, match=problem) as caught:
        asked(judge.url)(ROWS[:2], ANSWERS[:2])
    assert caught.value.where == "stage g, reward.parts.http, rows r0 to r1"
    assert caught.value.found is not None
    assert caught.value.expected
    assert len(judge.bodies) == 1


def test_a_key_comes_from_the_environment_and_stands_in_no_error(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_KEY", "s3cret")
    endpoint = asked(judge.url, key_env="REWARD_KEY")
    assert endpoint(ROWS[:1], ANSWERS[:1]) == [1]
    assert judge.keys == ["Bearer s3cret"]
    judge.planned = [lambda h: (403, b"no")]
    with pytest.raises(StageError) as caught:
        endpoint(ROWS[:1], ANSWERS[:1])
    assert "s3cret" not in str(caught.value)
    monkeypatch.delenv("REWARD_KEY")
    with pytest.raises(ConfigError, match="not in the environment"):
        asked(judge.url, key_env="REWARD_KEY")
