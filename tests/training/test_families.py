"""What is measured is what was trained, for every family and every set of modules that is let through.

Each case trains two steps as a train stage does and saves as it does; a process that never trained loads the artifact
as evaluation does, adapter merged and apart, and must find the loss that the trainer found.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact, Store
from alignment.config import TrainBase
from alignment.errors import ModelError
from tests.matrix import cases
from tests.models import published
from tests.training.families import FAMILIES, family
from tests.training.fresh import Fresh
from tests.training.made import FULL, LORA, context, preferred, published_rows

PROMPTS = [f"How many are {index}?" for index in range(4)]
RIGHT = ["two " * (1 + index % 3) for index in range(4)]
WRONG = ["nine"] * 4
NEAR = 1e-4
BETA = 0.1
QUICK = ("llama-tied", "gpt2", "gemma2", "qwen3_moe")
"""Tied, Conv1D with learned positions, capped logits, experts in one parameter: each family once within a minute."""
REFUSED = {"recurrent_gemma": "not the model's own", "deepseek_v3": "left out: down_proj, gate_proj, up_proj"}
"""Families that all-linear is refused for, and why."""
APART = ("gemma3_text-mixed", "phi3", "gpt_neox", "opt", "falcon", "granite", "mixtral", "qwen2_moe")
"""Mixed windows, fused layers, heads with a bias, logits that are scaled, experts: what QUICK has not."""
ALL = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in cases(
    [*QUICK, *APART], [name for name in FAMILIES if name not in (*QUICK, *APART, *REFUSED)])]
Trained = tuple[Artifact, float]
Train = Callable[..., Trained]


@pytest.fixture(scope="module")
def fresh() -> Iterator[Fresh]:
    made = Fresh()
    yield made
    made.close()


@pytest.fixture(scope="module")
def bases(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    return cache(lambda name: family(name, store, tmp_path_factory.mktemp(f"base-{name}".replace("_", "-"))))


@pytest.fixture(scope="module")
def pairs(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    rows = [preferred(f"p{index}", *texts) for index, texts in enumerate(zip(PROMPTS, RIGHT, WRONG, strict=True))]
    return published_rows(store, tmp_path_factory.mktemp("pairs"), "data-111111111111", train=rows, dev=rows)


@pytest.fixture
def train(store: Store, pairs: Artifact, tmp_path: Path) -> Train:
    """(start, method, keys) -> what the stage publishes, and the last loss that the trainer measured."""
    def made(start: Artifact, method: str = "sft", **keys: Any) -> Trained:
        from alignment.training.fit import fit

        folder = tmp_path / f"{method}-{len(list(tmp_path.iterdir()))}-{tmp_path.name}".replace("_", "-").lower()
        rate = 5e-3 if keys.get("strategy") == FULL else 5e-2
        of = context(store, folder, start, pairs, method, batch_size=4, micro_batch_size=4, eval_rows="data/dev",
                     **{"learning_rate": rate, "strategy": LORA, **keys},
                     trl={"max_steps": 2, "lr_scheduler_type": "constant", **keys.pop("trl", {})})
        fit(of)
        events = [json.loads(line) for line in of.events.read_text(encoding="utf-8").splitlines()]
        return published(store, of.key, of.out), next(e["eval_loss"] for e in reversed(events) if "eval_loss" in e)

    return made


def loss(fresh: Fresh, artifact: Artifact, merge: bool = True) -> float:
    """Of a language model, as sft has it: per token."""
    from alignment import templates
    from alignment.inference.loading import load_tokenizer

    tokenizer = load_tokenizer(artifact.path() / "model", side="right")
    tokens = sum(len(templates.encode_completion(tokenizer, [{"role": "user", "content": prompt}], text)[1])
                 for prompt, text in zip(PROMPTS, RIGHT, strict=True))
    return -sum(fresh.ask(artifact, PROMPTS, RIGHT, merge=merge)) / tokens


def preference_loss(fresh: Fresh, artifact: Artifact, reference: Artifact, merge: bool = True) -> float:
    """As dpo has it: -log sigmoid(beta (chosen - rejected)), each less the reference's."""
    def margins(of: Artifact, merge: bool) -> list[float]:
        right, wrong = (fresh.ask(of, PROMPTS, texts, merge=merge) for texts in (RIGHT, WRONG))
        return [a - b for a, b in zip(right, wrong, strict=True)]

    apart = zip(margins(artifact, merge), margins(reference, True), strict=True)
    return sum(math.log1p(math.exp(-BETA * (own - its))) for own, its in apart) / len(PROMPTS)


