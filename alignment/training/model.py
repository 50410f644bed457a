"""The model a train stage starts from: full weights or a low-rank adapter, policy or reward.

Continues the adapter of the start stage where there is one; never merges into anything quantised (there is
nothing quantised here). Does not train or save.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment.artifacts import Artifact
from alignment.config import Lora, TrainBase
from alignment.errors import ModelError
from alignment.inference.info import base_folder, model_info
from alignment.inference.loading import load_policy, score_in_float32


def build(stage: TrainBase, start: Artifact, dtype: torch.dtype, pad_token_id: int) -> tuple[Any, dict[str, Any]]:
    """The trainable model and facts about it (trainable and total parameters, adapted modules).

    Frozen weights are in `dtype`; everything trained is float32 (bfloat16 loses small updates).
    """
    lora = stage.adapter
    if lora is not None:
        model = _with_adapter(stage, lora, start, dtype, pad_token_id)
        adapted = sorted({name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)
                          and hasattr(m, "lora_A")})
        count = sum(isinstance(m, BaseTunerLayer) and hasattr(m, "lora_A") for m in model.modules())
        _check_targets(lora, adapted, count, stage.name)
    else:
        model = _full(stage, start, pad_token_id)
        adapted, count = [], 0
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    facts = {"trainable_parameters": trainable, "parameters": sum(p.numel() for p in model.parameters())}
    if count:
        facts |= {"adapted_modules": count, "adapted_names": adapted}
    return model, facts


def _head(folder: Any, dtype: torch.dtype, pad_token_id: int) -> Any:
    """Backbone with a fresh scalar head; transformers calls a missing head a warning, here it is the plan."""
    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=dtype, pad_token_id=pad_token_id
    )


def _full(stage: TrainBase, start: Artifact, pad_token_id: int) -> Any:
    policy = load_policy(start, dtype=torch.float32, device="cpu", merge=True)
    if stage.makes != "reward":
        return policy
    config = policy.config
    config.num_labels, config.pad_token_id = 1, pad_token_id
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    getattr(model, model.base_model_prefix).load_state_dict(
        getattr(policy, policy.base_model_prefix).state_dict(), strict=True
    )
    return model


def _with_adapter(stage: TrainBase, lora: Lora, start: Artifact, dtype: torch.dtype, pad_token_id: int) -> Any:
    reward, info, folder = stage.makes == "reward", model_info(start), start.path() / "model"
    base = base_folder(start)
    model = (
        _head(base, dtype, pad_token_id) if reward else AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    )
    if info["form"] == "adapter" and not reward:
        continued = PeftModel.from_pretrained(model, folder, is_trainable=True)
        # Published adapters name their base by key; checkpoints want a place where PEFT finds its config.
        continued.peft_config["default"].base_model_name_or_path = str(base)
        return continued
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, bias="none",
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        task_type=TaskType.SEQ_CLS if reward else TaskType.CAUSAL_LM,
    )
    model = get_peft_model(model, config)
    if reward:
        if info["form"] == "adapter":
            _carry_over(model, folder)
        score_in_float32(model)
    return model


def _carry_over(model: Any, folder: Path) -> None:
    """Load a policy's adapter into the reward model's backbone; a tensor without its place is an error."""
    own, saved = get_peft_model_state_dict(model), load_file(folder / "adapter_model.safetensors")
    lora = {name for name in own if "lora_" in name}
    if lora != saved.keys():
        raise ModelError(
            "the policy's adapter does not fit the reward model's backbone", where=str(folder),
            found={"unexpected": sorted(saved.keys() - lora)[:3], "missing": sorted(lora - saved.keys())[:3]},
            expected="the same target modules",
        )
    set_peft_model_state_dict(model, {**own, **saved})


def _check_targets(lora: Lora, adapted: list[str], count: int, stage: str) -> None:
    if not count:
        raise ModelError("the adapter matches no module", where=f"stage {stage}, strategy.targets", found=lora.targets)
    if isinstance(lora.targets, tuple):
        idle = [target for target in lora.targets if target.rsplit(".", 1)[-1] not in adapted]
        if idle:
            raise ModelError("some targets match no module", where=f"stage {stage}, strategy.targets", found=idle,
                             expected=f"names among the model's linear layers, for example {', '.join(adapted)}")
