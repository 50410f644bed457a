"""`Generator` and `Scorer` (generator.py) over transformers, in this process: an artifact's model, loaded when needed.

Does not decode (engine.py) or compute scores (scoring.py): it settles device and dtype, loads and lets go.
"""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Generic, Literal, Self, TypeVar

import torch
from transformers import PreTrainedTokenizerBase
from transformers import __version__ as transformers_version

from alignment.artifacts import Artifact
from alignment.config import Compute
from alignment.inference.engine import Engine
from alignment.inference.info import model_info
from alignment.inference.loading import load_policy, load_reward, load_tokenizer, resolve_device, resolve_dtype
from alignment.inference.requests import Completion, Item, Request
from alignment.inference.scoring import RewardScorer, log_probs
from alignment.records import Message
from alignment.templates import Spoken, call_marks, encode_completion, encode_prompt, read_turn

Model = TypeVar("Model")


class _Embedded(ABC, Generic[Model]):
    """A model that is made of `artifact` at first need and kept until `close`."""

    side: Literal["left", "right"]

    def __init__(self, artifact: Artifact, compute: Compute) -> None:
        self.artifact, self.compute = artifact, compute
        self._model: Model | None = None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.artifact.path() / "model", side=self.side)

    @property
    def context_length(self) -> int | None:
        """As the import of the model recorded it."""
        length: int | None = self.artifact.manifest.facts.get("context_length")
        return length

    def load(self) -> None:
        self._ready()

    def close(self) -> None:
        if self._model is not None:
            self._model = None
            gc.collect()  # models hold themselves in circles
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ready(self) -> Model:
        if self._model is None:
            device = resolve_device(self.compute)
            self._model = self._made({"dtype": resolve_dtype(self.compute, device), "device": device})
        return self._model

    @abstractmethod
    def _made(self, placement: dict[str, Any]) -> Model:
        """The model, loaded with this dtype and device."""


class EmbeddedGenerator(_Embedded[Engine]):
    """A policy, its adapter merged; pads at the left, since answers grow at the right."""

    side = "left"

    @property
    def made_by(self) -> Mapping[str, Any]:
        adapter = model_info(self.artifact)["form"] == "adapter"
        return {"engine": "transformers", "version": transformers_version,
                "dtype": "bfloat16" if self.compute.dtype == "bfloat16" else "float32",
                "adapter": "merged" if adapter else None}

    @property
    def ahead(self) -> bool:
        return False

    def begin(self, requests: Sequence[Request]) -> None:
        """Nothing: one batch is worked on at a time."""

    def prompt_tokens(self, prompt: list[Message]) -> int:
        return len(encode_prompt(self.tokenizer, prompt))

    def answer_tokens(self, prompt: list[Message], answer: str) -> int:
        return len(encode_completion(self.tokenizer, prompt, answer)[1])

    def offered(self, prompt: list[Message]) -> list[Message]:
        call_marks(self.tokenizer)
        return prompt

    def spoken(self, completion: Completion) -> Spoken:
        return read_turn(self.tokenizer, completion.ids, finished=completion.finished)

    def generate(
        self, requests: Sequence[Request], on_progress: Callable[[int], None] | None = None
    ) -> list[list[Completion]]:
        return self._ready().generate(requests, on_progress)

    def log_probs(self, items: Sequence[Item]) -> list[tuple[float, int]]:
        engine = self._ready()
        return log_probs(engine.model, engine.tokenizer, items, context_length=self.context_length)

    def _made(self, placement: dict[str, Any]) -> Engine:
        return Engine(load_policy(self.artifact, **placement), self.tokenizer)


class EmbeddedScorer(_Embedded[RewardScorer]):
    """A reward model; pads at the right."""

    side = "right"

    def score(self, items: Sequence[Item]) -> list[float]:
        return self._ready().score(items)

    def _made(self, placement: dict[str, Any]) -> RewardScorer:
        return RewardScorer(load_reward(self.artifact, **placement), self.tokenizer, self.context_length)
