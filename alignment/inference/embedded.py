"""`Generator` and `Scorer` (generator.py) over transformers, in this process: an artifact's model, loaded when needed.

Does not decode (engine.py) or compute scores (scoring.py): it settles device and dtype, loads and lets go.
"""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
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
from alignment.inference.requests import Completion, Draw, Item, Request, Token, Told
from alignment.inference.scoring import RewardScorer, log_probs
from alignment.records import Message
from alignment.templates import Growing, Spoken, call_marks, encode_completion, encode_prompt, read_turn

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

    def told(self, prompts: Sequence[list[Message]], max_new_tokens: int) -> list[Told]:
        engine = self._ready()
        ids = [encode_prompt(engine.tokenizer, prompt) for prompt in prompts]
        said: list[list[Token]] = [[] for _ in ids]
        draw = Draw(temperature=0.0, max_new_tokens=max_new_tokens)
        for step in engine.told(ids, [draw] * len(ids), top=2) if ids else ():
            for place, token, _ in step:
                said[place].append(token)
        return [told_of(own, tokens, engine.stops) for own, tokens in zip(ids, said, strict=True)]

    def stream(self, request: Request, on_text: Callable[[str], None]) -> Completion:
        """The answer to a request of one draw, as `generate` gives it, told while it is made.

        Args:
            on_text: called with pieces of `text` in order, none of them cut within a letter; what it raises ends the
                answer.

        Raises:
            DataError, ModelError: as `generate`.
        """
        growing = Growing(self.tokenizer)

        def told(number: int, token: int) -> None:
            if piece := growing.add(token):
                on_text(piece)

        [[completion]] = self._ready().generate([request], on_token=told)
        if rest := growing.end(finished=completion.finished):
            on_text(rest)
        return completion

    def log_probs(self, items: Sequence[Item]) -> list[tuple[float, int]]:
        engine = self._ready()
        return log_probs(engine.model, engine.tokenizer, items, context_length=self.context_length)

    def _made(self, placement: dict[str, Any]) -> Engine:
        return Engine(load_policy(self.artifact, **placement), self.tokenizer)


def told_of(prompt: Sequence[int], tokens: Sequence[Token], stops: Collection[int]) -> Told:
    """A greedy answer whose last token may be the one that ended it."""
    stop = tokens[-1].id if tokens and tokens[-1].id in stops else None
    return Told(tuple(prompt), tuple(tokens), stop, tuple(sorted(stops)))


class EmbeddedScorer(_Embedded[RewardScorer]):
    """A reward model; pads at the right."""

    side = "right"

    def score(self, items: Sequence[Item]) -> list[float]:
        return self._ready().score(items)

    def _made(self, placement: dict[str, Any]) -> RewardScorer:
        return RewardScorer(load_reward(self.artifact, **placement), self.tokenizer, self.context_length)
