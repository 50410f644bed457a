"""QLoRA: the base that an adapter was trained over is the one that it is measured, continued and merged over."""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact, Store
from alignment.errors import ModelError
from alignment.report.page import _model
from tests import small
from tests.invariants.test_resume import Stops
from tests.models import published
from tests.training.families import WIDE, family
from tests.training.fresh import Fresh
from tests.training.made import FULL, LORA, context, preferred, published_rows, stage
from tests.training.test_families import PROMPTS, RIGHT, WRONG, loss, preference_loss, score_loss

QLORA: dict[str, Any] = {"kind": "qlora", "r": 4, "alpha": 8}
NEAR = 1e-4
Trained = tuple[Artifact, float, dict[str, Any]]
Train = Callable[..., Trained]


@pytest.fixture(scope="module")
def fresh() -> Iterator[Fresh]:
    made = Fresh()
    yield made
    made.close()


@pytest.fixture(scope="module")
def bases(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    return cache(lambda name: family(name, store, tmp_path_factory.mktemp(f"wide-{name}".replace("_", "-")),
                                     **WIDE[name]))


@pytest.fixture(scope="module")
def pairs(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    rows = [preferred(f"p{index}", *texts) for index, texts in enumerate(zip(PROMPTS, RIGHT, WRONG, strict=True))]
    return published_rows(store, tmp_path_factory.mktemp("pairs"), "data-222222222222", train=rows, dev=rows)


@pytest.fixture
def train(store: Store, pairs: Artifact, tmp_path: Path) -> Train:
    """(start, method, keys) -> what the stage publishes, the last loss that the trainer measured, and its facts."""
    def made(start: Artifact, method: str = "sft", **keys: Any) -> Trained:
        from alignment.training.fit import fit, read_outcome

        folder = tmp_path / f"{method}-{len(list(tmp_path.iterdir()))}-{tmp_path.name}".replace("_", "-").lower()
        of = context(store, folder, start, pairs, method, **{
            "batch_size": 4, "micro_batch_size": 4, "eval_rows": "data/dev", "learning_rate": 5e-2, "strategy": QLORA,
            **keys, "trl": {"max_steps": 2, "lr_scheduler_type": "constant", **keys.get("trl", {})}})
        fit(of)
        facts = read_outcome(of).facts
        events = [json.loads(line) for line in of.events.read_text(encoding="utf-8").splitlines()]
        last = next(e["eval_loss"] for e in reversed(events) if "eval_loss" in e)
        return published(store, of.key, of.out), last, facts

    return made


@pytest.mark.parametrize("name", [
    "llama-tied", "qwen3_moe", pytest.param("gpt2", marks=pytest.mark.slow),
    pytest.param("gemma2", marks=pytest.mark.slow)])
def test_a_chain_over_four_bits_is_measured_as_it_was_trained(
    name: str, bases: Callable[[str], Artifact], train: Train, fresh: Fresh
) -> None:
    base = bases(name)
    sft, trained, facts = train(base)
    assert trained < loss(fresh, base) - 0.1, "two steps change what the model says"
    assert loss(fresh, sft) == pytest.approx(trained, abs=NEAR)
    assert loss(fresh, sft, merge=False) == pytest.approx(trained, abs=NEAR)
    assert facts["quantisation"] == "nf4-double"
    share = facts["quantised_parameters"] / facts["base_parameters"]
    assert (0.1 < share < 0.2) if name == "qwen3_moe" else (0.6 < share < 0.8), "experts in one parameter are not"
    assert facts["parameters"] == facts["base_parameters"] + facts["trainable_parameters"], "none counted packed"
    dpo, trained, facts = train(sft, "dpo")
    assert facts["reference"]["how"] == "frozen copy of the start adapter, over nf4-double"
    assert abs(trained - math.log(2)) > 0.01, "two steps change what it prefers"
    assert preference_loss(fresh, dpo, sft) == pytest.approx(trained, abs=NEAR)
    reward, trained, _ = train(sft, "reward")
    assert score_loss(fresh, reward) == pytest.approx(trained, abs=NEAR)


def over_its_base_as_stored(store: Store, artifact: Artifact, folder: Path) -> Artifact:
    """The same adapter, its base said to be in full precision: what a program takes that asks nothing."""
    shutil.copytree(artifact.path() / "model", folder / "out" / "model")
    info = folder / "out" / "model" / "kubealign.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "quantisation": None}), encoding="utf-8")
    return published(store, "raw-000000000000", folder / "out")


def test_the_difference_to_the_base_as_stored_is_known_and_said(
    bases: Callable[[str], Artifact], train: Train, fresh: Fresh, store: Store, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sft, trained, facts = train(bases("llama-tied"))
    raw = over_its_base_as_stored(store, sft, tmp_path_factory.mktemp("raw"))
    apart = [abs(a - b) for a, b in zip(fresh.ask(sft, PROMPTS, RIGHT), fresh.ask(raw, PROMPTS, RIGHT), strict=True)]
    assert max(apart) > 100 * NEAR, "it would be seen"
    assert abs(loss(fresh, raw) - trained) > 10 * NEAR
    assert facts["base_difference"]["nats_per_token"] > 100 * NEAR
    assert facts["base_difference"]["of"] > 50
    reported = _model(stage("sft"), replace(sft, manifest=sft.manifest.model_copy(update={"facts": facts})))["start"]
    assert reported.startswith(f"{bases('llama-tied').key}, over nf4-double (over it as stored, 0.")
    assert reported.endswith("nats a token apart)")
    _, _, facts = train(sft, "reward")
    assert facts["base_difference"]["score"] > 0


def test_methods_are_held_to_the_base_that_is_trained_over(bases: Callable[[str], Artifact], train: Train) -> None:
    """Whoever starts where its reference is has no loss but that of no difference: in the first evaluation too."""
    base, still = bases("llama-tied"), {"learning_rate": 1e-12}
    for method, none in (("dpo", math.log(2)), ("kto", 0.5)):
        for reference in ("adapter", "precomputed"):
            _, trained, facts = train(base, method, reference=reference, **still)
            assert trained == pytest.approx(none, abs=1e-6)
            assert facts["reference"]["how"].endswith(", over nf4-double")


def test_all_weights_start_where_the_adapter_was(
    bases: Callable[[str], Artifact], train: Train, fresh: Fresh, capsys: pytest.CaptureFixture[str]
) -> None:
    sft, trained, _ = train(bases("llama-tied"))
    full, merged, facts = train(sft, strategy=FULL, learning_rate=1e-12)
    assert merged == pytest.approx(trained, abs=NEAR)
    assert loss(fresh, full) == pytest.approx(trained, abs=NEAR)
    assert facts["merged"] == {"adapter": sft.key, "base": bases("llama-tied").key, "quantisation": "nf4-double"}
    assert "merged, in float32, into the weights that it was trained over" in capsys.readouterr().err
    again, trained, _ = train(full, learning_rate=1e-12)
    assert abs(trained - merged) > 10 * NEAR, "what was merged has values of its own, and is rounded anew"
    assert loss(fresh, again) == pytest.approx(trained, abs=NEAR)


@pytest.mark.parametrize(("first", "second"), [(QLORA, LORA), (LORA, QLORA)])
@pytest.mark.parametrize("method", ["sft", "reward"])
def test_an_adapter_is_continued_over_its_own_base_alone(
    bases: Callable[[str], Artifact], train: Train, first: dict[str, Any], second: dict[str, Any], method: str
) -> None:
    sft, _, _ = train(bases("llama-tied"), strategy=first)
    with pytest.raises(ModelError, match="trained over another base") as error:
        train(sft, method, strategy=second)
    assert error.value.where == "stage stage, strategy.kind"
    assert "strategy full" in str(error.value)


def test_what_is_trained_stays_in_float32_and_an_evaluation_changes_nothing(
    bases: Callable[[str], Artifact], train: Train
) -> None:
    """TRL rounds adapters over a quantised model to bfloat16; bitsandbytes computes an evaluation in it on some CPUs,
    and the training after that without gradients."""
    import torch
    from safetensors.torch import load_file

    strategy = {**QLORA, "modules_to_save": ["embed_tokens"]}
    made = [train(bases("llama-tied"), strategy=strategy, checkpoints={"every": every}, dtype=dtype)[0]
            for every, dtype in ((1, "float32"), (2, "float32"), (2, "bfloat16"))]
    often, once, rounded = (load_file(one.path() / "model" / "adapter_model.safetensors") for one in made)
    assert all(torch.equal(often[name], once[name]) for name in once)
    for name, tensor in {**once, **{f"in bfloat16, {name}": tensor for name, tensor in rounded.items()}}.items():
        assert tensor.dtype == torch.float32
        assert not torch.equal(tensor, tensor.bfloat16().float()), name


def test_in_bfloat16_the_base_is_the_same(bases: Callable[[str], Artifact]) -> None:
    """Four bits of the weights as they are stored, whatever is computed in; and so it is loaded."""
    import torch
    from bitsandbytes.functional import dequantize_4bit

    from alignment.training.model import build

    base = bases("llama-tied")
    for dtype in (torch.float32, torch.bfloat16):
        model, _ = build(stage("sft", strategy=QLORA, dtype=str(dtype).removeprefix("torch.")), base, dtype, 0)
        layer = model.get_base_model().model.layers[0].mlp.down_proj.base_layer
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert weight.dtype == dtype
        assert torch.equal(weight, rounded(base)["model.layers.0.mlp.down_proj.weight"].to(dtype))


def rounded(base: Artifact) -> dict[str, Any]:
    """The base's weights as four bits have them, by name."""
    import torch

    from alignment.inference import nf4
    from alignment.inference.loading import load_policy

    model = load_policy(base, dtype=torch.float32, device="cpu")
    nf4.round_weights(nf4.quantised_layers(model), torch.float32)
    return dict(model.state_dict())


@pytest.mark.parametrize("method", [pytest.param("sft", marks=pytest.mark.slow), "dpo"])
def test_resumed_equals_uninterrupted_with_eight_bit_states(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matrices of 4,096 weights, from which on bitsandbytes's optimizer keeps its states in eight bits."""
    import torch

    from alignment.pipeline import execute
    from alignment.training import fit as module

    monkeypatch.setitem(small.BASE["model"], "hidden_size", 64)
    strategy = {"kind": "qlora", "r": 64, "alpha": 16, "dropout": 0.1}
    stages = (small.train("start", strategy=strategy, epochs=1),
              small.train("stage", method, "start", strategy=strategy, epochs=3, micro_batch_size=4))
    alone = execute(small.run(tmp_path / "alone", *stages)).artifacts["stage"]
    run = small.run(tmp_path / "stopped", *stages)
    for name in ("base", "data", "start"):
        execute(run, only=name)
    with monkeypatch.context() as patch:
        fit = module.fit
        patch.setattr(module, "fit", lambda of, workers, callbacks: fit(
            of, workers=workers, callbacks=(*callbacks, Stops())))
        with pytest.raises(KeyboardInterrupt):
            execute(run, only="stage")
    state = next((tmp_path / "stopped" / "store" / "work").glob("*/checkpoints/checkpoint-4/optimizer.pt"))
    assert "torch.uint8" in types_in(torch.load(state, weights_only=False)["state"])
    resumed = execute(run).artifacts["stage"]
    assert resumed.manifest.facts["timing"]["resumed_from_step"] == 4
    assert small.losses(resumed) == small.losses(alone)
    name = "model/adapter_model.safetensors"
    assert resumed.manifest.files[name].sha256 == alone.manifest.files[name].sha256


def types_in(state: Any) -> set[str]:
    """Of the tensors in an optimizer's state, however deep."""
    if isinstance(state, dict):
        return set().union(*map(types_in, state.values()))
    return {str(state.dtype)} if hasattr(state, "dtype") else set()


def test_a_layer_that_the_kernels_give_back_otherwise_is_refused(
    store: Store, pairs: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Rows of 32 weights, where a block has 64: wrong in bitsandbytes 0.50.2 on CPUs with AVX512, right elsewhere."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    from alignment.inference import nf4
    from alignment.training.model import build

    narrow = family("llama", store, tmp_path_factory.mktemp("narrow"))
    weight = torch.randn(8, 32)
    right = torch.allclose(dequantize_4bit(*quantize_4bit(weight, compress_statistics=True, quant_type="nf4")),
                           nf4.dequantise(nf4.quantise(weight)), atol=1e-3)
    of = stage("sft", strategy=QLORA)
    if right:
        build(of, narrow, torch.float32, 0)
        return
    with pytest.raises(ModelError, match="gives other weights back") as error:
        build(of, narrow, torch.float32, 0)
    assert "layer model.layers.0.self_attn.q_proj of 32 x 32" in str(error.value)


@pytest.mark.parametrize("width", [16, 24, 32, 64, 80, 96, 128, 192, 200, 224])
def test_check_knows_which_widths_the_kernels_give_back_otherwise(width: int, tmp_path: Path) -> None:
    """On this machine's CPU, whichever it is: fails where bitsandbytes has mended its kernel."""
    import torch

    from alignment.checks.machine import four_bits
    from alignment.checks.seen import Sight
    from alignment.inference import nf4
    from alignment.training.quantised import _bitsandbytes, _layer

    def gives_back(layer: torch.nn.Linear) -> bool:
        try:
            _layer(_bitsandbytes("cpu", ""), layer, nf4.quantised_layer(layer, "cpu"), torch.float32, "layer", "")
        except ModelError:
            return False
        return True

    right = all(gives_back(torch.nn.Linear(*shape)) for shape in ((width, 4 * width), (4 * width, width)))
    base = {**small.BASE, "model": {**small.BASE["model"], "hidden_size": width}}
    run = small.run(tmp_path, small.train("adapted", strategy=QLORA))
    run = run.model_copy(update={"stages": (type(run.stages[0]).model_validate(base), *run.stages[1:])})
    found = list(four_bits(run, run.stage("adapted"), None, Sight(0)))
    assert [key for key, _ in found] == ([] if right else [("strategy", "kind")])


def test_without_bitsandbytes_the_package_is_named(
    bases: Callable[[str], Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from alignment.training.model import build

    monkeypatch.setitem(sys.modules, "bitsandbytes.cextension", None)
    with pytest.raises(ModelError, match="needs the package bitsandbytes") as error:
        build(stage("sft", strategy=QLORA), bases("llama-tied"), torch.float32, 0)
    assert error.value.where == "stage stage, strategy.kind"


def test_check_names_the_package_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from alignment.checks.machine import train as wrong

    find = importlib.util.find_spec
    assert list(wrong(stage("sft", strategy=QLORA))) == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: (
        None if name == "bitsandbytes" else find(name, package)))
    ((key, error),) = wrong(stage("sft", strategy=QLORA))
    assert key == ("strategy", "kind")
    assert "bitsandbytes is not installed" in str(error)
    assert list(wrong(stage("sft", strategy=LORA))) == []


def test_an_architecture_without_linear_layers_is_refused() -> None:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

    from alignment.training.quantised import in_four_bits

    class Counts(PreTrainedModel):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(PretrainedConfig(model_type="counts"))
            self.embedding = torch.nn.Embedding(4, 4)

        def get_output_embeddings(self) -> None:
            return None

    with pytest.raises(ModelError, match="no linear layer") as error:
        in_four_bits(Counts(), torch.float32, "cpu", "stage stage")
    assert error.value.hint == "strategy lora"


def test_a_library_for_cpus_alone_is_refused_on_a_gpu(bases: Callable[[str], Artifact]) -> None:
    import torch
    from bitsandbytes.cextension import lib

    from alignment.training.model import build

    if lib.compiled_with_cuda:
        pytest.skip("the library here is one for GPUs")
    with pytest.raises(ModelError, match="has no library for this machine"):
        build(stage("sft", strategy=QLORA), bases("llama-tied"), torch.float32, 0, "cuda")


def test_of_bitsandbytes_one_line_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """What it says when it is imported without a kernel of the hub; its other warnings are heard."""
    import alignment.training  # noqa: F401

    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    log.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "No module named 'kernels'")
    log.warning("something else")
    assert caplog.messages == ["something else"]
