"""Model folders of artifacts -> models ready to compute: policies, reward models and tokenizers.

An adapter is joined with the full weights it stands on, found in the same store by key, and rounded to four bits where
it was trained over four bits (nf4.py). They are in full precision again then, so merging is exact up to rounding; it is
done in float32. Does not train, generate or write weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from alignment.artifacts import Artifact
from alignment.config import Compute
from alignment.errors import ConfigError, ModelError
from alignment.inference import nf4
from alignment.inference.adapters import merged, with_adapter
from alignment.inference.capped import with_caps
from alignment.inference.info import INFO, base_folder, check_template, model_info, quantisation_of, read_info
from alignment.progress import console
from alignment.templates import Convention

Role = Literal["policy", "reward"]


# --- tokenizer, device, dtype --------------------------------------------------------------------------------


def load_tokenizer(model_dir: Path, *, side: Literal["left", "right"]) -> PreTrainedTokenizerBase:
    """Tokenizer of a model folder; pads at `side` (left to generate, right to train and to score).

    Raises:
        ModelError: the template differs from the model's, or padding cannot be told from the end of an answer.
    """
    if (model_dir / INFO).exists():
        check_template(model_dir)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side=side, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"the tokenizer cannot be loaded: {error}", where=str(model_dir)) from error
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ModelError("the pad token must differ from the end token", where=str(model_dir),
                         found=f"pad {tokenizer.pad_token!r}, end {tokenizer.eos_token!r}",
                         hint="set `pad_token` on the import stage")
    if (model_dir / INFO).exists():
        Convention.from_json(read_info(model_dir)).put_on(tokenizer)
    return tokenizer


def resolve_device(compute: Compute) -> str:
    """"cuda" or "cpu". Raises ConfigError when cuda is asked for and there is none."""
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA device is available", where="compute.device", found="cuda",
                          hint="use device: auto, or check the driver and the container's GPU request")
    if compute.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return compute.device


def resolve_dtype(compute: Compute, device: str) -> torch.dtype:
    """Arithmetic type; `auto` was settled for the stage before its key was made (config/arithmetic.py)."""
    if compute.dtype != "bfloat16":
        return torch.float32
    if device.startswith("cuda") and not torch.cuda.is_bf16_supported(including_emulation=False):
        console.print("! this GPU has no bfloat16 of its own and emulates it, slowly; `dtype: float32` is faster")
    return torch.bfloat16


# --- models --------------------------------------------------------------------------------------------------


def load_policy(
    artifact: Artifact, *, dtype: torch.dtype, device: str, merge: bool = True
) -> PreTrainedModel | PeftModel:
    """A language model in evaluation mode.

    Args:
        dtype: of the weights (an adapter that is not merged keeps float32).
        merge: fold an adapter into the weights, in float32 before the cast to `dtype`.

    Raises:
        ModelError: not a policy, weights missing, or the adapter's base is gone.
    """
    info, folder = _checked(artifact, "policy")
    adapter = info["form"] == "adapter"
    model = _base(AutoModelForCausalLM, artifact, torch.float32 if adapter and merge else dtype, device)
    if adapter:
        model = _adapted(model, folder, merge)
    return _ready(model, dtype, device, cast=adapter and merge)


def load_beneath(artifact: Artifact, *, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The full weights that a policy stands on, in evaluation mode, rounded as they were when its adapter was trained;
    of a policy without an adapter its own. Raises as `load_policy`."""
    _checked(artifact, "policy")
    model: PreTrainedModel = _ready(_base(AutoModelForCausalLM, artifact, dtype, device), dtype, device, cast=False)
    return model


