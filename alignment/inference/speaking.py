"""A model that answers one conversation after another, told while it speaks: for people, who wait for each word.

Over an artifact, computed by transformers in this process; or over an endpoint, which streams. Rows of a stage are
answered by `generator.py`, in batches. Keeps no history and prints nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from alignment.artifacts import Artifact
from alignment.config import Compute, EndpointModel, Evaluate
from alignment.config.hardware import native_here
from alignment.errors import ModelError
from alignment.inference.endpoint.client import Client, Refused
from alignment.inference.endpoint.reply import Said
from alignment.inference.info import context_length, model_info
from alignment.inference.requests import Completion, Draw, Request
from alignment.records import Message


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


def open_speaker(model: Artifact | EndpointModel, compute: Compute) -> Speaker:
    """A speaker for a model; cheap, since `load` brings its weights.

    Args:
        compute: device and dtype; dtype auto is what an evaluation on this machine computes in.
    """
    if isinstance(model, EndpointModel):
        return _EndpointSpeaker(model)
    if compute.dtype == "auto":
        dtype = "bfloat16" if native_here(compute) in Evaluate.bfloat16_on else "float32"
        compute = compute.model_copy(update={"dtype": dtype})
    return _LocalSpeaker(model, compute)


class _LocalSpeaker:
    def __init__(self, artifact: Artifact, compute: Compute) -> None:
        from alignment.inference.embedded import EmbeddedGenerator

        self.name = artifact.key
        if model_info(artifact)["role"] != "policy":
            raise ModelError("not a language model", where=artifact.url, found=model_info(artifact)["role"],
                             expected="policy")
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
