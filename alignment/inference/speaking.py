"""A model that answers one conversation after another, told while it speaks: for people, who wait for each word.

Over an artifact, computed by transformers in this process or by vLLM in its own; or over an endpoint, which streams.
Rows of a stage are answered by `generator.py`, in batches. Keeps no history and prints nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

from alignment.artifacts import Artifact
from alignment.config import Compute, EndpointModel, Evaluate
from alignment.config.hardware import native_here
from alignment.errors import ConfigError, KubeAlignError, ModelError
from alignment.inference.endpoint.client import Client, Refused
from alignment.inference.endpoint.reply import Said
from alignment.inference.info import context_length, model_info
from alignment.inference.live.asked import Broken, Heard, Question
from alignment.inference.live.opened import LiveModel, engine_for, open_live
from alignment.inference.requests import Completion, Draw, Request
from alignment.records import Message
from alignment.templates import Growing, encode_prompt


class Speaker(Protocol):
    """A model to talk with; `close` gives its memory back."""

    name: str
    context_length: int | None
    """In tokens; None where it is not known."""

    def load(self) -> None:
        """Bring the weights into memory. Raises ModelError, ConfigError."""

    def prompt_tokens(self, prompt: list[Message]) -> int:
        """Tokens of a conversation that waits for its answer; 0 of an endpoint. Raises DataError where the chat
        template refuses it."""

    def say(self, prompt: list[Message], draw: Draw, on_text: Callable[[str], None]) -> Completion:
        """The answer, in pieces that together are its text. What `on_text` raises ends it.

        Raises:
            DataError: the chat template refuses the conversation.
            ModelError: the weights cannot be loaded, or there is no answer.
        """

    def close(self) -> None: ...


def open_speaker(model: Artifact | EndpointModel, compute: Compute, beside: int = 0) -> Speaker:
    """A speaker for a model; cheap, since `load` brings its weights.

    Args:
        compute: device, engine and dtype; dtype auto is what an evaluation on this machine computes in.
        beside: other models that share a GPU with it.

    Raises:
        ConfigError: an endpoint is to be computed by an engine, or vLLM is asked for and not installed.
        ModelError: not a language model, or one that vLLM, asked for, cannot serve.
    """
    if isinstance(model, EndpointModel):
        if compute.engine != "auto" or compute.vllm:
            raise ConfigError("an endpoint is computed where it is, by its own engine", where="--engine, --vllm",
                              found=model.base_url, expected="a model with weights, or neither of the two")
        return _EndpointSpeaker(model)
    if compute.dtype == "auto":
        dtype = "bfloat16" if native_here(compute) in Evaluate.bfloat16_on else "float32"
        compute = compute.model_copy(update={"dtype": dtype})
    if model_info(model)["role"] != "policy":
        raise ModelError("not a language model", where=model.url, found=model_info(model)["role"], expected="policy")
    if engine_for([model], compute) == "vllm":
        return _VllmSpeaker(model, compute.model_copy(update={"engine": "vllm"}), beside)
    return _LocalSpeaker(model, compute)


class _LocalSpeaker:
    def __init__(self, artifact: Artifact, compute: Compute) -> None:
        from alignment.inference.embedded import EmbeddedGenerator

        self.name = artifact.key
        self._generator = EmbeddedGenerator(artifact, compute)
        self.context_length = context_length(artifact)

    def load(self) -> None:
        self._generator.load()

    def prompt_tokens(self, prompt: list[Message]) -> int:
        return self._generator.prompt_tokens(prompt)

    def say(self, prompt: list[Message], draw: Draw, on_text: Callable[[str], None]) -> Completion:
        return self._generator.stream(Request("chat", prompt, (draw,)), on_text)

    def close(self) -> None:
        self._generator.close()


class _VllmSpeaker:
    """vLLM's process, which is asked as a server asks it."""

    def __init__(self, artifact: Artifact, compute: Compute, beside: int) -> None:
        self.artifact, self.compute, self.beside, self.name = artifact, compute, beside, artifact.key
        self.context_length = context_length(artifact)
        self._live: LiveModel | None = None

    def load(self) -> None:
        self._opened()

    def _opened(self) -> LiveModel:
        if self._live is None:
            [(_, found)] = open_live([self.artifact], self.compute, beside=self.beside)
            if isinstance(found, KubeAlignError):
                raise found
            self._live, self.context_length = found, found.longest
        return self._live

    def prompt_tokens(self, prompt: list[Message]) -> int:
        return len(encode_prompt(self._opened().tokenizer, prompt))

    def say(self, prompt: list[Message], draw: Draw, on_text: Callable[[str], None]) -> Completion:
        live, heard, over = self._opened(), SimpleQueue[Heard](), False
        growing, ids, said = Growing(live.speaker), list[int](), list[str]()

        def tell(piece: str) -> None:
            if piece:
                said.append(piece)
                on_text(piece)

        number = live.engine.ask(Question(tuple(encode_prompt(live.tokenizer, prompt)), draw, live.adapter), heard.put)
        try:
            while True:
                part = heard.get()
                if isinstance(part, Broken):
                    over = True
                    raise ModelError(f"the engine gave no answer: {part.words}", where=self.artifact.url)
                own = [token.id for token in (part.tokens[:-1] if part.stop else part.tokens)]
                ids += own
                tell("".join(map(growing.add, own)))
                if part.ended:
                    over = True
                    tell(growing.end(finished=part.stop))
                    return Completion("".join(said), ids, part.stop)
        finally:
            if not over:
                live.engine.cancel(number)

    def close(self) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            live.engine.close()


class _EndpointSpeaker:
    context_length: int | None = None

    def __init__(self, model: EndpointModel) -> None:
        self.model, self.name = model, f"{model.model} at {model.base_url}"
        self._opened: tuple[asyncio.Runner, Client] | None = None

    def load(self) -> None:
        if self._opened is None:
            runner = asyncio.Runner()
            try:
                self._opened = runner, runner.run(self._client())
            except BaseException:
                runner.close()
                raise

    async def _client(self) -> Client:
        return Client(self.model, self.name)

    def prompt_tokens(self, prompt: list[Message]) -> int:
        return 0

    def say(self, prompt: list[Message], draw: Draw, on_text: Callable[[str], None]) -> Completion:
        self.load()
        assert self._opened is not None
        runner, client = self._opened
        try:
            result = runner.run(client.tell(prompt, draw, on_text))
        except BaseException:  # its stream would go on with the next answer
            self._opened = None
            runner.close()
            raise
        if isinstance(result, Said) and result.failure is None:
            return Completion(result.text, [], result.finished)
        if isinstance(result, Said):
            assert result.failure is not None
            raise ModelError(result.failure.reason, where=self.name, found=result.failure.detail)
        problem = f"the endpoint refuses ({result.kind})" if isinstance(result, Refused) else result.reason
        raise ModelError(problem, where=self.name, found=result.found)

    def close(self) -> None:
        if self._opened is not None:
            (runner, client), self._opened = self._opened, None
            runner.run(client.close())
            runner.close()
