"""`Generator` (generator.py above) over vLLM, which runs in a process of its own: batches overlap, adapters stay apart.

Token ids come from `templates` and go back to them, so vLLM sees no text; sampling is ours (sampler.py). Before an
adapter answers, it is proved that every one of its weights has a place in the model and that what it says differs from
what its base says. Loads no weights in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from math import nan
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from alignment.context import StageContext
from alignment.errors import DataError, ModelError
from alignment.inference.info import model_info
from alignment.inference.loading import load_tokenizer
from alignment.inference.requests import Completion, Draw, EngineStopped, Item, Request, Told
from alignment.inference.vllm import shared
from alignment.inference.vllm.choice import dtype_of, launch_for
from alignment.inference.vllm.client import Client
from alignment.inference.vllm.launch import Answered, Weighed
from alignment.inference.vllm.proof import prove
from alignment.records import Message
from alignment.templates import (
    Spoken,
    call_marks,
    decode_answer,
    encode_answer,
    encode_completion,
    encode_prompt,
    read_turn,
    stop_ids,
)

AHEAD = 1024
"""Answers that are asked for before they are wanted, at most: with four times as many as it makes at once, vLLM is
never short of work while the last of a batch are long."""


class VllmGenerator:
    """The policy that the stage `name` made, an adapter beside its base."""

    def __init__(self, context: StageContext, name: str) -> None:
        self.context, self.name, self.artifact = context, name, context.inputs[name]
        self.where = f"stage {context.stage.name}, model {name}"
        self._client: Client | None = None
        self._begun: dict[tuple[Any, ...], list[int]] = {}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.artifact.path() / "model", side="left")

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return tuple(stop_ids(self.tokenizer))

    @property
    def context_length(self) -> int | None:
        """As the import of the model recorded it."""
        length: int | None = self.artifact.manifest.facts.get("context_length")
        return length

    @property
    def made_by(self) -> Mapping[str, Any]:
        return {"engine": "vllm", "version": None if self._client is None else self._client.ready.version,
                "dtype": dtype_of(self.context), "adapter": "apart" if self.adapter else None}

    @cached_property
    def adapter(self) -> str | None:
        """Its name in vLLM; None of full weights."""
        return self.artifact.key if model_info(self.artifact)["form"] == "adapter" else None

    def load(self) -> None:
        most = self.context.stage.most_tokens()
        self._ready(most.tokens if most is not None else 0)

    def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            self._begun.clear()
            shared.release(client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def prompt_tokens(self, prompt: list[Message]) -> int:
        return len(encode_prompt(self.tokenizer, prompt))

    def answer_tokens(self, prompt: list[Message], answer: str) -> int:
        return len(encode_completion(self.tokenizer, prompt, answer)[1])

    def offered(self, prompt: list[Message]) -> list[Message]:
        call_marks(self.tokenizer)
        return prompt

    def spoken(self, completion: Completion) -> Spoken:
        return read_turn(self.tokenizer, completion.ids, finished=completion.finished)

    @property
    def ahead(self) -> bool:
        return self._client is None or self._client.unanswered() < AHEAD

    def begin(self, requests: Sequence[Request]) -> None:
        self.load()
        assert self._client is not None
        for request in requests:
            ids = encode_prompt(self.tokenizer, request.prompt)
            if ids and request.draws and _key(request) not in self._begun and (
                    self._too_long(ids, request) is None and _most(ids, request) <= self._client.launch.max_model_len):
                self._ask(request, ids)

    def generate(
        self, requests: Sequence[Request], on_progress: Callable[[int], None] | None = None
    ) -> list[list[Completion]]:
        """As `Generator.generate`. Raises DataError for a request that is over the model's context length, too."""
        prompts = [encode_prompt(self.tokenizer, request.prompt) for request in requests]
        for request, ids in zip(requests, prompts, strict=True):
            self._check(request, ids)
        if not requests:
            return []
        self._ready(max(_most(ids, request) for request, ids in zip(requests, prompts, strict=True)))
        asked = [self._begun.get(_key(request)) or self._ask(request, ids)
                 for request, ids in zip(requests, prompts, strict=True)]
        for request in requests:
            self._begun.pop(_key(request), None)
        answers = iter(self._wait([number for numbers in asked for number in numbers], on_progress))
        return [[self._completion(next(answers)) for _ in numbers] for numbers in asked]

    def told(self, prompts: Sequence[list[Message]], max_new_tokens: int) -> list[Told]:
        """As `Generator.told`."""
        ids = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        if not ids:
            return []
        client = self._ready(max(map(len, ids)) + max_new_tokens)
        draw = Draw(temperature=0.0, max_new_tokens=max_new_tokens)
        numbers = [client.ask(own, self.stops, draw, self.adapter, top=2) for own in ids]
        made = []
        for own, said in zip(ids, self._wait(numbers), strict=True):
            assert isinstance(said, Answered)
            assert said.tokens is not None
            made.append(Told(tuple(own), tuple(said.tokens), said.stop, self.stops))
        return made

    def log_probs(self, items: Sequence[Item]) -> list[tuple[float, int]]:
        """As `Generator.log_probs`."""
        pairs = [encode_answer(self.tokenizer, prompt, completion) for prompt, completion in items]
        results = [(nan, len(said)) for _, said in pairs]
        short = [(place, [*before, *said], len(before)) for place, (before, said) in enumerate(pairs)
                 if self.context_length is None or len(before) + len(said) <= self.context_length]
        if not short:
            return results
        client = self._ready(max(len(ids) for _, ids, _ in short) + 1)
        numbers = [client.weigh(ids, start, self.adapter) for _, ids, start in short]
        for (place, _, _), weighed in zip(short, self._wait(numbers), strict=True):
            assert isinstance(weighed, Weighed)
            results[place] = sum(weighed.log_probs), len(weighed.log_probs)
        return results

    def _ready(self, tokens: int) -> Client:
        """vLLM for sequences of so many tokens, with the adapter proved. Raises EngineStopped where it does not
        start."""
        if self._client is not None and self._client.launch.max_model_len < tokens:
            self.close()
        if self._client is None:
            client = shared.acquire(self._launch(tokens))
            try:
                if self.adapter is not None:
                    prove(client, self.adapter, self.artifact.path() / "model", self.tokenizer, self.where)
            except EngineStopped:
                shared.discard(client)
                raise
            except BaseException:  # of this adapter; others may be at work
                shared.release(client)
                raise
            self._client = client
        return self._client

    def _launch(self, tokens: int) -> Any:
        most = self.context.stage.most_tokens()
        longest = max(tokens, 0 if most is None else most.tokens)
        if self.context_length is not None:
            longest = max(tokens, min(longest, self.context_length))
        return launch_for(self.context, self.artifact, longest)

    def _check(self, request: Request, ids: list[int]) -> None:
        if not ids or not request.draws:
            raise DataError("a request needs a prompt and at least one draw", where=f"row {request.id}",
                            found={"tokens": len(ids), "draws": len(request.draws)})
        if any(draw.stop for draw in request.draws):
            raise DataError("vLLM is asked without stop texts here", where=f"row {request.id}",
                            expected="draws without them, or an endpoint")
        if (tokens := self._too_long(ids, request)) is not None:
            raise DataError("prompt and answer are over the model's context length", where=f"row {request.id}",
                            found=tokens, expected=f"at most {self.context_length} tokens",
                            hint="lower max_prompt_tokens or max_new_tokens")

    def _too_long(self, ids: list[int], request: Request) -> int | None:
        tokens = _most(ids, request)
        return tokens if self.context_length is not None and tokens > self.context_length else None

    def _ask(self, request: Request, ids: list[int]) -> list[int]:
        assert self._client is not None
        numbers = [self._client.ask(ids, self.stops, draw, self.adapter) for draw in request.draws]
        self._begun[_key(request)] = numbers
        return numbers

    def _wait(self, numbers: list[int], on_progress: Callable[[int], None] | None = None) -> list[Answered | Weighed]:
        assert self._client is not None
        try:
            return self._client.wait(numbers, on_progress)
        except EngineStopped:
            client, self._client = self._client, None
            self._begun.clear()
            shared.discard(client)
            raise

    def _completion(self, answer: Answered | Weighed) -> Completion:
        if not isinstance(answer, Answered):
            raise ModelError("vLLM answered another question", where=self.where)
        finished = answer.stop is not None
        return Completion(decode_answer(self.tokenizer, answer.ids, finished=finished), answer.ids, finished,
                          answer.stop)


def _most(ids: list[int], request: Request) -> int:
    """Tokens of a prompt and its longest answer, at most."""
    return len(ids) + max(draw.max_new_tokens for draw in request.draws)


def _key(request: Request) -> tuple[Any, ...]:
    """What tells requests apart that may be begun at the same time."""
    return request.id, request.draws
