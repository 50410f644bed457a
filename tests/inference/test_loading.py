"""Models of artifacts: what is on disk is what computes, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment.artifacts import Artifact, Store
from alignment.config import Compute
from alignment.errors import ConfigError, ModelError
from alignment.inference import info, loading
from alignment.inference.loading import load_policy, load_reward, load_tokenizer
from tests.models import as_it_lies, published

IDS = torch.arange(3, 40).unsqueeze(0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def base(store: Store, tiny_model_dir: Path, tmp_path: Path) -> Artifact:
    shutil.copytree(tiny_model_dir, tmp_path / "base" / "model")
    return published(store, "base-000000000000", tmp_path / "base")


def trained(base: Artifact, folder: Path, role: str, adapter: bool) -> Any:
    """Save a changed model as a train stage does; returns it, in evaluation mode."""
    source = base.path() / "model"
    auto = AutoModelForSequenceClassification if role == "reward" else AutoModelForCausalLM
    options = {"num_labels": 1} if role == "reward" else {}
    model = auto.from_pretrained(source, dtype=torch.float32, **options)
    torch.manual_seed(5)
    if adapter:
        task = TaskType.SEQ_CLS if role == "reward" else TaskType.CAUSAL_LM
        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type=task))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "score" in name or not adapter:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    target = folder / "model"
    model.save_pretrained(target)
    tokenizer = load_tokenizer(source, side="right")
    tokenizer.save_pretrained(target)
    info.write_info(target, role=role, form="adapter" if adapter else "full", base=base.key if adapter else None,
                       tokenizer=tokenizer)
    return model.eval()


def compute(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def rewrite(artifact: Artifact, change: Any) -> Artifact:
    """Alter the tensors of a published adapter or model."""
    file = next((artifact.path() / "model").glob("*.safetensors"))
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return as_it_lies(artifact)


@pytest.mark.parametrize("adapter", [False, True])
def test_a_policy_computes_as_it_did_in_memory(base: Artifact, store: Store, tmp_path: Path, adapter: bool) -> None:
    wanted = compute(trained(base, tmp_path / "a", "policy", adapter))
    made = published(store, "sft-000000000000", tmp_path / "a")
    apart = load_policy(made, dtype=torch.float32, device="cpu", merge=False)
    assert torch.equal(compute(apart), wanted)
    merged = load_policy(made, dtype=torch.float32, device="cpu")
    torch.testing.assert_close(compute(merged), wanted, atol=1e-5, rtol=1e-5)
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    assert (compute(load_policy(base, dtype=torch.float32, device="cpu")) - wanted).abs().max() > 1e-2
    assert not merged.training
    assert (info.base_key(made), info.base_folder(made)) == (
        (base.key, base.path() / "model") if adapter else (made.key, made.path() / "model")
    )


def test_merging_rounds_once(base: Artifact, store: Store, tmp_path: Path) -> None:
    """The sum of weight and adapter is made in float32, then cast."""
    trained(base, tmp_path / "a", "policy", adapter=True)
    made = published(store, "sft-000000000000", tmp_path / "a")
    exact = load_policy(made, dtype=torch.float32, device="cpu").state_dict()
    rounded = load_policy(made, dtype=torch.bfloat16, device="cpu").state_dict()
    assert all(torch.equal(rounded[name], exact[name].bfloat16()) for name in exact)


@pytest.mark.parametrize("adapter", [False, True])
def test_positions_are_not_rounded_with_the_weights(
    base: Artifact, store: Store, tmp_path: Path, adapter: bool
) -> None:
    """As training has them: rounded to bfloat16, the frequencies of token 500's position would be those of 498."""
    trained(base, tmp_path / "a", "policy", adapter=adapter)
    made = published(store, "sft-000000000000", tmp_path / "a")
    exact, rounded = (dict(load_policy(made, dtype=dtype, device="cpu").named_buffers())
                      for dtype in (torch.float32, torch.bfloat16))
    assert "model.rotary_emb.inv_freq" in exact
    assert all(torch.equal(rounded[name], exact[name]) for name in exact)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reward_model_keeps_its_head(
    base: Artifact, store: Store, tmp_path: Path, adapter: bool, dtype: torch.dtype
) -> None:
    model = trained(base, tmp_path / "a", "reward", adapter)
    wanted = compute(model)
    made = published(store, "rm-000000000000", tmp_path / "a")
    loaded = load_reward(made, dtype=dtype, device="cpu")
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(compute(loaded), wanted, atol=tolerance, rtol=tolerance)
    head = model.base_model.model.score.modules_to_save["default"] if adapter else model.score
    assert torch.equal(loaded.score.weight, head.weight)
    assert loaded.score.weight.dtype == torch.float32
    exact = load_reward(made, dtype=torch.float32, device="cpu").state_dict()
    assert all(torch.equal(tensor, exact[name].to(dtype)) for name, tensor in loaded.state_dict().items()
               if "score" not in name), "the backbone is rounded once, after merging"
    assert torch.equal(compute(load_reward(made, dtype=dtype, device="cpu")), compute(loaded))


