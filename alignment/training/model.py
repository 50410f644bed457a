"""The model a train stage starts from: full weights or a low-rank adapter, policy or reward.

Continues the adapter of the start stage where there is one, over the base that it was trained over; never merges into
what is packed in four bits: strategy full merges an adapter of qlora into the weights that those bits stand for, in
float32, which is the model that was trained and evaluated. Does not train or save.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment.artifacts import Artifact
from alignment.config import Adapter, TrainBase
from alignment.data.adapter_config import CONFIG, WEIGHTS
from alignment.errors import ModelError
from alignment.inference.adapters import with_adapter
from alignment.inference.capped import with_caps
from alignment.inference.info import base_folder, base_key, model_info, quantisation_of
from alignment.inference.loading import load_policy, score_in_float32, weights_of
from alignment.progress import console
from alignment.training.quantised import count, in_four_bits
from alignment.training.targets import adapted_names, check_adapted, last, named, targets_of


def build(
    stage: TrainBase, start: Artifact, dtype: torch.dtype, pad_token_id: int, device: str = "cpu"
) -> tuple[Any, dict[str, Any]]:
    """The trainable model and facts about it (trainable and total parameters, adapted modules, what is quantised).

    Frozen weights are in `dtype`, or in four bits and computed with in `dtype`; everything trained is float32
    (bfloat16 loses small updates).

    Args:
        device: where weights are quantised; the model lies on the CPU.
    """
    lora = stage.adapter
    if stage.makes == "reward":
        _check_scores(start, f"stage {stage.name}")
    facts: dict[str, Any] = {}
    if lora is not None:
        model, facts = _with_adapter(stage, lora, start, dtype, pad_token_id, device)
        adapted = adapted_names(model)
        facts |= {"adapted_modules": len(adapted), "adapted_names": last(adapted)}
    else:
        model = _full(stage, start, pad_token_id)
        if (rounded := quantisation_of(start)) is not None:
            facts = {"merged": {"adapter": start.key, "base": base_key(start), "quantisation": rounded}}
            _say(f"  {stage.name}: the adapter of {start.key} is merged, in float32, into the weights that it was "
                 f"trained over: those of {base_key(start)} rounded to {rounded}")
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return model, {"trainable_parameters": trainable, "parameters": count(model), **facts}


def _check_scores(start: Artifact, where: str) -> None:
    config = AutoConfig.from_pretrained(base_folder(start), local_files_only=True)
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise ModelError("transformers has no reward model of this architecture", where=f"{where}, model",
                         found=config.model_type, expected="one with a class ...ForSequenceClassification",
                         hint="score answers with a function, or train the reward model on another base")


def settle_adapter(model: PeftModel, lora: Adapter) -> dict[str, Any]:
    """Give the trained adapter the stage's dropout, whatever its start or TRL made of it; what it is now, as facts.

    TRL turns off every dropout of a model with a reference or a score. So it must be for the reference, which is often
    a second adapter on the same layers and has to be the same function at every step; the trained adapter's own is
    turned on again, alone. And TRL's copy of an adapter is to be the same function as it, whatever it consists of.
    """
    _whole_in_float32(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            # TRL copies what is named `.default.`, which an embedding's matrices are not, and into the base's type.
            twin = parameters.get(f"{name}.".replace(".ref.", ".default.").removesuffix("."))
            if ".ref." in f"{name}." and twin is not None:
                parameter.copy_(twin)
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
    with_caps(model)
    getattr(model, model.base_model_prefix).load_state_dict(
        getattr(policy, policy.base_model_prefix).state_dict(), strict=True
    )
    return model


def _with_adapter(
    stage: TrainBase, lora: Adapter, start: Artifact, dtype: torch.dtype, pad_token_id: int, device: str
) -> tuple[PeftModel, dict[str, Any]]:
    reward, info, folder = stage.makes == "reward", model_info(start), start.path() / "model"
    base, where = base_folder(start), f"stage {stage.name}"
    continued = info["form"] == "adapter"
    if continued and quantisation_of(start) != lora.quantised:
        raise ModelError("the adapter that is continued was trained over another base", where=f"{where}, strategy.kind",
                         found=f"{lora.kind}, and an adapter over {_said(quantisation_of(start))}",
                         expected=f"an adapter over {_said(lora.quantised)}, or strategy full, which merges it")
    # Rounded to `dtype` before it is quantised, it would be another base.
    stored: torch.dtype | Literal["auto"] = dtype if lora.quantised is None else "auto"
    if reward:  # the head is fresh
        model = weights_of(AutoModelForSequenceClassification, base, stored, {"score.weight"}, num_labels=1,
                           pad_token_id=pad_token_id)
    else:
        model = weights_of(AutoModelForCausalLM, base, stored)
    if reward and continued:  # whatever stands on the policy's output head has no place here
        lora = lora.model_copy(update={"modules_to_save": _of_backbone(lora.modules_to_save, model)})
    wanted = targets_of(lora, model, where)
    if continued:
        _check_same(lora, folder, where)
    facts: dict[str, Any] = {}
    if lora.quantised is not None:
        facts = in_four_bits(model, dtype, device, where)
        share = facts["quantised_parameters"] / facts["base_parameters"]
        _say(f"  {stage.name}: {share:.0%} of the base's {facts['base_parameters']:,} weights in four bits "
             f"({facts['quantisation']}), the others in {str(dtype).removeprefix('torch.')}")
        model.is_loaded_in_4bit = True  # asked by PEFT, for layers that know bitsandbytes's
    if continued and not reward:
        adapted = with_adapter(model, folder, is_trainable=True)
        # Published adapters name their base for others; checkpoints want the place where it lies here.
        adapted.peft_config["default"].base_model_name_or_path = str(base)
    else:
        config = LoraConfig.from_pretrained(folder) if continued else LoraConfig(
            r=lora.r, lora_alpha=lora.alpha, bias="none", modules_to_save=list(wanted.whole) or None,
            ensure_weight_tying=wanted.tied,
            target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        )
        config.inference_mode, config.lora_dropout = False, lora.dropout
        config.task_type = TaskType.CAUSAL_LM
        if reward:  # without what is the policy's alone
            config.task_type, config.ensure_weight_tying = TaskType.SEQ_CLS, False
            config.modules_to_save = list(_of_backbone(config.modules_to_save, model) or ()) or None
        adapted = get_peft_model(model, config)
    # TRL would round the adapters of a model that says so to bfloat16, whose steps are larger than most updates.
    vars(model).pop("is_loaded_in_4bit", None)
    check_adapted(adapted, wanted, where)
    if reward:
        score_in_float32(adapted)
    settle_adapter(adapted, lora)
    if continued and reward:
        _carry_over(adapted, folder)
    elif continued and wanted.whole:  # what is kept whole was rounded where it was read into `dtype`
        set_peft_model_state_dict(adapted, load_file(folder / WEIGHTS))
    return adapted, facts


def _say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        console.print(line)


def _said(quantisation: str | None) -> str:
    return quantisation or "weights that are not quantised"


def _check_same(lora: Adapter, folder: Path, where: str) -> None:
    """A continued adapter has the rank and scale that it was made with."""
    made = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for key, name in (("r", "r"), ("alpha", "lora_alpha")):
        if getattr(lora, key) != made[name]:
            raise ModelError(f"the adapter that is continued has another {key}", where=f"{where}, strategy.{key}",
                             found=getattr(lora, key), expected=made[name], hint="strategy full would merge it")


def _of_backbone(modules: Iterable[str] | None, model: Any) -> tuple[str, ...] | None:
    names = [name for name, _ in model.named_modules()]
    return tuple(one for one in modules or () if any(named(name, one) for name in names)) or None


def _whole_in_float32(model: PeftModel) -> None:
    """Modules that are trained whole, and their frozen references, in float32 among whatever is frozen: PEFT makes its
    copies in the type of the base."""
    for name, module in model.get_base_model().named_modules():
        copies = getattr(module, "modules_to_save", None)
        if not isinstance(copies, torch.nn.ModuleDict) or name == "score":
            continue
        frozen = next(module.original_module.parameters()).dtype
        for copy in copies.values():
            if frozen != torch.float32 and not copy._forward_hooks:
                copy.float().register_forward_pre_hook(_floats)
                copy.register_forward_hook(lambda _, inputs, output, frozen=frozen: output.to(frozen))


def _floats(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(one.float() if one.is_floating_point() else one for one in inputs)


def _carry_over(model: Any, folder: Path) -> None:
    """Load a policy's adapter into the reward model's backbone; a tensor without its place is an error."""
    own, saved = get_peft_model_state_dict(model, save_embedding_layers=False), load_file(folder / WEIGHTS)
    modules = {f"base_model.model.{name}" for name, _ in model.get_base_model().named_modules()}
    # The policy's output head, where it was trained whole, is no part of a backbone.
    saved = {name: tensor for name, tensor in saved.items() if ".lora_" in name or name.rpartition(".")[0] in modules}
    wanted = {name for name in own if not name.startswith("base_model.model.score.")}
    if wanted != saved.keys():
        raise ModelError(
            "the policy's adapter does not fit the reward model's backbone", where=str(folder),
            found={"unexpected": sorted(saved.keys() - wanted)[:3], "missing": sorted(wanted - saved.keys())[:3]},
            expected="the same targets and modules_to_save",
        )
    set_peft_model_state_dict(model, {**own, **saved})
