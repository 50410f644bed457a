"""The model a train stage starts from: full weights or a low-rank adapter, policy or reward.

Continues the adapter of the start stage where there is one; never merges into anything quantised (there is
nothing quantised here). Does not train or save.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from alignment.artifacts import Artifact
from alignment.config import Lora, TrainBase
from alignment.errors import ModelError
from alignment.inference.info import base_folder, model_info
from alignment.inference.loading import load_policy, score_in_float32, weights_of, with_adapter


def build(stage: TrainBase, start: Artifact, dtype: torch.dtype, pad_token_id: int) -> tuple[Any, dict[str, Any]]:
    """The trainable model and facts about it (trainable and total parameters, adapted modules).

    Frozen weights are in `dtype`; everything trained is float32 (bfloat16 loses small updates).
    """
    lora = stage.adapter
    facts: dict[str, Any] = {}
    if lora is not None:
        model = _with_adapter(stage, lora, start, dtype, pad_token_id)
        adapted = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
        _check_adapted(lora, adapted, f"stage {stage.name}")
        facts = {"adapted_modules": len(adapted), "adapted_names": _last_parts(adapted)}
    else:
        model = _full(stage, start, pad_token_id)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return model, {"trainable_parameters": trainable, "parameters": sum(p.numel() for p in model.parameters()), **facts}


def settle_adapter(model: PeftModel, lora: Lora) -> dict[str, Any]:
    """Give the trained adapter the stage's dropout, whatever its start or TRL made of it; what it is now, as facts.

    TRL turns off every dropout of a model with a reference or a score. So it must be for the reference, which is often
    a second adapter on the same layers and has to be the same function at every step; the trained adapter's own is
    turned on again, alone.
    """
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and "default" in layer.lora_dropout:
            layer.lora_dropout["default"] = torch.nn.Dropout(lora.dropout) if lora.dropout else torch.nn.Identity()
    config = model.peft_config["default"]
    config.lora_dropout = lora.dropout
    return {"r": config.r, "alpha": config.lora_alpha, "dropout": lora.dropout}


def _full(stage: TrainBase, start: Artifact, pad_token_id: int) -> Any:
    policy = load_policy(start, dtype=torch.float32, device="cpu", merge=True)
    policy.requires_grad_(True)  # merging leaves the weights as frozen as they were below the adapter
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
    base, where = base_folder(start), f"stage {stage.name}"
    if reward:  # the head is fresh
        model = weights_of(AutoModelForSequenceClassification, base, dtype, {"score.weight"}, num_labels=1,
                           pad_token_id=pad_token_id)
    else:
        model = weights_of(AutoModelForCausalLM, base, dtype)
    if info["form"] == "adapter" and not reward:
        continued = with_adapter(model, folder, is_trainable=True)
        settle_adapter(continued, lora)
        # Published adapters name their base by key; checkpoints want a place where PEFT finds its config.
        continued.peft_config["default"].base_model_name_or_path = str(base)
        return continued
    _check_targets(lora, model, where)
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


def _last_parts(names: Iterable[str]) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name in names})


def _named(name: str, target: str) -> bool:
    """Whether PEFT takes a module of this dotted name for the target."""
    return name == target or name.endswith(f".{target}")


def _check_targets(lora: Lora, model: Any, where: str) -> None:
    """Refuse what a fresh adapter cannot stand on, by name: PEFT passes over it where another target matches."""
    if isinstance(lora.targets, str):
        return
    modules = dict(model.named_modules())
    heads = [model.get_output_embeddings(), getattr(model, "score", None)]
    linear = {name for name, module in modules.items() if isinstance(module, torch.nn.Linear | Conv1D)}
    matched = {target: {name for name in modules if _named(name, target)} for target in lora.targets}
    head = [target for target, names in matched.items() if any(modules[name] in heads for name in names)]
    idle = [target for target, names in matched.items() if not names or names - linear]
    expected = f"names among {', '.join(_last_parts(name for name in linear if modules[name] not in heads))}"
    if head:
        raise ModelError("the output head takes no adapter: it may be the embedding as well, and the losses read its "
                         "weight past an adapter", where=f"{where}, strategy.targets", found=head, expected=expected)
    if idle or not matched:
        raise ModelError("some targets match no linear layer", where=f"{where}, strategy.targets", found=idle,
                         expected=expected)


def _check_adapted(lora: Lora, adapted: list[str], where: str) -> None:
    """What is asked for must be there; a continued adapter keeps its own targets."""
    if not adapted:
        raise ModelError("the adapter matches no module", where=f"{where}, strategy.targets", found=lora.targets)
    if isinstance(lora.targets, tuple):
        idle = [target for target in lora.targets if not any(_named(name, target) for name in adapted)]
        if idle:
            raise ModelError("some targets match no module of the adapter", where=f"{where}, strategy.targets",
                             found=idle, expected=f"names among {', '.join(_last_parts(adapted))}")
