"""An engine that ends is started again and proved again, a few times; then it stays down, and all of it is said."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from alignment.artifacts import Artifact
from alignment.progress import console
from alignment.serving import revive
from tests.serving.built import service_of
from tests.serving.test_server import Running
from tests.waiting import until


@pytest.fixture
def running(models: dict[str, Artifact]) -> Iterator[Running]:
    made = Running(service_of({"base": models["base"], "sft": models["sft"], "rm": models["rm"]}))
    yield made
    made.close()


def engine_of(running: Running) -> Any:
    live = running.service.models["sft"].live
    assert live is not None
    return live.engine


def kill(running: Running) -> None:
    """End the thread of the transformers engine by something that no batch can be blamed for."""
    engine = engine_of(running)

    def end() -> Any:
        raise SystemExit

    engine._together = end
    running.chat(max_tokens=1)
    until(lambda: not engine._thread.is_alive())


def test_an_engine_that_ended_is_proved_again_before_it_answers(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "print", lambda text, **_: said.append(str(text)))
    before = running.chat(temperature=0, max_tokens=8)[1]["choices"][0]["message"]["content"]
    first, proofs = engine_of(running), running.service.models["sft"].proof["written"]
    # who is being answered is told to come again: whole with 503, in a stream by an event
    own = first._engines[None]
    told = own.told

    def dies(*given: Any, **more: Any) -> Any:
        yield from itertools.islice(told(*given, **more), 3)
        raise SystemExit

    own.told = dies
    _, raw, _ = running.chat(model="base", max_tokens=20, temperature=0, stream=True)
    events = [line for line in raw.decode().split("\n\n") if line]
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "engine_gone"
    assert events[-1] == "data: [DONE]"
    until(lambda: running.service.ready, 60)
    assert engine_of(running) is not first
    assert running.service.models["sft"].proof["proved"] is True
    assert running.chat(temperature=0, max_tokens=8)[1]["choices"][0]["message"]["content"] == before
    assert running.raw("GET", "/health")[0] == 200
    assert "kubealign_engine_restarts_total 1.0" in running.raw("GET", "/metrics")[1].decode()
    printed = "\n".join(said)
    assert "x the engine of base, sft has ended" in printed
    assert "! the engine of base, sft is started again (1 of 3)" in printed
    assert printed.count("= sft (") == 1
    assert "= rm (" not in printed
    assert proofs


def test_meanwhile_it_answers_nobody_and_at_last_it_stays_down(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revive, "TIMES", 1)
    reload, seen = running.service.reload, list[tuple[int, Any, dict[str, str]]]()

    def slowly(*given: Any) -> None:
        seen.append(running.chat())
        seen.append(running.raw("GET", "/health"))
        seen.append(running.raw("GET", "/ready"))
        reload(*given)

    monkeypatch.setattr(running.service, "reload", slowly)
    kill(running)
    until(lambda: running.service.ready, 60)
    (status, said, told), health, ready = seen
    assert (status, said["error"]["code"], told["retry-after"]) == (503, "engine_gone", "5")
    assert "it is started again" in said["error"]["message"]
    assert (health[0], ready[0]) == (503, 503)
    kill(running)
    until(lambda: running.service.models["sft"].state == "failed", 60)
    status, said, told = running.chat()
    assert (status, said["error"]["code"], "retry-after" in told) == (503, "engine_gone", False)
    assert running.raw("GET", "/health")[0] == 503
    trouble = running.raw("GET", "/ready")[1]["models"]["sft"]["trouble"]
    assert "started 1 times within 10 minutes" in trouble
    # a model that needs no engine goes on
    status, said, _ = running.raw("POST", "/v1/score", json.dumps(
        {"model": "rm", "text_1": "Which?", "text_2": "red"}).encode())
    assert status == 200
