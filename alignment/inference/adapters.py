"""Adapters as files: put on the weights they stand on, folded into them, written so that others can load them too.

PEFT passes over what does not fit with a warning at most; here it is an error. Chooses no targets and trains nothing.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.save_and_load import load_peft_weights
from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
from safetensors import SafetensorError
from safetensors.torch import load_file

from alignment.artifacts import Artifact
from alignment.data.adapter_config import CONFIG, WEIGHTS
from alignment.errors import ModelError
from alignment.inference.info import base_artifact


def with_adapter(model: Any, folder: Path, name: str = "default", **given: Any) -> PeftModel:
    """`PeftModel.from_pretrained` that refuses a module which keeps its fresh adapter, and a tensor without a place.

    Args:
        model: the full weights; or these with adapters of other names already, which gets this one beside them.
        name: of the adapter within PEFT, without dots.
        given: other arguments of from_pretrained.

    Raises:
        ModelError: the adapter's files are damaged, of another model, lack a tensor or have one too many; it is named.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            warnings.filterwarnings("ignore", message=".*ensure_weight_tying.*")
            if isinstance(model, PeftModel):
                model.load_adapter(folder, adapter_name=name, **given)
                adapted = model
            else:
                adapted = PeftModel.from_pretrained(model, folder, adapter_name=name, **given)
        saved = convert_peft_adapter_state_dict_for_transformers(
            adapted.get_base_model(), adapted.peft_config[name], load_peft_weights(str(folder), device="cpu"))
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, UserWarning) as error:
        said = " ".join(str(error).split("\n")[:2])  # of many tensors that do not fit, the first
        raise ModelError(f"the adapter cannot be loaded: {type(error).__name__}: {said}", where=str(folder),
                         expected="the adapter's weights, whole, for these base weights") from error
    held = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False).keys()
    if isinstance(model, PeftModel) and (lacking := held - saved.keys()):  # PEFT says so of the first adapter alone
        raise ModelError("the adapter's file lacks weights of the adapter", where=str(folder),
                         found=sorted(lacking)[:3], expected="the adapter's weights, whole")
    strange = saved.keys() - held
    if strange:
        raise ModelError("the adapter's file has weights that no part of the adapter takes", where=str(folder),
                         found=sorted(strange)[:3],
                         expected="tensors of the modules that adapter_config.json names, and no others",
                         hint="where they are the base's own: PEFT's save_pretrained(save_embedding_layers=False)")
    return adapted


def merged(model: PeftModel) -> Any:
    """The model with its adapter folded into the weights.

    An embedding and a head that are one tensor become two where the adapter changes either: added to the shared
    tensor, the change of one would reach the other (and where both are adapted, count twice).
    """
    inner = model.get_base_model()
    embedding, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    if isinstance(embedding, BaseTunerLayer) or isinstance(head, BaseTunerLayer):
        own = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
        shared = embedding.get_base_layer() if isinstance(embedding, BaseTunerLayer) else embedding
        if own is not None and own.weight is shared.weight:
            own.weight = torch.nn.Parameter(own.weight.detach().clone(), requires_grad=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*no longer tied.*|.*tied_target_modules.*")
        return model.merge_and_unload(safe_merge=True)


def save_adapter(
    model: PeftModel, folder: Path, base: Artifact, state: dict[str, torch.Tensor] | None = None
) -> None:
    """Write weights and config of the trained adapter, its base named so that PEFT finds it.

    Args:
        base: the artifact that it stands on, or an artifact whose adapter stands on the same.
        state: the trained weights by their names in the model, where the model itself has only a share of them.

    Raises:
        ModelError: not everything that was trained is in the file.
    """
    config = model.peft_config["default"]
    here = config.base_model_name_or_path, config.revision
    config.base_model_name_or_path, config.revision = name_of_base(base)
    # Which embeddings are trained is the config's to say; asked to find out, PEFT compares with the base's files.
    model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False,
                          **({} if state is None else {"state_dict": state}))
    config.base_model_name_or_path, config.revision = here
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    sort_lists(folder / CONFIG)
    saved = load_file(folder / WEIGHTS)
    trained = {name.replace(".modules_to_save.default", "").replace(".default", ""):
               (parameter if state is None else state[name]).detach().cpu()
               for name, parameter in model.named_parameters() if parameter.requires_grad}
    lost = [name for name, tensor in trained.items() if name not in saved or not torch.equal(saved[name], tensor)]
    if lost:
        raise ModelError("weights that were trained are not in the adapter's file", where=str(folder / WEIGHTS),
                         found=lost[:3], expected=f"all {len(trained)} trained tensors, as they are in memory")


def name_of_base(artifact: Artifact) -> tuple[str, str | None]:
    """What adapter_config.json calls the base, and its revision: for others; here it is found by its key.

    A base that came from the hub unrounded goes by its name there, which holds on every machine; any other by where it
    lies now, since PEFT knows no path relative to an adapter's folder.
    """
    base = base_artifact(artifact)
    source = base.manifest.facts.get("source", {})
    if source.get("source") == "hub" and base.manifest.facts.get("rounded") is False:
        return str(source["repo"]), base.manifest.facts["revision"]
    return (str(base.path() / "model") if base.store.is_local else f"{base.url}/model"), None


def sort_lists(file: Path) -> None:
    """PEFT writes sets of module names in the order of this process's hashes; the same adapter is the same file."""
    config = json.loads(file.read_text(encoding="utf-8"))
    for key, value in config.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            config[key] = sorted(value)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
