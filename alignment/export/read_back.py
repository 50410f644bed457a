"""A GGUF file as transformers reads it: its weights in a model, its tokenizer's ids.

The shape comes from the folder that the file was made of, since transformers takes no head width, no biases and no
scaling of positions from such files; llama.cpp does (tests/export/test_gguf.py compares its probabilities).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, LlamaConfig

from alignment.errors import ModelError

_AS_LLAMA = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters",
             "tie_word_embeddings")


def load_gguf(file: Path, folder: Path, dtype: torch.dtype) -> Any:
    """The model of a file.

    Args:
        folder: that the file was made of.

    Raises:
        ModelError: weights are missing.
    """
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type == "mistral":  # which llama.cpp calls Llama
        config = LlamaConfig(**{key: getattr(config, key) for key in _AS_LLAMA})
    model, found = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=dtype, output_loading_info=True, config=config,
        quantization_config=GgufConfig(gguf_file=file.name, dequantize=True))
    if found["missing_keys"] or found["mismatched_keys"]:
        raise ModelError("the GGUF file lacks weights", where=str(file),
                         found=sorted(map(str, found["missing_keys"]))[:5])
    return model.eval()


def same_ids(file: Path, tokenizer: Any, texts: list[str]) -> int:
    """Texts of which the file's tokenizer makes the ids of `tokenizer`."""
    read = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return sum(read(text, add_special_tokens=False).input_ids == tokenizer(text, add_special_tokens=False).input_ids
               for text in texts)