def score_loss(fresh: Fresh, artifact: Artifact) -> float:
    right, wrong = (fresh.ask(artifact, PROMPTS, texts) for texts in (RIGHT, WRONG))
    return sum(math.log1p(math.exp(b - a)) for a, b in zip(right, wrong, strict=True)) / len(PROMPTS)


@pytest.mark.parametrize("name", ALL)
def test_a_chain_of_adapters_is_measured_as_it_was_trained(
    name: str, bases: Callable[[str], Artifact], train: Train, fresh: Fresh
) -> None:
    base = bases(name)
    sft, trained = train(base)
    assert trained < loss(fresh, base) - 0.1, "two steps change what the model says"
    assert loss(fresh, sft) == pytest.approx(trained, abs=NEAR)
    assert loss(fresh, sft, merge=False) == pytest.approx(trained, abs=NEAR)
    dpo, trained = train(sft, "dpo")
    assert abs(trained - math.log(2)) > 0.01, "two steps change what it prefers"
    assert preference_loss(fresh, dpo, sft) == pytest.approx(trained, abs=NEAR)
    assert preference_loss(fresh, dpo, sft, merge=False) == pytest.approx(trained, abs=NEAR)
    if name in ("granite", "cohere"):
        with pytest.raises(ModelError, match="no reward model of this architecture"):
            train(sft, "reward")
        return
    reward, trained = train(sft, "reward")
    assert score_loss(fresh, reward) == pytest.approx(trained, abs=NEAR)


@pytest.mark.parametrize("name", cases([*QUICK], ALL[len(QUICK):]))
def test_all_weights_are_measured_as_they_were_trained(
    name: str, bases: Callable[[str], Artifact], train: Train, fresh: Fresh
) -> None:
    made, trained = train(bases(name), strategy=FULL)
    assert loss(fresh, made) == pytest.approx(trained, abs=NEAR)


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_be_measured_as_it_is_trained_is_refused(
    name: str, bases: Callable[[str], Artifact], train: Train
) -> None:
    with pytest.raises(ModelError, match=REFUSED[name]):
        train(bases(name))


ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
SLOW = pytest.mark.slow


