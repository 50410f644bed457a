"""Random models that are sure of what they say, with a random adapter each, by the real import. Measures nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from alignment.artifacts import Artifact
from alignment.config import parse_run
from alignment.pipeline import execute

SHAPES = ({"hidden_size": 128, "layers": 4, "heads": 4, "vocab_size": 512},
          {"hidden_size": 256, "layers": 8, "heads": 8, "vocab_size": 1024})


def decided(place: Path) -> dict[str, Artifact]:
    """Name -> base or adapter, in a store below `place`."""
    return {name: artifact for number, shape in enumerate(SHAPES)
            for name, artifact in _pair(place / str(number), shape).items()}


def _pair(place: Path, shape: dict[str, int]) -> dict[str, Artifact]:
    called = f"random-{shape['hidden_size']}x{shape['layers']}"
    source = {"source": "tiny", **shape}
    tiny = _made(place, {"name": "tiny", "kind": "import", "dtype": "float32", "model": source})["tiny"]
    torch.manual_seed(1)
    shutil.copytree(tiny.path() / "model", place / "base", ignore=shutil.ignore_patterns("kubealign.json"))
    config = AutoConfig.from_pretrained(place / "base")
    config.update({"initializer_range": 2.4 / shape["hidden_size"] ** 0.5})
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(place / "base")
    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.6 / shape["hidden_size"] ** 0.5)
    adapted.save_pretrained(place / "adapter")
    made = _made(place, {"name": "base", "kind": "import", "dtype": "float32",
                         "model": {"source": "folder", "path": str(place / "base")}},
                 {"name": "adapter", "kind": "import",
                  "model": {"source": "folder", "path": str(place / "adapter"), "base": "base"}})
    return {called: made["base"], f"{called}-adapter": made["adapter"]}


def _made(place: Path, *stages: dict[str, Any]) -> dict[str, Artifact]:
    run = parse_run(yaml.safe_dump({"name": "bench", "store": str(place / "store"), "stages": list(stages)}))
    return {name: artifact for name, artifact in execute(run).artifacts.items() if artifact is not None}
