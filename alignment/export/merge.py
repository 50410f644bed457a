"""The whole weights of an artifact's model: its own, or its base's with the adapter folded in.

Folded in float32, into the base as it is stored or as its four bits say (never into four bits), and stored in one type.
Compares nothing (compare.py does).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from alignment import templates
from alignment.artifacts import Artifact
from alignment.errors import ModelError
from alignment.inference import nf4
from alignment.inference.adapters import merged, with_adapter
from alignment.inference.info import base_folder, model_info, quantisation_of
from alignment.inference.loading import in_dtype, weights_of

Base = Literal["original", "dequantised"]


def trained_over(artifact: Artifact) -> Base:
    """The base that an artifact's adapter was trained over; `original` for full weights too."""
    return "original" if quantisation_of(artifact) is None else "dequantised"


def merged_model(
    artifact: Artifact, into: Base, stored: torch.dtype | None, device: str, tokenizer: Any
) -> tuple[Any, torch.dtype]:
    """A language model of whole weights on the CPU, and what they are to be stored as.

    Args:
        into: the base under an adapter.
        stored: storage type; None: that of the base.
        device: where four bits are worked out; the result is the same everywhere.
        tokenizer: of the artifact, whose tokens the model has to know.

    Raises:
        ModelError: `dequantised` for a model that no four bits were under, weights that are missing, or a tokenizer
            with more tokens than there are embeddings.
    """
    model = weights_of(AutoModelForCausalLM, base_folder(artifact), "auto")
    stored = stored or next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    adapter = model_info(artifact)["form"] == "adapter"
    if into == "dequantised":
        if not adapter:
            raise ModelError("the model has whole weights, so there is no base to dequantise", where=artifact.url,
                             found="merge_into: dequantised", expected="a model with an adapter, or no merge_into")
        nf4.round_weights(nf4.quantised_layers(model), torch.float32, device)
    if adapter:
        model = merged(with_adapter(in_dtype(model, torch.float32), artifact.path() / "model"))
    _untie(model)
    _fit(model, tokenizer, artifact)
    return in_dtype(model, stored), stored


def _untie(model: Any) -> None:
    """An embedding and a head that an adapter made two stay two: a config that says `tied` would lose the head."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or embedding.weight is head.weight:
        return
    configs = (model.config, model.config.get_text_config())
    tied = any(getattr(config, "tie_word_embeddings", False) for config in configs)
    if tied and torch.equal(embedding.weight, head.weight):
        head.weight = embedding.weight
        return
    for config in configs:
        config.tie_word_embeddings = False


def _fit(model: Any, tokenizer: Any, artifact: Artifact) -> None:
    """Make the model's configs say what the tokenizer says, so that no program goes by the maker's other tokens."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError("the tokenizer has more tokens than the model has embeddings", where=artifact.url,
                         found=f"{len(tokenizer)} tokens, {rows} embeddings",
                         hint="import the base with `new_tokens`, which gives them rows")
    head = model.get_output_embeddings()
    if head is not None and head.weight.shape[0] != rows:
        raise ModelError("embeddings and output head are of different vocabularies", where=artifact.url,
                         found=f"{rows} embeddings, {head.weight.shape[0]} outputs", expected="as many of both")
    model.config.get_text_config().vocab_size = rows
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
        config.bos_token_id = tokenizer.bos_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=templates.stop_ids(tokenizer))
