"""POST /v1/embeddings by the real client: the vectors of stages, from texts and ids; and an embedder that is not what
was recorded."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import openai
import pytest
import torch

from alignment import pipeline
from alignment.artifacts import Artifact
from alignment.config.serve import Limits
from alignment.errors import ConfigError
from alignment.inference.generator import embedder_of
from alignment.serving import records
from alignment.serving.service import Model, Service
from tests.serving.built import CPU, copied, proved
from tests.serving.test_server import KEY, Running
from tests.small import run

TEXTS = ["The boat is red.", "Which colour has the boat by the gate, and who painted it?", "请"]
VECTORS: dict[str, Any] = {"name": "vectors", "kind": "import", "role": "embedder", "dtype": "float32",
                           "model": {"source": "tiny", "hidden_size": 32, "layers": 2, "heads": 4, "vocab_size": 384}}
SELECT: dict[str, Any] = {"name": "few", "kind": "select", "by": "coverage", "rows": ["data/train"],
                          "embedder": "vectors", "pooling": "mean", "take": 3}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """An embedder, a stage that read its vectors, and a language model."""
    made = pipeline.execute(run(tmp_path_factory.mktemp("vectors"), VECTORS, SELECT)).artifacts
    return {name: artifact for name, artifact in made.items() if artifact is not None}


@pytest.fixture(scope="module")
def running(artifacts: dict[str, Artifact]) -> Iterator[Running]:
    held = [Model(name, artifacts[name], records.make(artifacts[name], CPU)) for name in ("vectors", "base")]
    made = Running(Service(held, CPU, Limits(longest=200), key=KEY))
    yield made
    made.close()


def test_the_client_gets_the_vectors_of_stages(running: Running, artifacts: dict[str, Artifact]) -> None:
    with embedder_of(artifacts["vectors"], CPU) as stage:
        wanted, _ = stage.embed(TEXTS, pooling="mean", max_tokens=200, normalise=False)
        ids = [stage.ids(text) for text in TEXTS]
    client = running.client()
    for given in (TEXTS, ids):
        for encoding in ("float", "base64"):
            asked: Any = {"model": "vectors", "input": given, "encoding_format": encoding}
            said = client.embeddings.create(**asked)
            found: list[Any] = [one.embedding for one in said.data]
            if encoding == "base64":
                found = [numpy.frombuffer(base64.b64decode(one), dtype="<f4") for one in found]
            assert numpy.allclose(found, wanted, atol=1e-6)
            assert said.usage.prompt_tokens == said.usage.total_tokens == sum(map(len, ids))
            assert [one.index for one in said.data] == [0, 1, 2]
    many = client.embeddings.create(model="vectors", input=[TEXTS[0]] * 70, dimensions=32)
    assert len(many.data) == 70
    assert numpy.allclose([one.embedding for one in many.data], wanted[0], atol=1e-6)
    one = client.embeddings.create(model="vectors", input=TEXTS[1])
    assert numpy.allclose(one.data[0].embedding, wanted[1], atol=1e-6)


def test_an_embedder_says_what_it_is_and_was_proved(running: Running, artifacts: dict[str, Artifact]) -> None:
    listed = running.client().models.retrieve("vectors").model_extra
    assert listed is not None
    assert listed["kind"] == "embedder"
    reading = running.service.models["vectors"].reading
    assert reading == records.Reading("mean", False, f"as {artifacts['few'].key} reads it")
    proof = running.raw("GET", "/ready")[1]["models"]["vectors"]["proof"]
    assert proof["proved"] is True
    assert proof["rows"] == len(records.PROMPTS)
    assert proof["most_off"] < 1e-6
    assert Path(proof["written"]).is_file()


@pytest.mark.parametrize(("body", "code", "words"), [
    ({"model": "base"}, "wrong_kind", "'base' is a policy model, which writes text"),
    ({"dimensions": 16}, None, "this model's vectors have 32 numbers"),
    ({"input": ""}, "invalid_request", "input"),
    ({"input": []}, "invalid_request", "input"),
    ({"input": [["x"]]}, "invalid_request", "input"),
    ({"input": ["a"] * 2049}, "invalid_request", "2048"),
    ({"input": [1, 999_999]}, None, "the model has no token 999999"),
    ({"input": ["fits", "boat " * 400]}, "context_length_exceeded", "takes 200 tokens, and input 1 has"),
    ({"encoding_format": "int8"}, "invalid_request", "encoding_format"),
    ({"pooling": "cls"}, "invalid_request", "pooling: not a key that is honoured here"),
])
def test_what_gets_no_vector_is_told_why(running: Running, body: dict[str, Any], code: str, words: str) -> None:
    status, said, _ = running.raw("POST", "/v1/embeddings",
                                  json.dumps({"model": "vectors", "input": "x", **body}).encode())
    assert status == 400
    assert said["error"]["code"] == code
    assert words in said["error"]["message"]


def test_an_embedder_writes_no_text(running: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="'vectors' is a embedder model, which makes vectors"):
        running.client().completions.create(model="vectors", prompt="x")


def test_another_embedder_is_not_served_as_the_recorded_one(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    """Weights that changed between record and proof, and vectors that would be read otherwise."""
    own = copied(artifacts["vectors"], tmp_path / "copy")
    record = records.make(own, CPU)

    def plant(service: Service) -> None:
        model: Any = service.models["vectors"].embedder
        with torch.no_grad():
            model._model.layers[0].mlp.down_proj.weight[:16] = 0

    service = proved(Service([Model("vectors", own, record)], CPU, Limits()), plant)
    assert service.models["vectors"].state == "failed"
    assert "row built-in-0: the vector of 32 numbers lies" in str(service.models["vectors"].trouble)
    service = proved(Service([Model("vectors", own, record)], CPU, Limits(), pooling="mean"))
    assert "recorded with mean (normalise False) and are served with mean (normalise True)" in str(
        service.models["vectors"].trouble)


def test_nobody_guesses_which_states_stand_for_a_text(tmp_path: Path) -> None:
    alone = pipeline.execute(run(tmp_path, VECTORS)).artifacts["vectors"]
    assert alone is not None
    with pytest.raises(ConfigError, match="no stage of the store says"):
        records.make(alone, CPU)
    assert records.make(alone, CPU, "mean").rows
    service = proved(Service([Model("vectors", alone, None)], CPU, Limits()))
    assert "no stage of the store says" in str(service.models["vectors"].trouble)
