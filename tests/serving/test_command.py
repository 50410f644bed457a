"""`kubealign serve` as a user types it: a run's models, the key, the port, the end; and what is refused before that."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import openai
import pytest

from alignment.artifacts import Artifact
from alignment.config import Run
from alignment.config.yaml_text import dump
from tests.cli.conftest import Call, call  # noqa: F401 - a fixture
from tests.waiting import until

ROOT = Path(__file__).parents[2]
KEY = "a-secret-of-tests-4711"
Finished = tuple[Run, dict[str, Artifact]]


def run_with(finished: Finished, file: Path, **serve: Any) -> Path:
    """The file of the finished run, with a section `serve` where that says anything."""
    run = finished[0].model_dump(mode="json", exclude_none=True)
    file.write_text(dump(run | ({"serve": serve} if serve else {})))
    return file


@pytest.fixture
def run_file(finished: Finished, tmp_path: Path) -> Path:
    return run_with(finished, tmp_path / "run.yaml")


def test_a_runs_models_are_served_until_the_process_is_ended(finished: Finished, tmp_path: Path) -> None:
    """As the run's `serve` has it, but for what the command line says itself."""
    run_file, log = run_with(finished, tmp_path / "run.yaml", models={"base": "base", "best": "sft", "rm": "rm"},
                             limits={"longest": 512, "tokens": 5}, replicas=3), tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "alignment.cli.main", "serve", str(run_file), "again=" + str(run_file) + ":sft",
             "--port", "0", "--max-loras", "1", "--max-tokens", "3"], cwd=tmp_path, stdout=out, stderr=out,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "KUBEALIGN_API_KEY": KEY})
    try:
        until(lambda: "ready:" in log.read_text() or process.poll() is not None, 120)
        told = log.read_text()
        assert "= best (sft-" in told, told
        assert "ready: base, best, rm, again" in told
        assert "run.yaml: this is one server; serve.replicas and max_replicas are for a cluster" in told
        port = re.search(r"127\.0\.0\.1:(\d+)", told)
        assert port is not None
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port[1]}/v1", api_key=KEY, max_retries=0)
        said = {name: client.chat.completions.create(model=name, messages=[{"role": "user", "content": "Hi"}],
                                                     temperature=0, max_tokens=8).choices[0].message.content
                for name in ("base", "best", "again")}
        assert said["best"] == said["again"]
        unsaid = client.chat.completions.create(model="base", messages=[{"role": "user", "content": "Hi"}],
                                                temperature=0)
        assert unsaid.usage is not None
        assert unsaid.usage.completion_tokens == 3, "the command line's"
        assert (client.models.retrieve("best").model_extra or {})["max_model_len"] == 512, "the run's"
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="another-key-0815").models.list()
        # the end: an answer that is being told is told to its end
        stream = client.chat.completions.create(model="best", messages=[{"role": "user", "content": "Hi"}],
                                                max_tokens=300, stream=True, temperature=1.5, seed=3)
        chunks: list[Any] = [next(iter(stream))]
        reading = threading.Thread(target=lambda: chunks.extend(stream))
        reading.start()
        process.send_signal(signal.SIGTERM)
        reading.join()
        assert chunks[-1].choices[0].finish_reason in ("stop", "length")
        assert process.wait(30) == 143
    finally:
        process.kill()
        process.wait()
    told = log.read_text()
    assert "terminated; all answers were ended" in told
    assert KEY not in told
    assert "another-key" not in told


def test_a_port_in_use_is_said_before_anything_is_loaded(run_file: Path, call: Call) -> None:  # noqa: F811
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = call("serve", f"{run_file}:sft", "--port", taken.getsockname()[1])
    assert said.code == 2
    assert "cannot listen there: Address already in use" in said.err
    assert "--port 0 takes a free one" in said.err


def test_a_model_that_is_not_what_was_recorded_ends_the_command(
    finished: Finished, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    from alignment.serving import records
    from alignment.serving.records import Record

    base, sft = finished[1]["base"], finished[1]["sft"]
    wrong = records.find(base)
    assert wrong is not None
    monkeypatch.setattr("alignment.serving.records.find_all",
                        lambda artifacts: [Record(wrong.rows, wrong.source) for _ in artifacts])
    said = call("serve", sft.path(), "--port", "0")
    assert said.code == 2
    assert f"x {sft.key} ({sft.key}) is NOT served: row rows-r" in said.err
    assert "none is what was recorded of it" in said.err


@pytest.mark.parametrize(("arguments", "words"), [
    (("RUN", "--host", "0.0.0.0"), "a server that other machines reach needs an API key"),
    (("RUN", "--api-key-from", "NOT_SET_HERE"), "the environment variable with the API key is not set"),
    (("RUN", "--stage", "stf"), "the run has no stage of this name"),
    (("RUN", "RUN:sft"), "two models have one name"),
    (("x=RUN",), "one name for several models"),
    (("RUN:data",), "the stage makes rows"),
    (("nothing-000000000000",), "no model is named so"),
    (("https://host/v1#model",), "an endpoint is served already"),
    (("RUN", "--vllm", "tensor_parallel_size=two"), "is not a whole number of at least 1"),
    (("RUN", "--votes", "/proc/no/votes"), "votes cannot be kept there"),
])
def test_what_cannot_be_served_is_refused(
    run_file: Path, call: Call, arguments: tuple[str, ...], words: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("KUBEALIGN_API_KEY", raising=False)
    said = call("serve", *(text.replace("RUN", str(run_file)) for text in arguments))
    assert said.code == 2
    assert words in said.err
    assert "Traceback" not in said.err


def test_run_files_with_different_limits_are_not_served_together(
    finished: Finished, tmp_path: Path, call: Call  # noqa: F811
) -> None:
    one = run_with(finished, tmp_path / "one.yaml", models=["sft"], limits={"tokens": 5})
    two = run_with(finished, tmp_path / "two.yaml", models=["base"], limits={"tokens": 6})
    said = call("serve", one, two)
    assert said.code == 2
    assert f"{two}, serve.limits, serve.unproved: run files that are served together have different limits" in said.err


def test_a_short_key_is_refused(run_file: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("KUBEALIGN_API_KEY", "short")
    said = call("serve", run_file)
    assert said.code == 2
    assert "too short" in said.err
    assert "'short'" not in said.err