def test_a_score_is_read_before_the_padding(base: Artifact, store: Store, tmp_path: Path) -> None:
    trained(base, tmp_path / "a", "reward", adapter=True)
    made = published(store, "rm-000000000000", tmp_path / "a")
    model = load_reward(made, dtype=torch.float32, device="cpu")
    pad = load_tokenizer(made.path() / "model", side="right").pad_token_id
    padded = torch.cat([IDS, torch.full((1, 9), pad)], dim=1)
    with torch.no_grad():
        scored = model(input_ids=padded, attention_mask=(padded != pad).long()).logits
    torch.testing.assert_close(scored, compute(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("adapter", [False, True])
def test_a_lost_head_is_refused(base: Artifact, store: Store, tmp_path: Path, adapter: bool) -> None:
    trained(base, tmp_path / "a", "reward", adapter)
    made = published(store, "rm-000000000000", tmp_path / "a")
    made = rewrite(made, lambda tensors: {k: v for k, v in tensors.items() if "score" not in k})
    with pytest.raises(ModelError, match=r"KeyError.*score\.weight|lacks weights"):
        load_reward(made, dtype=torch.float32, device="cpu")


def test_a_lost_part_of_an_adapter_is_refused(base: Artifact, store: Store, tmp_path: Path) -> None:
    trained(base, tmp_path / "a", "policy", adapter=True)
    made = published(store, "sft-000000000000", tmp_path / "a")
    made = rewrite(made, lambda tensors: {k: v for k, v in tensors.items() if "layers.1.mlp" not in k})
    with pytest.raises(ModelError, match="missing adapter keys"):
        load_policy(made, dtype=torch.float32, device="cpu")


def test_pad_equal_to_end_cannot_be_scored(base: Artifact, store: Store, tmp_path: Path) -> None:
    trained(base, tmp_path / "a", "reward", adapter=False)
    config = tmp_path / "a" / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pad_token_id": 2}))
    made = published(store, "rm-000000000000", tmp_path / "a")
    with pytest.raises(ModelError, match="padding"):
        load_reward(made, dtype=torch.float32, device="cpu")


def test_roles_are_not_mixed_up(base: Artifact, store: Store, tmp_path: Path) -> None:
    trained(base, tmp_path / "a", "reward", adapter=True)
    made = published(store, "rm-000000000000", tmp_path / "a")
    with pytest.raises(ModelError, match="not a policy"):
        load_policy(made, dtype=torch.float32, device="cpu")
    with pytest.raises(ModelError, match="not a reward"):
        load_reward(base, dtype=torch.float32, device="cpu")


def test_a_missing_base_is_named(base: Artifact, store: Store, tmp_path: Path) -> None:
    trained(base, tmp_path / "a", "policy", adapter=True)
    made = published(store, "sft-000000000000", tmp_path / "a")
    shutil.rmtree(base.path())
    with pytest.raises(ModelError, match="full weights") as error:
        load_policy(made, dtype=torch.float32, device="cpu")
    assert error.value.found == base.key


def test_a_changed_template_is_refused(base: Artifact) -> None:
    info.check_template(base.path())
    template = base.path() / "model" / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "model"))
    base = as_it_lies(base)
    for load in (
        lambda: info.check_template(base.path()),
        lambda: load_tokenizer(base.path() / "model", side="left"),
        lambda: load_policy(base, dtype=torch.float32, device="cpu"),
    ):
        with pytest.raises(ModelError, match="not the one this model was made with") as error:
            load()
        assert info.template_of(base)["hash"] in str(error.value)


def test_a_tokenizer_that_pads_with_its_end_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    assert load_tokenizer(folder, side="left").padding_side == "left"
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pad_token": "<|im_end|>"}))
    with pytest.raises(ModelError, match="must differ"):
        load_tokenizer(folder, side="left")


def test_device_and_dtype() -> None:
    assert loading.resolve_dtype(Compute(dtype="float32"), "cuda") == torch.float32
    assert loading.resolve_dtype(Compute(dtype="bfloat16"), "cpu") == torch.bfloat16
    assert loading.resolve_device(Compute(device="cpu")) == "cpu"
    if torch.cuda.is_available():
        assert loading.resolve_device(Compute()) == "cuda"
    else:
        assert loading.resolve_device(Compute()) == "cpu"
        with pytest.raises(ConfigError, match="no CUDA"):
            loading.resolve_device(Compute(device="cuda"))