@pytest.mark.parametrize(("name", "keys"), [
    ("llama", {"targets": ATTENTION}),
    pytest.param("llama", {"targets": MLP}, marks=SLOW),
    ("llama", {"targets": ["self_attn.q_proj", "layers.1.mlp.up_proj"], "dropout": 0.1}),
    pytest.param("gemma2", {"targets": ATTENTION}, marks=SLOW),
    pytest.param("phi3", {"targets": ["gate_up_proj"]}, marks=SLOW),
    ("gpt2", {"targets": ["c_attn", "mlp.c_proj"]}),
    pytest.param("falcon", {"targets": ["query_key_value"]}, marks=SLOW),
    ("qwen3_moe", {"targets": MLP}),
    pytest.param("mixtral", {"targets": ["w1", "w2", "w3"]}, marks=SLOW),
    pytest.param("deepseek_v3", {"targets": ["q_proj", "o_proj"]}, marks=SLOW),
    ("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    pytest.param("llama", {"modules_to_save": ["embed_tokens"]}, marks=SLOW),
    pytest.param("llama", {"modules_to_save": ["model.norm", "lm_head"]}, marks=SLOW),
    ("llama-tied", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    pytest.param("llama-tied", {"modules_to_save": ["lm_head"]}, marks=SLOW),
    pytest.param("gemma2", {"modules_to_save": ["embed_tokens"]}, marks=SLOW),
    pytest.param("cohere", {"modules_to_save": ["lm_head"]}, marks=SLOW),
    pytest.param("gpt_neox", {"modules_to_save": ["embed_in", "lm_head"]}, marks=SLOW),
])
def test_every_set_of_modules_is_measured_as_it_was_trained(
    name: str, keys: dict[str, Any], bases: Callable[[str], Artifact], train: Train, fresh: Fresh
) -> None:
    strategy = {**LORA, **keys}
    sft, trained = train(bases(name), strategy=strategy)
    assert loss(fresh, sft) == pytest.approx(trained, abs=NEAR)
    assert loss(fresh, sft, merge=False) == pytest.approx(trained, abs=NEAR)
    dpo, trained = train(sft, "dpo", strategy=strategy)
    assert preference_loss(fresh, dpo, sft) == pytest.approx(trained, abs=NEAR)
    assert preference_loss(fresh, dpo, sft, merge=False) == pytest.approx(trained, abs=NEAR)


def test_tied_embeddings_that_are_trained_stay_tied(bases: Callable[[str], Artifact], train: Train) -> None:
    import torch
    from safetensors.torch import load_file

    from alignment.inference.loading import load_policy

    made, _ = train(bases("llama-tied"), strategy={**LORA, "modules_to_save": ["embed_tokens"]})
    saved = load_file(made.path() / "model" / "adapter_model.safetensors")
    embedding = saved["base_model.model.model.embed_tokens.weight"]
    assert torch.equal(saved["base_model.model.lm_head.weight"], embedding)
    merged = load_policy(made, dtype=torch.float32, device="cpu")
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert torch.equal(merged.lm_head.weight, embedding)
    before = load_policy(bases("llama-tied"), dtype=torch.float32, device="cpu")
    assert (before.lm_head.weight - embedding).abs().max() > 1e-2


@pytest.mark.parametrize(("name", "keys", "problem", "place"), [
    ("gpt2", {"targets": ["wte"]}, "match no linear layer", "targets"),
    ("gpt2", {"modules_to_save": ["wte"]}, "keeps them one only where", "modules_to_save"),
    ("llama", {"modules_to_save": ["q_proj"]}, "match no module that can be trained whole", "modules_to_save"),
    ("llama", {"modules_to_save": ["embed_tokens", "head"]}, "match no module that can be trained whole",
     "modules_to_save"),
    ("qwen3_moe", {"dropout": 0.1}, "has no dropout", "dropout"),
    ("qwen3_moe", {"targets": ["gate_proj"]}, "cannot stand alone", "targets"),
    ("deepseek_v3", {"targets": MLP}, "would have no adapter", "targets"),
])
def test_what_cannot_be_kept_is_refused_by_its_key(
    name: str, keys: dict[str, Any], problem: str, place: str, bases: Callable[[str], Artifact], train: Train
) -> None:
    with pytest.raises(ModelError, match=problem) as error:
        train(bases(name), strategy={**LORA, **keys})
    assert error.value.where.endswith(f"strategy.{place}")


@pytest.mark.parametrize(("name", "whole"), [
    ("llama", ()), ("llama", ("embed_tokens", "lm_head")), ("llama-tied", ("embed_tokens",)),
])
def test_among_frozen_weights_in_bfloat16_what_trains_is_float32_and_goes_on_as_it_was_saved(
    name: str, whole: tuple[str, ...], bases: Callable[[str], Artifact], store: Store, pairs: Artifact, tmp_path: Path
) -> None:
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    from alignment.training.fit import fit
    from alignment.training.model import build

    keys = {"strategy": {**LORA, **({"modules_to_save": list(whole)} if whole else {})}, "batch_size": 4,
            "micro_batch_size": 4, "learning_rate": 1e-4}
    low = {"device": "cpu", "dtype": "bfloat16"}
    of = context(store, tmp_path / f"{name}-{len(whole)}-sft", bases(name), pairs, compute=low,
                 trl={"max_steps": 2, "gradient_checkpointing": True}, **keys)
    fit(of)
    made = published(store, of.key, of.out)
    saved = load_file(made.path() / "model" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    kept = [tensor for tensor_name, tensor in saved.items() if ".lora_" not in tensor_name]
    assert len(kept) == (2 if whole else 0)
    assert all(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in kept), "small updates are kept"
    of = context(store, tmp_path / f"{name}-{len(whole)}-dpo", made, pairs, "dpo", compute=low, trl={"max_steps": 1},
                 **keys)
    model, _ = build(of.stage_as(TrainBase), made, torch.bfloat16, 0)
    continued = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert all(torch.equal(continued[tensor], saved[tensor]) for tensor in saved)
    fit(of)
    first = json.loads(of.events.read_text(encoding="utf-8").splitlines()[0])
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6), "the reference is the start, to the bit"
