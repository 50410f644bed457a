"""Models that many ask at once, by transformers: adapters in turn beside one base, questions that nobody waits for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from alignment.artifacts import Artifact
from alignment.config import Compute
from alignment.errors import ModelError
from alignment.inference.live.asked import Broken, Grown, Heard, Question
from alignment.inference.live.opened import LiveModel, merged_policy, open_live
from alignment.inference.requests import Draw, Request
from alignment.templates import encode_prompt
from tests.decided import decided_base, with_adapter
from tests.models import as_it_lies

CPU = Compute(device="cpu", dtype="float32", engine="transformers")
TEXTS = ["Hi", "What colour is the boat by the gate?", "A lamp."]


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A random base, three adapters, and one of a layer that the base does not have."""
    folder = tmp_path_factory.mktemp("live")
    base = decided_base(folder)
    return {"base": base, **{name: with_adapter(base, name) for name in ("sft", "rloo", "distill")}}


@pytest.fixture(scope="module")
def live(policies: dict[str, Artifact]) -> Iterator[dict[str, LiveModel]]:
    """All of them over one engine that holds one adapter at a time and makes four answers at once."""
    opened = dict(zip(policies, (found for _, found in open_live(list(policies.values()), CPU, loaded=1, rows=4)),
                      strict=True))
    assert all(isinstance(one, LiveModel) for one in opened.values())
    made: dict[str, Any] = opened
    assert len({id(one.engine) for one in made.values()}) == 1
    yield made
    made["base"].engine.close()


class Ear:
    """Hears one answer."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.over = threading.Event()

    def __call__(self, heard: Heard) -> None:
        self.heard.append(heard)
        if isinstance(heard, Broken) or heard.ended:
            self.over.set()

    @property
    def ids(self) -> list[int]:
        assert self.over.wait(60)
        grown = [one for one in self.heard if isinstance(one, Grown)]
        return [token.id for one in grown for token in (one.tokens[:-1] if one.stop else one.tokens)]


def question(model: LiveModel, text: str, draw: Draw, top: int | None = None) -> Question:
    ids = encode_prompt(model.tokenizer, [{"role": "user", "content": text}])
    return Question(tuple(ids), draw, model.adapter, top)


LONG = Draw(temperature=0.0, max_new_tokens=200)
"""The adapter sft says 200 tokens and more to Hi."""
DRAWS = (Draw(temperature=0.0, max_new_tokens=12), Draw(temperature=0.9, top_p=0.9, seed=4, max_new_tokens=9))


def test_each_model_answers_with_its_own_weights_whatever_the_others_ask(
    policies: dict[str, Artifact], live: dict[str, LiveModel]
) -> None:
    wanted = {}
    for name, artifact in policies.items():
        with merged_policy(artifact, CPU) as stage:
            said = stage.generate([Request(text, [{"role": "user", "content": text}], DRAWS) for text in TEXTS])
        wanted[name] = [one.ids for own in said for one in own]
    assert len({str(ids) for ids in wanted.values()}) == len(policies)
    ears: dict[str, list[Ear]] = {name: [] for name in policies}
    for text in TEXTS:
        for draw in DRAWS:
            for name, model in live.items():
                ears[name].append(Ear())
                model.engine.ask(question(model, text, draw, top=2 if draw.temperature else None), ears[name][-1])
    assert {name: [ear.ids for ear in own] for name, own in ears.items()} == wanted
    tokens = [token for ear in ears["sft"] for one in ear.heard if isinstance(one, Grown) for token in one.tokens]
    assert any(token.log_prob is None for token in tokens)
    assert all(len(token.top) == 2 for token in tokens if token.log_prob is not None)


def test_what_nobody_waits_for_is_not_made(live: dict[str, LiveModel]) -> None:
    model = live["sft"]
    engine: Any = model.engine
    long, waits = Ear(), [Ear() for _ in range(6)]
    number = engine.ask(question(model, "Hi", LONG), long)
    numbers = [engine.ask(question(model, "Hi", LONG), ear) for ear in waits]
    for one in (number, *numbers[:5]):
        engine.cancel(one)
    assert waits[5].ids
    assert not any(ear.over.is_set() for ear in (long, *waits[:5]))
    assert not engine._open
    assert not engine._gone


def test_a_strange_adapter_leaves_nothing_in_the_weights_of_others(
    policies: dict[str, Artifact], live: dict[str, LiveModel]
) -> None:
    engine: Any = live["base"].engine
    before = Ear()
    engine.ask(question(live["base"], "Hi", DRAWS[0]), before)
    assert before.ids
    strange = with_adapter(policies["base"], "strange")
    file = strange.path() / "model" / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors[min(tensors)]
    save_file(tensors, file)
    engine.adapters = {**engine.adapters, "strange": as_it_lies(strange)}
    with pytest.raises(ModelError):
        engine.load("strange")
    after = Ear()
    engine.ask(question(live["base"], "Hi", DRAWS[0]), after)
    assert after.ids == before.ids


def test_an_engine_that_ends_says_so_to_all_that_wait(policies: dict[str, Artifact]) -> None:
    [(_, model)] = open_live([policies["sft"]], CPU)
    assert isinstance(model, LiveModel)
    ears = [Ear() for _ in range(3)]
    for ear in ears:
        model.engine.ask(question(model, "Hi", LONG), ear)
    model.engine.close()
    late = Ear()
    model.engine.ask(question(model, "Hi", DRAWS[0]), late)
    for ear in (*ears, late):
        assert ear.over.is_set()
        last = ear.heard[-1]
        assert isinstance(last, Broken)
        assert last.gone
    assert model.engine.trouble == "the engine has ended"
