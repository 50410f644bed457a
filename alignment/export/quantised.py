"""A model folder of whole weights -> the same in four bits (NF4 with double quantisation), as bitsandbytes keeps them.

Quantised are merged weights, after the adapter was folded in; what that loses is measured by who calls (compare.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from alignment.errors import ModelError
from alignment.export.folder import old_positions, rewrite, write_tokenizer
from alignment.inference.loading import in_dtype


def write_nf4(whole: Path, folder: Path, tokenizer: Any, device: str, shard_bytes: int) -> None:
    """Quantise the linear layers but the output head; loads with plain transformers where bitsandbytes is.

    Raises:
        ModelError: the libraries refuse the model.
    """
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                bnb_4bit_compute_dtype=torch.bfloat16)
    try:
        model = AutoModelForCausalLM.from_pretrained(whole, quantization_config=config, local_files_only=True,
                                                     use_safetensors=True, device_map={"": device})
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, max_shard_size=shard_bytes)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(f"the model cannot be quantised: {type(error).__name__}: {error}", where=str(whole),
                         expected="linear layers that bitsandbytes takes") from error
    rewrite(folder / "config.json", lambda found: old_positions(found, str(folder / "config.json")))
    write_tokenizer(tokenizer, folder)


def load_nf4(folder: Path, dtype: torch.dtype, device: str) -> Any:
    """As others load it, then with what the four bits stand for in `dtype`: which kernel multiplies them is the
    machine's (on some CPUs one that computes in bfloat16)."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=dtype,
                                                      device_map={"": device})
    return in_dtype(model.dequantize(), dtype).to(device).eval()
