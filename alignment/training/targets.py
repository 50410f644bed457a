"""What of a model an adapter stands on: the names in a strategy -> modules, or an error that says which name and why.

PEFT passes over a name where another one matches, and over modules that it takes for something else; here everything
that is asked for is there. Makes no adapter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from transformers.pytorch_utils import Conv1D

from alignment.config import Adapter
from alignment.errors import ModelError


class Targets(NamedTuple):
    """Where a strategy's adapter stands in one model.

    Attributes:
        linear: dotted names of the linear layers with low-rank matrices.
        experts: parameters of PEFT's `target_parameters`: the experts' weights, all experts in one.
        whole: dotted names of the modules that are trained whole, tied ones by the embedding's name.
        tied: whether those of `whole` include embeddings that are one with the output head.
    """

    linear: frozenset[str]
    experts: frozenset[str]
    whole: tuple[str, ...]
    tied: bool


def targets_of(lora: Adapter, model: Any, where: str) -> Targets:
    """Find what the strategy names in a model without an adapter.

    Raises:
        ModelError: a name that matches nothing, the output head or what takes no adapter; dropout where it cannot be.
    """
    modules = dict(model.named_modules())
    heads = [model.get_output_embeddings(), getattr(model, "score", None)]
    layers = {name for name, module in modules.items()
              if isinstance(module, torch.nn.Linear | Conv1D) and module not in heads}
    converted = _converted(lora, model, where)
    experts = frozenset(converted.target_parameters or ())
    if lora.targets == "all-linear":
        linear = layers
    else:
        matched = {target: {name for name in modules if named(name, target)} for target in lora.targets}
        _check_names(lora, modules, heads, layers, matched, where, {
            target for target in lora.targets if target not in (converted.target_modules or ())})
        linear = set().union(*matched.values()) & layers
    if experts and lora.dropout:
        raise ModelError("the weights of experts are one parameter, and an adapter of a parameter has no dropout",
                         where=f"{where}, strategy.dropout", found=lora.dropout, expected="0",
                         hint="or name the attention's layers in strategy.targets")
    return Targets(frozenset(linear), experts, *_whole(lora, model, modules, layers, where))


def check_adapted(model: PeftModel, wanted: Targets, where: str, *, whole: bool = True) -> None:
    """What is asked for must be there, and no more.

    Args:
        whole: whether to look at the modules that are trained whole too.

    Raises:
        ModelError: the adapter stands on other modules, by name.
    """
    found = {name for name, module in _adapted(model) if not isinstance(module, ParamWrapper)}
    parameters = frozenset(model.peft_config["default"].target_parameters or ())
    kept = set(_wrapped(model)) if whole else set(wanted.whole)
    missing, more = wanted.linear - found, found - wanted.linear
    if not found and not parameters:
        raise ModelError("the adapter matches no module", where=f"{where}, strategy.targets")
    if missing and wanted.experts:
        raise ModelError("PEFT takes these names for the experts' alone, so layers of the same name would have no "
                         "adapter", where=f"{where}, strategy.targets", found=f"left out: {', '.join(last(missing))}",
                         expected=f"names among {', '.join(last(found)) or 'the attention layers'}",
                         hint="or strategy full")
    if missing or more or parameters != wanted.experts:
        raise ModelError("the adapter that is continued stands on other layers", where=f"{where}, strategy.targets",
                         found={"it lacks": sorted(missing)[:3],
                                "it has beside them": sorted(more | (parameters - wanted.experts))[:3]},
                         expected=f"names of its own {len(found)} layers, such as {', '.join(sorted(found)[:3])}")
    if kept != set(wanted.whole):
        raise ModelError("the adapter that is continued keeps other modules whole",
                         where=f"{where}, strategy.modules_to_save", found=sorted(wanted.whole),
                         expected=", ".join(sorted(kept)) or "none")


def adapted_names(model: PeftModel) -> list[str]:
    """Dotted names of what has low-rank matrices; experts by their parameters."""
    return [name if getattr(module, "parameter_name", "weight") == "weight"
            else f"{name.replace('.base_layer', '')}.{module.parameter_name}" for name, module in _adapted(model)]


def last(names: Iterable[str]) -> list[str]:
    """The last parts of dotted names, each once."""
    return sorted({name.rsplit(".", 1)[-1] for name in names})


def named(name: str, target: str) -> bool:
    """Whether PEFT takes a module of this dotted name for the target."""
    return name == target or name.endswith(f".{target}")


def _adapted(model: PeftModel) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.get_base_model().named_modules() if isinstance(module, LoraLayer)]


def _wrapped(model: PeftModel) -> list[str]:
    """Names of the modules that are trained whole, but for a reward model's head; tied ones by the embedding's."""
    inner = model.get_base_model()
    seen: set[int] = set()
    names = []
    for name, module in inner.named_modules():
        copies = getattr(module, "modules_to_save", None)
        if isinstance(copies, torch.nn.ModuleDict) and name != "score":
            weight = next(copies["default"].parameters())
            if id(weight) not in seen:
                names.append(name)
            seen.add(id(weight))
    return names


def _converted(lora: Adapter, model: Any, where: str) -> LoraConfig:
    """The config as PEFT makes it fit a model whose experts are one parameter: names of their layers are taken out of
    the modules and become parameters."""
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha,
                        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets))
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError as error:
        raise ModelError(f"some targets cannot stand alone: {error}", where=f"{where}, strategy.targets",
                         found=lora.targets) from error
    return config


def _check_names(
    lora: Adapter, modules: dict[str, Any], heads: list[Any], layers: set[str], matched: dict[str, set[str]],
    where: str, experts: set[str],
) -> None:
    """Refuse what a fresh adapter cannot stand on, by name."""
    head = [target for target, names in matched.items() if any(modules[name] in heads for name in names)]
    idle = [target for target, names in matched.items()
            if (not names and target not in experts) or (names - layers and target not in head)]
    embedding = [target for target in idle if any(isinstance(modules[n], torch.nn.Embedding) for n in matched[target])]
    expected = f"names among {', '.join(last(layers))}"
    hint = "name it in strategy.modules_to_save to train it whole"
    if head:
        raise ModelError("the output head takes no adapter: it may be the embedding as well, and the losses read its "
                         "weight past an adapter", where=f"{where}, strategy.targets", found=head, expected=expected,
                         hint=None if "score" in head else hint)
    if idle or not matched:
        raise ModelError("some targets match no linear layer", where=f"{where}, strategy.targets", found=idle,
                         expected=expected, hint=hint if embedding else None)


def _whole(
    lora: Adapter, model: Any, modules: dict[str, Any], layers: set[str], where: str
) -> tuple[tuple[str, ...], bool]:
    """The modules of `modules_to_save`, and whether they are tied."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    able = {name for name, module in modules.items()
            if name not in layers and name != "score" and any(True for _ in module.parameters(recurse=False))}
    matched = {target: {name for name in able if named(name, target)} for target in lora.modules_to_save or ()}
    idle = [target for target, names in matched.items() if not names]
    place = f"{where}, strategy.modules_to_save"
    if idle:
        raise ModelError("some names match no module that can be trained whole beside an adapter", where=place,
                         found=idle, expected=f"names among {', '.join(last(able))}",
                         hint="linear layers go into targets")
    chosen = {name: modules[name] for names in matched.values() for name in names}
    shared = head is not None and head.weight is embedding.weight
    if not (shared and any(module in (embedding, head) for module in chosen.values())):
        return tuple(sorted(chosen)), False
    first = next(name for name, module in modules.items() if module is embedding)
    if first.rsplit(".", 1)[-1] not in EMBEDDING_LAYER_NAMES:
        raise ModelError("the embedding is the output head as well, and PEFT keeps them one only where it is called "
                         f"{' or '.join(EMBEDDING_LAYER_NAMES)}", where=place, found=first,
                         expected="other modules, or strategy full")
    return tuple(sorted({first if module is head else name for name, module in chosen.items()})), True