def load_reward(artifact: Artifact, *, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A reward model in evaluation mode: backbone in `dtype`, bias-free scalar head in float32.

    The head reads the last token that is not padding, so the pad token must be known and no end token.

    Raises:
        ModelError: not a reward model, or its head or adapter was not found where it was saved.
    """
    info, folder = _checked(artifact, "reward")
    adapter = info["form"] == "adapter"
    model = _base(AutoModelForSequenceClassification, artifact, torch.float32 if adapter else dtype, device,
                  {"score.weight"} if adapter else set(), num_labels=1)
    if adapter:
        model = _adapted(model, folder, merge=True)
    _check_head(model, folder)
    end = model.config.eos_token_id
    pad, ends = model.config.pad_token_id, end if isinstance(end, list) else [end]
    if pad is None or pad in ends:
        raise ModelError("the reward model cannot tell padding from the end of an answer", where=str(folder),
                         found=f"pad_token_id {pad}, eos_token_id {end}", expected="a pad token of its own")
    model = _ready(model, dtype, device, cast=adapter)
    score_in_float32(model)
    # Rounded by the cast above, so read again: the head is what was trained, bit for bit.
    _set_head(model, folder)
    return model


def score_in_float32(model: torch.nn.Module) -> None:
    """Keep every scalar head (`score`) in float32 whatever the backbone computes in; its input is cast."""
    for name, module in model.named_modules():
        if "score" in name.split(".") and isinstance(module, torch.nn.Linear):
            module.float()
            module.register_forward_pre_hook(input_to_float32)


def input_to_float32(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """A hook before a layer: its first input in float32."""
    return (inputs[0].float(), *inputs[1:])


def _checked(artifact: Artifact, role: Role) -> tuple[dict[str, Any], Path]:
    info, folder = model_info(artifact), artifact.path() / "model"
    if info["role"] != role:
        raise ModelError(f"not a {role} model", where=artifact.url, found=info["role"], expected=role)
    check_template(folder)
    return info, folder


def _base(auto: Any, artifact: Artifact, dtype: torch.dtype, device: str, may_miss: set[str] | None = None,
          **config: Any) -> PreTrainedModel:
    """The full weights that an artifact stands on, rounded as they were when its adapter was trained."""
    if quantisation_of(artifact) is None:
        return weights_of(auto, base_folder(artifact), dtype, may_miss, **config)
    model = weights_of(auto, base_folder(artifact), "auto", may_miss, **config)
    nf4.round_weights(nf4.quantised_layers(model), dtype, device)
    return in_dtype(model, dtype)


def in_dtype(model: Any, dtype: torch.dtype) -> Any:
    """The model with its weights in `dtype`; not those that are packed, nor buffers, which transformers computes with
    in a type of their own (the frequencies of rotary positions)."""
    for tensor in model.parameters():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return model


def weights_of(
    auto: Any, folder: Path, dtype: torch.dtype | Literal["auto"], may_miss: set[str] | None = None, **config: Any
) -> PreTrainedModel:
    """`auto.from_pretrained` that refuses what transformers only warns about: weights that are made up at random.

    Args:
        auto: AutoModelForCausalLM or AutoModelForSequenceClassification.
        folder: a model folder with full weights in safetensors.
        dtype: of the weights; `auto`: as they are stored.
        may_miss: names of weights that may be absent.
        config: changes to the model's config, and other arguments of from_pretrained.
    """
    disable_progress_bar()  # transformers draws one per load, into the logs of pods too
    try:
        model, found = auto.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True,
                                            output_loading_info=True, **config)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the weights cannot be loaded: {error}", where=str(folder)) from error
    missing = set(found["missing_keys"]) - (may_miss or set())
    if missing or found["mismatched_keys"]:
        raise ModelError("the model folder lacks weights that the architecture needs", where=str(folder),
                         found=sorted(missing | {str(key) for key in found["mismatched_keys"]})[:5])
    without_router_logits(model)
    with_caps(model)
    return model


def without_router_logits(model: PreTrainedModel) -> None:
    """Mixtures of experts: TRL asks for the router's logits where it trains. Left on, every forward pass computes a
    loss of its own from them, which fails where keys and values are kept."""
    text = model.config.get_text_config()
    if getattr(text, "output_router_logits", False):
        text.output_router_logits = False


def _adapted(model: Any, folder: Path, merge: bool) -> Any:
    adapted = with_adapter(model, folder)
    return merged(adapted) if merge else adapted


def _ready(model: Any, dtype: torch.dtype, device: str, *, cast: bool) -> Any:
    return (in_dtype(model, dtype) if cast else model).to(device).eval()


def _saved_head(folder: Path) -> torch.Tensor | None:
    """`score.weight` as a train stage saved it, or None."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - safe_open is no dict
                if key.endswith("score.weight"):
                    head: torch.Tensor = tensors.get_tensor(key)
                    return head
    return None


def _check_head(model: Any, folder: Path) -> None:
    saved = _saved_head(folder)
    if saved is None:
        raise ModelError("the reward head was not saved", where=str(folder), expected="a tensor score.weight")
    loaded = model.score.weight.detach()
    if not torch.equal(loaded.cpu(), saved.to(loaded.dtype)):
        raise ModelError("the reward head in memory is not the one on disk (made up at random?)", where=str(folder))


def _set_head(model: Any, folder: Path) -> None:
    saved = _saved_head(folder)
    assert saved is not None
    with torch.no_grad():
        model.score.weight.copy_(saved.float())
