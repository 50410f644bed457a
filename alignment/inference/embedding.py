"""Vectors of texts: the last hidden layer of an encoder or a language model, its first token or the mean over all.

Texts are plain: no chat template stands around them. The model's own special tokens do ([CLS] ... [SEP] of BERT).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from alignment.errors import ModelError
from alignment.inference.embedded import _Embedded
from alignment.inference.generator import Pooling
from alignment.inference.loading import load_policy, load_tokenizer, weights_of

POOLER = {"pooler.dense.weight", "pooler.dense.bias"}
"""Weights above the last hidden layer, which nothing here reads: a checkpoint may lack them."""


class EncoderEmbedder(_Embedded[Any]):
    """An embedder of an artifact; pads at the right."""

    side = "right"

    @property
    def imported(self) -> bool:
        """Whether it was imported as an embedder; else it is a language model."""
        return "reads" in self.artifact.manifest.facts

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        folder = self.artifact.path() / "model"
        return plain_tokenizer(folder) if self.imported else load_tokenizer(folder, side="right")

    def embed(
        self, texts: Sequence[str], *, pooling: Pooling, max_tokens: int, normalise: bool
    ) -> tuple[NDArray[numpy.float32], list[int]]:
        most = min(max_tokens, self.context_length or max_tokens)
        tokenizer: Any = self.tokenizer
        lengths = [len(ids) for ids in tokenizer(list(texts), add_special_tokens=True)["input_ids"]]
        batch = tokenizer(list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt")
        made = self._vectors(batch, pooling, normalise, [text[:80] for text in texts])
        return made, [at for at, length in enumerate(lengths) if length > most]

    def ids(self, text: str) -> list[int]:
        return [int(index) for index in self.tokenizer(text, add_special_tokens=True)["input_ids"]]

    @property
    def vocabulary(self) -> int:
        return len(self.tokenizer)

    def embed_ids(self, rows: Sequence[Sequence[int]], *, pooling: Pooling, normalise: bool) -> NDArray[numpy.float32]:
        tokenizer: Any = self.tokenizer
        batch = tokenizer.pad({"input_ids": [list(row) for row in rows]}, return_tensors="pt")
        return self._vectors(batch, pooling, normalise, [f"{list(row)[:10]}" for row in rows])

    def _vectors(
        self, batch: Mapping[str, torch.Tensor], pooling: Pooling, normalise: bool, shown: Sequence[str]
    ) -> NDArray[numpy.float32]:
        model = self._ready()
        if pooling == "cls" and self.tokenizer.cls_token_id is None:
            raise ModelError("pooling: cls needs a model whose first token stands for the text",
                             where=self.artifact.url, found="a tokenizer without such a token",
                             expected="pooling: mean")
        inputs = {key: batch[key].to(model.device) for key in ("input_ids", "attention_mask", "token_type_ids")
                  if key in batch and (key != "token_type_ids" or self.imported)}
        with torch.inference_mode():
            states = model(**inputs).last_hidden_state.float()
            if pooling == "cls":
                vectors = states[:, 0]
            else:
                mask = inputs["attention_mask"].unsqueeze(-1).float()
                vectors = (states * mask).sum(1) / mask.sum(1).clamp(min=1.0)
            if normalise:
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
        made: NDArray[numpy.float32] = vectors.cpu().numpy()
        if not numpy.isfinite(made).all():
            at = int(numpy.nonzero(~numpy.isfinite(made).all(axis=1))[0][0])
            raise ModelError("the embedder gives a vector that is not finite", where=self.artifact.url,
                             found=shown[at])
        return made

    def _made(self, placement: dict[str, Any]) -> Any:
        if not self.imported:
            model: Any = load_policy(self.artifact, **placement)
            return getattr(model, model.base_model_prefix)
        folder = self.artifact.path() / "model"
        return weights_of(AutoModel, folder, placement["dtype"], POOLER).to(placement["device"]).eval()


def plain_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Tokenizer of a model that reads texts without a chat template, padding at the right.

    Raises:
        ModelError: it cannot be loaded, or has no pad token.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, padding_side="right",
                                                                            local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"the tokenizer cannot be loaded: {error}", where=str(folder)) from error
    if tokenizer.pad_token_id is None:
        raise ModelError("the tokenizer has no pad token, so texts cannot be read in batches", where=str(folder))
    return tokenizer
