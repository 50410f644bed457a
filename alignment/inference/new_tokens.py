"""Tokens that a base model has not: put into its vocabulary when it is imported, before anything is learned.

Each gets the mean of the embeddings that are there (Hewitt 2021, nlp.stanford.edu/~johnhew/vocab-expansion.html), so
that no text becomes unlikely by it. Equal rows are told apart by training alone, which has to train the embeddings:
`checks/new_tokens.py` asks that. Trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from tokenizers import AddedToken

from alignment.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def add_to_tokenizer(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], where: str) -> None:
    """Make each of the texts one special token.

    Raises:
        ModelError: the vocabulary has one of them already.
    """
    if known := sorted({*tokens} & {*tokenizer.get_vocab()}):
        raise ModelError("the model has tokens of this name already", where=f"{where}, new_tokens", found=known,
                         expected="tokens that it has not", hint="leave them out: they are used as they are")
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)


def add_to_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Rows for tokens that the tokenizer has got, in the embeddings and the output head."""
    ids = [int(tokenizer.convert_tokens_to_ids(token)) for token in tokens]
    before = min(min(ids), model.get_input_embeddings().weight.shape[0])
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        # Rows that a maker keeps in reserve are used where there are enough of them.
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    with torch.no_grad():
        for weight in {id(layer.weight): layer.weight for layer in layers if layer is not None}.values():
            weight[ids] = weight[:before].float().mean(dim=0).to(weight.dtype)
        bias = getattr(layers[1], "bias", None)
        if bias is not None:
            bias[ids] = bias[:before].mean()
