"""What vLLM cannot serve, or would serve otherwise than it was trained: told from the files' words, before it starts.

Plain functions over `adapter_config.json` and `config.json`; import no torch, so that `check` may ask them. A key of an
adapter that is not known here must be off: vLLM reads five of them and passes over the others without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""`max_lora_rank` of vLLM 0.29; an adapter of another rank is served under the next."""
CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes of its attention on CPUs, which fails at the first prompt with any other."""
_HEADS = ("embed_tokens", "lm_head", "wte", "wpe", "embed_in", "embed_out", "word_embeddings", "score")
_READ = frozenset({"r", "lora_alpha", "target_modules", "use_rslora", "peft_type", "task_type"})
_IDLE = frozenset({
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "lora_dropout", "loftq_config", "megatron_core", "peft_version",
    "qalora_group_size", "revision",
})
"""Keys that say how an adapter was made, or where: the file of its weights says the rest."""


class Unfit(NamedTuple):
    """Why vLLM cannot serve something."""

    problem: str
    found: object
    expected: str


def served_rank(rank: int) -> int:
    """The least rank of vLLM that holds one of `rank`. Raises ValueError above 512."""
    for known in RANKS:
        if rank <= known:
            return known
    raise ValueError(f"rank {rank} is over {RANKS[-1]}")


def unfit_adapter(config: Mapping[str, Any]) -> Iterator[Unfit]:
    """What of an adapter, by its adapter_config.json, vLLM refuses or would leave out."""
    if config.get("modules_to_save"):
        yield Unfit("vLLM serves no modules that an adapter trains whole",
                    f"modules_to_save: {config['modules_to_save']}", "an adapter without modules_to_save")
    if config.get("use_dora"):
        yield Unfit("vLLM knows no DoRA", "use_dora: true", "a plain LoRA")
    if int(config["r"]) > RANKS[-1]:
        yield Unfit("the adapter's rank is more than vLLM serves", config["r"], f"at most {RANKS[-1]}")
    for key in ("rank_pattern", "alpha_pattern"):
        if config.get(key):
            yield Unfit("vLLM takes one rank and one alpha for all layers", f"{key}: {config[key]}",
                        f"an adapter without {key}")
    known = _READ | _IDLE | {"modules_to_save", "use_dora", "rank_pattern", "alpha_pattern"}
    for key, value in config.items():
        if key not in known and value not in (None, False, [], {}, "none"):
            yield Unfit("the adapter uses what vLLM does not read", f"{key}: {value}", f"a plain LoRA, without {key}")


def unfit_modules(modules: Mapping[str, Any] | tuple[str, ...] | list[str]) -> Iterator[Unfit]:
    """What of an adapter's modules, by name, is not one of the layers between embedding and head."""
    outer = sorted({name for name in modules if name.split(".")[-1] in _HEADS})
    if outer:
        yield Unfit("an adapter of embedding or head is not served apart: where the two are one tensor, vLLM would "
                    "change both", outer[:3], "an adapter of the layers between them")


def unfit_model(config: Mapping[str, Any], device: str, quantisation: str | None = None) -> Iterator[Unfit]:
    """What of the full weights, by their config.json, vLLM would compute otherwise.

    Args:
        device: cpu or cuda.
        quantisation: what kubealign.json says the weights are rounded to below the adapter.
    """
    text = config.get("text_config") or config
    if quantisation is not None:
        yield Unfit("the adapter stands on weights rounded to four bits, and vLLM would compute over them as they are "
                    "stored", quantisation, "an adapter of weights in full precision")
    if config.get("quantization_config"):
        yield Unfit("the weights are stored quantised", "quantization_config", "weights in full precision")
    if text.get("attn_logit_softcapping") and device == "cpu":
        yield Unfit("vLLM's attention on CPUs is not proved to cap scores", "attn_logit_softcapping", "a GPU")
    heads, hidden = text.get("num_attention_heads"), text.get("hidden_size")
    size = text.get("head_dim") or (hidden // heads if heads and hidden else None)
    if device == "cpu" and size is not None and size not in CPU_HEADS:
        yield Unfit("vLLM's attention on CPUs has no heads of this size", f"head_dim {size}",
                    f"one of {', '.join(map(str, CPU_HEADS))}")
