"""Whether an adapter that vLLM has loaded is at work, before it answers anything.

vLLM passes over weights whose module the model does not have, and answers from the base where it finds no adapter
(vllm-project/vllm#55193). So every weight must have its place, and the adapter's likelihoods must not be the base's.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from alignment.data.adapter_config import WEIGHTS
from alignment.errors import ModelError
from alignment.inference.requests import EngineStopped
from alignment.inference.vllm.client import Client
from alignment.inference.vllm.launch import Weighed
from alignment.progress import console
from alignment.templates import encode_prompt

PROBE = ("Write one sentence about the sea, then name the capital of France and say what 12 + 7 is. "
         "请用一句话介绍你自己。")


def prove(client: Client, adapter: str, folder: Path, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Prove an adapter of a process once.

    Raises:
        ModelError: a weight has no place in vLLM's model, or the adapter changes nothing although it is not zero.
    """
    if adapter in client.proved:
        return
    unplaced = client.ready.unplaced[adapter]
    if unplaced:
        raise ModelError("vLLM's model has no place for all of the adapter", where=where, found=unplaced[:3],
                         expected="every module of the adapter in the model", hint="compute.engine: transformers")
    ids = encode_prompt(tokenizer, [{"role": "user", "content": PROBE}])[:96]
    try:
        base, own = client.wait([client.weigh(ids, 1, None), client.weigh(ids, 1, adapter)])
    except EngineStopped:
        raise
    assert isinstance(base, Weighed)
    assert isinstance(own, Weighed)
    if base.log_probs == own.log_probs:
        if changes_nothing(folder):
            console.print(f"! {where}: all of the adapter's second matrices are zero: it says what its base says",
                          markup=False)
        else:
            raise ModelError("the adapter changes nothing in vLLM: every likelihood is its base's", where=where,
                             found=f"{len(own.log_probs)} tokens of a probe, in {client.launch.dtype}",
                             expected="likelihoods that differ", hint="compute.engine: transformers")
    client.proved.add(adapter)


def changes_nothing(folder: Path) -> bool:
    """Whether an adapter's second matrices are all zero, as a fresh one's are. Raises ModelError for a damaged file."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as tensors:
            return not any(bool(tensors.get_tensor(key).any()) for key in tensors.keys()  # noqa: SIM118
                           if "lora_B" in key or "lora_embedding_B" in key)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"the adapter's weights cannot be read: {error}", where=str(folder)) from error
