"""Tiny models with random weights, one for each family of transformers that is shaped differently, as base artifacts.

What differs: names of layers, tied embeddings, Conv1D weights, learned positions, scaled or capped logits, heads with
a bias, experts whose weights are one parameter. Every family comes in through the import stage, from a folder.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from alignment.artifacts import Artifact, Store
from tests.models import imported, published

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
_GATED = {**_SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
_EXPERTS = {**_GATED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
WIDE: dict[str, dict[str, Any]] = {
    "llama-tied": {"hidden_size": 64, "intermediate_size": 128},
    "gpt2": {"n_embd": 64},
    "gemma2": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "query_pre_attn_scalar": 16},
    "qwen3_moe": {"hidden_size": 64, "head_dim": 16, "moe_intermediate_size": 64},
}
"""What is changed of a family where a base is quantised: no layer is narrower than a block of NF4."""
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _GATED,
    "llama-tied": {**_GATED, "tie_word_embeddings": True},
    "mistral": _GATED,
    "mistral-window": {**_GATED, "sliding_window": 16},
    "qwen2": {**_GATED, "tie_word_embeddings": True},
    "qwen2-window": {**_GATED, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    "qwen3": {**_GATED, "head_dim": 8},
    "gemma2": {**_GATED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16,
               "final_logit_softcapping": 3.0, "attn_logit_softcapping": 1.0},
    "gemma3_text": {**_GATED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "gemma3_text-mixed": {**_GATED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16,
                          "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": _GATED,
    "phi3-window": {**_GATED, "sliding_window": 16},
    "phi": _GATED,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.2},
    "gpt_neox": {**_SMALL, "intermediate_size": 48, "max_position_embeddings": 256},
    "opt": {**_SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 256, "init_std": 0.2},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
    "falcon": {**_SMALL, "new_decoder_architecture": False, "multi_query": True},
    "granite": {**_GATED, "logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "cohere": {**_GATED, "logit_scale": 0.5},
    "olmo2": _GATED,
    "stablelm": _GATED,
    "starcoder2": _GATED,
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 4, "initializer_range": 0.2},
    "mixtral": {**_GATED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 24},
    "qwen3_moe": {**_EXPERTS, "head_dim": 8},
    "recurrent_gemma": {**_GATED, "num_key_value_heads": 1, "lru_width": 32, "attention_window_size": 64,
                        "logits_soft_cap": 2.0, "num_hidden_layers": 3, "w_init_variance_scale": 1.0},
    "deepseek_v3": {**_SMALL, "intermediate_size": 48, "moe_intermediate_size": 24, "n_routed_experts": 4,
                    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
                    "kv_lora_rank": 8, "q_lora_rank": None, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
                    "v_head_dim": 8, "num_key_value_heads": 4, "n_shared_experts": 1},
}
"""Name -> what of its config is made small; the name up to the first `-` is transformers' model_type."""


def family(name: str, store: Store, work: Path, **changes: Any) -> Artifact:
    """The family's base in the store, with the tiny tokenizer.

    Args:
        changes: to the family's config.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from alignment.inference.model_sources import tiny_tokenizer
    from alignment.templates import source

    tokenizer = tiny_tokenizer(384)
    tokenizer.chat_template = source("chatml")
    config = AutoConfig.for_model(
        name.partition("-")[0], vocab_size=384, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, **{**FAMILIES[name], **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    model.save_pretrained(work / "maker")
    tokenizer.save_pretrained(work / "maker")
    imported(work, {"source": "folder", "path": str(work / "maker")})
    shutil.rmtree(work / "maker")
    own = hashlib.sha256(str(work).encode()).hexdigest()[:12]  # a store is several modules', who ask for one family
    return published(store, f"{name.replace('_', '-')}-{own}", work / "out")
