"""Random models that are sure of what they say: no engine's rounding decides between two tokens."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from alignment.artifacts import Artifact, Store
from alignment.inference import info
from alignment.inference.loading import load_tokenizer
from tests.models import imported, published

TINY = {"source": "tiny", "hidden_size": 64, "layers": 2, "heads": 2, "vocab_size": 384}
CONTEXT = 256


def decided_base(folder: Path) -> Artifact:
    """A random base whose choices are no near ties, in a store of the folder."""
    imported(folder / "made", TINY)
    (folder / "base").mkdir()
    shutil.move(folder / "made" / "out" / "model", folder / "base" / "model")
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(folder / "base" / "model")
    config.update({"initializer_range": 0.3})
    LlamaForCausalLM(config).save_pretrained(folder / "base" / "model")
    return known(published(Store(str(folder / "store")), "base-000000000000", folder / "base"))


def with_adapter(base: Artifact, name: str, rank: int = 4, **scales: float) -> Artifact:
    """An adapter over `base`, its A and B drawn at random and multiplied by `scales`."""
    folder = Path(base.store.root).parent / name / "model"
    torch.manual_seed(len(name) + rank)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base.path() / "model", dtype=torch.float32),
                           LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for tensor, parameter in model.named_parameters():
            if "lora_" in tensor:
                parameter.copy_(torch.randn_like(parameter) * scales.get("B" if "lora_B" in tensor else "A", 0.2))
    model.save_pretrained(folder)
    tokenizer = load_tokenizer(base.path() / "model", side="right")
    tokenizer.save_pretrained(folder)
    info.write_info(folder, role="policy", form="adapter", base=base.key, tokenizer=tokenizer)
    return known(published(base.store, f"{name}-000000000000", folder.parent))


def known(artifact: Artifact) -> Artifact:
    """With the context length that an import records."""
    return Artifact(artifact.store, artifact.manifest.model_copy(update={"facts": {"context_length": CONTEXT}}))
