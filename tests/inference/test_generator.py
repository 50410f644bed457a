"""Opened models: weights come when they are needed, go when they are closed, and answer as the parts below do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from alignment.artifacts import Artifact, Store
from alignment.config import parse_run
from alignment.context import StageContext
from alignment.errors import ConfigError, DataError, ModelError
from alignment.inference import embedded
from alignment.inference.engine import Engine
from alignment.inference.generator import open_engine, open_scorer
from alignment.inference.info import write_info
from alignment.inference.loading import load_policy, load_reward, load_tokenizer
from alignment.inference.requests import Draw, Request
from alignment.inference.scoring import RewardScorer, log_probs
from alignment.templates import encode_prompt
from tests.models import published

PROMPT = [{"role": "user", "content": "What colour is the boat?"}]
REQUEST = Request("a", PROMPT, (Draw(temperature=0.0, max_new_tokens=6), Draw(seed=3, max_new_tokens=6)))
ITEMS = [(PROMPT, "red"), (PROMPT, "")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("models")
    store = Store(str(folder / "store"))
    shutil.copytree(tiny_model_dir, folder / "base" / "model")
    made = {"base": published(store, "base-0", folder / "base")}
    shutil.copytree(tiny_model_dir, folder / "rm" / "model")
    torch.manual_seed(4)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, dtype=torch.float32, num_labels=1)
    model.save_pretrained(folder / "rm" / "model")
    write_info(folder / "rm" / "model", role="reward", form="full", base=None,
               tokenizer=load_tokenizer(tiny_model_dir, side="right"))
    return {**made, "rm": published(store, "rm-0", folder / "rm")}


def context(models: dict[str, Artifact], **compute: Any) -> StageContext:
    run = parse_run(json.dumps({"name": "t", "compute": {"dtype": "float32", "device": "cpu", **compute}, "stages": [
        {"name": name, "kind": "import", "model": {"source": "tiny"}} for name in models]}))
    store = models["base"].store
    return StageContext(run, run.stage("base"), store, "x-0", "d" * 64, models, store.workdir("x-0"))


def test_answers_and_scores_are_those_of_engine_and_scorer(models: dict[str, Artifact]) -> None:
    placement: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    model, tokenizer = load_policy(models["base"], **placement), load_tokenizer(
        models["base"].path() / "model", side="left")
    ended: list[int] = []
    with open_engine(context(models), "base") as engine:
        assert engine.generate([REQUEST], ended.append) == Engine(model, tokenizer).generate([REQUEST])
        assert engine.log_probs(ITEMS) == log_probs(model, tokenizer, ITEMS)
        assert engine.prompt_tokens(PROMPT) == len(encode_prompt(tokenizer, PROMPT))
    assert sum(ended) == 2
    right = load_tokenizer(models["rm"].path() / "model", side="right")
    with open_scorer(context(models), "rm") as scorer:
        assert scorer.score(ITEMS) == RewardScorer(load_reward(models["rm"], **placement), right).score(ITEMS)


def test_weights_come_at_first_need_once_and_go_at_close(
    models: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Any]] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        model = load_policy(*args, **kwargs)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(embedded, "load_policy", watched)
    engine = open_engine(context(models), "base")
    assert engine.prompt_tokens(PROMPT) > 0
    with pytest.raises(DataError, match="refuses a conversation"):
        engine.prompt_tokens([{"content": "no role"}])
    engine.close()
    assert alive == [], "counting tokens needs no weights"
    engine.load()
    first = engine.generate([REQUEST])
    engine.log_probs(ITEMS)
    assert len(alive) == 1
    engine.close()
    assert alive[0]() is None
    assert engine.generate([REQUEST]) == first, "what is needed after close is loaded again"
    assert len(alive) == 2


def test_what_cannot_be_opened_says_so_when_it_is_loaded(models: dict[str, Artifact]) -> None:
    with pytest.raises(ModelError, match="not a policy"):
        open_engine(context(models), "rm").load()
    with pytest.raises(ModelError, match="not a reward"):
        open_scorer(context(models), "base").load()
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA"):
            open_engine(context(models, device="cuda"), "base").load()


def test_asking_imports_no_torch() -> None:
    code = ("import sys, alignment.inference.generator, alignment.inference.draws, alignment.sampling.batch, "
            "alignment.evaluation.answers, alignment.evaluation.questions; "
            "sys.exit(' '.join({'torch', 'transformers', 'ray'} & sys.modules.keys()) or None)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_streamed_answer_is_the_answer(models: dict[str, Artifact]) -> None:
    most = 0
    with embedded.EmbeddedGenerator(models["base"], context(models).run.compute) as engine:
        for seed in range(8):
            request = Request("a", PROMPT, (Draw(seed=seed, temperature=1.5, max_new_tokens=24),))
            pieces: list[str] = []
            streamed = engine.stream(request, pieces.append)
            assert streamed == engine.generate([request])[0][0]
            assert "".join(pieces) == streamed.text
            most = max(most, len(pieces))
    assert most > 5
