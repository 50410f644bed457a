"""What a train stage starts from: which parameters train, in which type, with whose values; and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact, Store
from alignment.errors import ModelError
from tests.models import as_it_lies
from tests.training.made import FULL, LORA, stage

PAD = 0
LAYERS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
# Width 32, inner width 128, 384 tokens, 2 layers; norms: 2 in each layer and one at the end.
BACKBONE = 384 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 128 + 2 * 32) + 32
POLICY = BACKBONE + 384 * 32
ADAPTER = 2 * 4 * (4 * (32 + 32) + 3 * (32 + 128))
Q_AND_V = 2 * 4 * 2 * (32 + 32)


def built(start: Artifact, method: str, strategy: dict[str, Any], dtype: str = "float32") -> tuple[Any, dict[str, Any]]:
    import torch

    from alignment.training.model import build

    return build(stage(method, strategy=strategy), start, getattr(torch, dtype), PAD)


def tensors(artifact: Artifact) -> dict[str, Any]:
    from safetensors.torch import load_file

    (file,) = (artifact.path() / "model").glob("*.safetensors")
    return dict(load_file(file))


def trained_and_frozen(model: Any) -> tuple[Counter[str], Counter[str]]:
    """Numbers by type: of what trains, and of what does not."""
    counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for parameter in model.parameters():
        counts[not parameter.requires_grad][str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    return counts


@pytest.mark.parametrize(("method", "start", "strategy", "trained", "frozen"), [
    ("sft", "base", LORA, ADAPTER, {"bfloat16": POLICY}),
    ("sft", "adapter", LORA, ADAPTER, {"bfloat16": POLICY}),
    ("dpo", "adapter", LORA, ADAPTER, {"bfloat16": POLICY}),
    ("sft", "base", {**LORA, "targets": ("q_proj", "v_proj")}, Q_AND_V, {"bfloat16": POLICY}),
    ("sft", "base", FULL, POLICY, {}),
    ("sft", "adapter", FULL, POLICY, {}),
    ("dpo", "adapter", FULL, POLICY, {}),
    ("kto", "adapter", FULL, POLICY, {}),
    ("dpo", "base", FULL, POLICY, {}),
    # The head is copied: PEFT trains the copy, and the original stays beside it.
    ("reward", "base", LORA, ADAPTER + 32, {"bfloat16": BACKBONE, "float32": 32}),
    ("reward", "adapter", LORA, ADAPTER + 32, {"bfloat16": BACKBONE, "float32": 32}),
    ("reward", "base", FULL, BACKBONE + 32, {}),
    ("reward", "adapter", FULL, BACKBONE + 32, {}),
])
def test_what_trains_is_float32_and_the_rest_in_the_given_type(
    request: pytest.FixtureRequest, method: str, start: str, strategy: dict[str, Any], trained: int,
    frozen: dict[str, int],
) -> None:
    model, facts = built(request.getfixturevalue(start), method, strategy, "bfloat16")
    assert trained_and_frozen(model) == ({"float32": trained}, frozen)
    assert (facts["trainable_parameters"], facts["parameters"]) == (trained, trained + sum(frozen.values()))
    names = {name.split(".lora_")[0].rsplit(".", 1)[-1] if ".lora_" in name else name.rsplit(".", 1)[-1]
             for name, parameter in model.named_parameters() if parameter.requires_grad}
    if strategy is FULL:
        assert facts.keys() == {"trainable_parameters", "parameters"}
    else:
        adapted = sorted(strategy.get("targets", LAYERS))
        assert facts["adapted_names"] == adapted
        assert facts["adapted_modules"] == 2 * len(adapted)
        assert names == {*adapted, *(["weight"] if method == "reward" else [])}


def test_a_fresh_adapter_is_as_the_stage_says_and_changes_nothing_yet(base: Artifact) -> None:
    import torch

    model, _ = built(base, "sft", {"kind": "lora", "r": 2, "alpha": 6, "dropout": 0.25})
    layer = model.get_submodule("base_model.model.model.layers.1.mlp.down_proj")
    assert (tuple(layer.lora_A.default.weight.shape), tuple(layer.lora_B.default.weight.shape)) == ((2, 128), (32, 2))
    assert (layer.scaling["default"], layer.lora_dropout.default.p) == (3.0, 0.25)
    saved = tensors(base)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            assert not parameter.any()
        elif ".lora_A." in name:
            assert parameter.any()
        else:
            own = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(parameter, saved[own])


@pytest.mark.parametrize("method", ["sft", "dpo", "reward"])
def test_the_adapter_of_the_start_is_continued_tensor_for_tensor(
    base: Artifact, adapter: Artifact, method: str
) -> None:
    import torch
    from peft import get_peft_model_state_dict

    model, _ = built(adapter, method, LORA, "bfloat16")
    own = {name: tensor for name, tensor in get_peft_model_state_dict(model).items() if "lora_" in name}
    saved = tensors(adapter)
    assert own.keys() == saved.keys()
    assert len(own) == 28
    assert all(torch.equal(own[name], saved[name]) for name in saved)
    assert model.active_adapter == "default"
    # Checkpoints look for the base's config where this says; the published adapter names a key.
    if method != "reward":
        assert model.peft_config["default"].base_model_name_or_path == str(base.path() / "model")


@pytest.mark.parametrize("start", ["base", "adapter"])
@pytest.mark.parametrize("strategy", [LORA, FULL], ids=["lora", "full"])
def test_the_reward_head_is_one_row_in_float32_without_bias(
    request: pytest.FixtureRequest, start: str, strategy: dict[str, Any]
) -> None:
    import torch

    model, _ = built(request.getfixturevalue(start), "reward", strategy, "bfloat16")
    assert (model.config.num_labels, model.config.pad_token_id) == (1, PAD)
    heads = [module for name, module in model.named_modules()
             if "score" in name.split(".") and isinstance(module, torch.nn.Linear)]
    assert len(heads) == (1 if strategy is FULL else 2)
    for head in heads:
        assert (tuple(head.weight.shape), head.weight.dtype, head.bias) == ((1, 32), torch.float32, None)
        assert head.weight.any()
    ids = torch.arange(20, 28).unsqueeze(0)
    scores = model.eval()(input_ids=ids).logits
    assert (tuple(scores.shape), scores.dtype) == ((1, 1), torch.float32)
    # The padding of a batch is not what is scored.
    padded = torch.cat([ids, torch.full((1, 3), PAD)], dim=1)
    again = model(input_ids=padded, attention_mask=(padded != PAD).long()).logits
    torch.testing.assert_close(again, scores, atol=1e-2, rtol=1e-2)


def test_full_training_starts_from_the_weights_of_the_base(base: Artifact) -> None:
    import torch

    saved = tensors(base)
    policy, _ = built(base, "sft", FULL, "bfloat16")
    assert {name: torch.equal(tensor, saved[name]) for name, tensor in policy.state_dict().items()} == dict.fromkeys(
        saved, True)
    reward, _ = built(base, "reward", FULL)
    shared = {name for name in saved if name != "lm_head.weight"}
    assert reward.state_dict().keys() == {*shared, "score.weight"}
    assert all(torch.equal(reward.state_dict()[name], saved[name]) for name in shared)


@pytest.mark.parametrize("method", ["sft", "reward"])
def test_full_training_from_an_adapter_starts_from_the_merged_weights(
    base: Artifact, adapter: Artifact, method: str
) -> None:
    import torch

    model, _ = built(adapter, method, FULL)
    weights, saved, low = model.state_dict(), tensors(base), tensors(adapter)
    for name in saved.keys() & weights.keys():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        wanted = saved[name]
        if f"{stem}.lora_A.weight" in low:
            wanted = wanted + 2.0 * low[f"{stem}.lora_B.weight"] @ low[f"{stem}.lora_A.weight"]  # alpha 8 of r 4
            assert (wanted - saved[name]).abs().max() > 1e-2
        torch.testing.assert_close(weights[name], wanted, atol=1e-6, rtol=1e-5)


HEAD, IDLE = "the output head takes no adapter", "match no linear layer"


@pytest.mark.parametrize(("method", "start", "targets", "problem", "found"), [
    ("sft", "base", ("nowhere",), IDLE, ["nowhere"]),
    ("sft", "base", ("q_proj", "nowhere"), IDLE, ["nowhere"]),
    ("sft", "base", ("nowhere", "q_proj", "k_project"), IDLE, ["nowhere", "k_project"]),
    ("reward", "base", ("q_proj", "nowhere"), IDLE, ["nowhere"]),
    ("dpo", "base", ("q_proj", "input_layernorm"), IDLE, ["input_layernorm"]),
    ("sft", "base", ("q_proj", "embed_tokens"), IDLE, ["embed_tokens"]),
    ("sft", "base", ("self_attn",), IDLE, ["self_attn"]),
    ("sft", "base", ("self_attn.q_proj", "mlp.q_proj"), IDLE, ["mlp.q_proj"]),
    ("reward", "base", ("self_attn.q_proj", "layers.7.mlp.up_proj"), IDLE, ["layers.7.mlp.up_proj"]),
    ("sft", "base", (), IDLE, []),
    ("reward", "base", ("q_proj", "score"), HEAD, ["score"]),
    ("reward", "base", ("lm_head",), IDLE, ["lm_head"]),
    ("dpo", "adapter", ("nowhere",), IDLE, ["nowhere"]),
    ("sft", "adapter", ("self_attn.q_proj", "mlp.q_proj"), IDLE, ["mlp.q_proj"]),
])
def test_targets_that_adapt_nothing_are_refused_by_name(
    request: pytest.FixtureRequest, method: str, start: str, targets: tuple[str, ...], problem: str, found: list[str]
) -> None:
    with pytest.raises(ModelError, match=problem) as error:
        built(request.getfixturevalue(start), method, {**LORA, "targets": targets})
    assert error.value.where == "stage stage, strategy.targets"
    assert error.value.found == found
    assert "q_proj" in str(error.value.expected)
    assert "score" not in str(error.value.expected)


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_head_takes_no_adapter(base: Artifact, tied: bool) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from alignment.config import Lora
    from alignment.training.targets import targets_of

    config = AutoConfig.from_pretrained(base.path() / "model", tie_word_embeddings=tied)
    lora = Lora(kind="lora", targets=("q_proj", "lm_head"))
    with pytest.raises(ModelError, match=HEAD) as error:
        targets_of(lora, AutoModelForCausalLM.from_config(config), "here")
    assert (error.value.where, error.value.found) == ("here, strategy.targets", ["lm_head"])


def test_targets_may_be_dotted_names(base: Artifact) -> None:
    _, facts = built(base, "sft", {**LORA, "targets": ("self_attn.q_proj", "layers.1.mlp.up_proj")})
    assert (facts["adapted_modules"], facts["adapted_names"]) == (3, ["q_proj", "up_proj"])


# --- damaged starts ------------------------------------------------------------------------------------------


def without(artifact: Artifact, into: Path, lost: str) -> Artifact:
    """A copy of the artifact, in a store of its own, that lacks one tensor."""
    import shutil
    from dataclasses import replace

    from safetensors.torch import load_file, save_file

    shutil.copytree(artifact.store.url, into / "store")
    store = Store(str(into / "store"))
    (file,) = (into / "store" / "artifacts" / artifact.key / "model").glob("*.safetensors")
    kept = load_file(file)
    del kept[lost]
    save_file(kept, file, {"format": "pt"})
    return as_it_lies(replace(artifact, store=store))


LOST = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("strategy", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("method", ["sft", "dpo", "reward"])
def test_a_base_that_lacks_a_weight_is_refused_by_its_name(
    base: Artifact, tmp_path: Path, method: str, strategy: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match="lacks weights") as error:
        built(without(base, tmp_path, LOST), method, strategy)
    assert error.value.found == [LOST]


@pytest.mark.parametrize("method", ["sft", "kto", "reward"])
def test_an_adapter_that_lacks_a_tensor_is_refused_by_its_name(adapter: Artifact, tmp_path: Path, method: str) -> None:
    lost = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    with pytest.raises(ModelError) as error:
        built(without(adapter, tmp_path, lost), method, LORA)
    assert "layers.1.mlp.up_proj.lora_B" in str(error.value)


# --- dropout -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["base", "adapter"])
@pytest.mark.parametrize("dropout", [0.0, 0.9])
def test_the_stages_dropout_counts_for_a_fresh_and_for_a_continued_adapter(
    request: pytest.FixtureRequest, start: str, dropout: float
) -> None:
    import torch

    model, _ = built(request.getfixturevalue(start), "sft", {**LORA, "dropout": dropout})
    layers = [module for name, module in model.named_modules() if name.endswith("lora_dropout.default")]
    assert len(layers) == 14
    assert {type(layer) for layer in layers} == {torch.nn.Dropout if dropout else torch.nn.Identity}
    assert {getattr(layer, "p", 0.0) for layer in layers} == {dropout}
    assert model.peft_config["default"].lora_dropout == dropout


@pytest.mark.parametrize("method", ["sft", "dpo", "reward"])
@pytest.mark.parametrize(("key", "other", "expected"), [
    ("r", 8, "4"), ("alpha", 32, "8"), ("targets", ("q_proj", "v_proj"), "its own 14 layers"),
    ("modules_to_save", ("embed_tokens",), "none"),
])
def test_a_continued_adapter_is_not_asked_to_be_another(
    adapter: Artifact, method: str, key: str, other: object, expected: str
) -> None:
    with pytest.raises(ModelError, match="the adapter that is continued") as error:
        built(adapter, method, {**LORA, key: other})
    assert error.value.where == f"stage stage, strategy.{key}"
    assert expected in str(error.value.expected)


def test_an_adapter_whose_base_is_gone_is_refused(adapter: Artifact, tmp_path: Path) -> None:
    import shutil
    from dataclasses import replace

    lonely = Store(str(tmp_path))
    shutil.copytree(adapter.path(), tmp_path / "artifacts" / adapter.key)
    with pytest.raises(ModelError, match="full weights that the adapter stands on are not in the store") as error:
        built(replace(adapter, store=lonely), "sft", LORA)
    assert error.value.found == "base-000000000000"
