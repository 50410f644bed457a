"""One request to an endpoint, through the openai package, and what came of it. Does not wait, retry or count.

The key is read from the environment here and leaves this module in the one header alone: what the endpoint writes is
cleaned of it before anyone sees it, and of the package's errors, which hold the request and its headers, only the kind
is kept. Redirects are not followed: the key would go along.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from alignment.config.secrets import key_from
from alignment.config.stages.endpoint import EndpointModel
from alignment.errors import ConfigError
from alignment.inference.endpoint.messages import to_openai
from alignment.inference.endpoint.pace import retry_after
from alignment.inference.endpoint.reply import Refusal, Said, message_of, read_reply, refusal
from alignment.inference.requests import Draw
from alignment.records import Message
from alignment.words import last_letter

if TYPE_CHECKING:
    from openai import AsyncOpenAI

HIDDEN = "[key]"
_SHORTEST_KEY = 4
"""Letters from which on a key is looked for in what the endpoint writes: shorter ones would blot out words."""


@dataclass(frozen=True)
class Refused:
    """The endpoint answered with another status than 200.

    Attributes:
        found: status and words, for people.
        wait: seconds that it asks to wait.
    """

    kind: Refusal
    found: str
    wait: float | None = None


@dataclass(frozen=True)
class Broken:
    """Nothing came back that can be read.

    Attributes:
        reason: in words that are the same for all requests that meet it.
        jam: whether it speaks of load.
        reached: whether the endpoint took the request, and may have been paid.
    """

    reason: str
    found: str
    jam: bool
    reached: bool


Result = Said | Refused | Broken


class _Cut(Exception):
    """A stream that broke off."""


def package(where: str) -> None:
    """Raises ConfigError: the openai package is not installed."""
    if find_spec("openai") is None:
        raise ConfigError("the openai package is not installed", where=where, expected="an engine for endpoints",
                          hint="pip install 'kubealign[endpoint]'")


class Client:
    """Asks `model`; use it within one event loop.

    Raises:
        ConfigError: no key where one is asked for, or the openai package is not installed.
    """

    def __init__(self, model: EndpointModel, where: str) -> None:
        self.model = model
        self._key = None if model.key_env is None else key_from(model.key_env, where)
        self._openai = _opened(model, self._key, where)

    def __repr__(self) -> str:
        return f"Client({self.model.model!r} at {self.model.base_url!r})"

    async def ask(self, prompt: Sequence[Message], draw: Draw, most: int, calls: bool = False) -> Result:
        """One attempt at one answer of `most` tokens at most, or a call where that is one. Raises nothing but
        cancellation."""
        return await self._answered(self._whole(prompt, draw, most), calls)

    async def tell(
        self, prompt: Sequence[Message], draw: Draw, on_text: Callable[[str], None]
    ) -> Result:
        """One attempt at one answer, told while it comes.

        Args:
            on_text: called with pieces of the text in order; what it raises ends the answer and is raised here.
        """
        return await self._answered(self._streamed(prompt, draw, on_text))

    async def _whole(self, prompt: Sequence[Message], draw: Draw, most: int) -> bytes:
        made = await self._openai.chat.completions.with_raw_response.create(**self._body(prompt, draw, most))
        content: bytes = made.http_response.content
        return content

    async def _streamed(self, prompt: Sequence[Message], draw: Draw, on_text: Callable[[str], None]) -> bytes:
        """The reply that the pieces make, in the form of one that came whole."""
        import openai

        text, given, reason, model = "", 0, None, None
        async with await self._openai.chat.completions.create(
                stream=True, **self._body(prompt, draw, draw.max_new_tokens)) as stream:
            pieces = aiter(stream)
            while True:
                try:
                    chunk = await anext(pieces)
                except StopAsyncIteration:
                    break
                except (openai.OpenAIError, OSError, TimeoutError):
                    raise
                except Exception as error:  # of the package's own client, whose errors it does not wrap here
                    raise _Cut(f"{type(error).__name__}: {error}") from None
                model = chunk.model or model
                for choice in chunk.choices[:1]:
                    text, reason = text + (choice.delta.content or ""), choice.finish_reason or reason
                    settled = self._settled(text)
                    if settled > given:
                        on_text(self.hidden(text[given:settled]))
                        given = settled
        if len(text) > given:
            on_text(self.hidden(text[given:]))
        choice = {"finish_reason": reason, "message": {"content": text}}
        return json.dumps({"model": model, "choices": [choice]}).encode()

    def _settled(self, text: str) -> int:
        """Letters of a text that may be given out: the last may get a mark, and what begins the key may become it."""
        end, key = last_letter(text), self._key or ""
        begun = (size for size in range(min(len(key) - 1, end), 0, -1) if key.startswith(text[end - size:end]))
        return end - next(begun, 0)

    async def _answered(self, asked: Coroutine[Any, Any, bytes], calls: bool = False) -> Result:
        import openai

        content, status, headers = b"", 0, None
        try:
            async with asyncio.timeout(self.model.timeout):
                content = await asked
        except _Cut as cut:
            broken = Broken("the connection failed", str(cut), True, True)
        except TimeoutError:
            broken = Broken("no answer in time", f"nothing whole within {self.model.timeout:g} s", True, True)
        except openai.APITimeoutError:
            broken = Broken("no answer in time", f"nothing within {self.model.timeout:g} s", True, True)
        except openai.APIStatusError as error:
            status, content, headers = error.status_code, error.response.content, error.response.headers
        except openai.APIConnectionError as error:
            cause = error.__cause__
            reached = type(cause).__name__ not in ("ConnectError", "ConnectTimeout")
            broken = Broken("the connection failed", f"{type(cause).__name__}: {cause}", reached, reached)
        except openai.OpenAIError as error:
            broken = Broken("no answer that can be read", f"{type(error).__name__}: {error}", False, True)
        else:
            said = read_reply(content, calls)
            if isinstance(said, Said):
                return self._clean(said)
            broken = Broken("no answer that can be read", said, False, True)
        # Outside of the handlers, so that what is raised later carries no request and no headers in its context.
        if headers is not None:
            text = content.decode("utf-8", "replace")
            wait = retry_after(headers.get("retry-after"), time.time())
            return Refused(refusal(status, text), self.hidden(f"{status}: {message_of(text)}"), wait)
        return Broken(broken.reason, self.hidden(broken.found), broken.jam, broken.reached)

    def hidden(self, text: str) -> str:
        """A text without the key."""
        return text if self._key is None or len(self._key) < _SHORTEST_KEY else text.replace(self._key, HIDDEN)

    async def close(self) -> None:
        await self._openai.close()

    def _clean(self, said: Said) -> Said:
        """Answers that quote the key would carry it into rows."""
        if self._key is None or self._key not in repr(asdict(said)):
            return said
        failure = said.failure and said.failure._replace(detail=self.hidden(said.failure.detail))
        return Said(self.hidden(said.text), said.finished, failure, said.tokens,
                    said.model and self.hidden(said.model),
                    tuple((self.hidden(name), self.hidden(arguments)) for name, arguments in said.calls))

    def _body(self, prompt: Sequence[Message], draw: Draw, most: int) -> dict[str, Any]:
        """Arguments of chat.completions.create. What is at its default is not sent: not every endpoint takes it."""
        from openai import Omit

        model = self.model
        extra = dict(model.extra_body or {})
        if draw.top_k:
            extra["top_k"] = draw.top_k
        if draw.repetition_penalty != 1.0:
            extra["repetition_penalty"] = draw.repetition_penalty
        body: dict[str, Any] = {
            "model": model.model, **to_openai(prompt), model.length_key: most, "temperature": draw.temperature}
        if draw.top_p != 1.0:
            body["top_p"] = draw.top_p
        if draw.presence_penalty:
            body["presence_penalty"] = draw.presence_penalty
        if draw.stop:
            body["stop"] = list(draw.stop)
        if "seed" in model.takes:
            body["seed"] = draw.seed % 2**31  # servers hold it in 32 bits
        if self._key is None:
            # Nor any that the package finds by itself: OPENAI_API_KEY and OPENAI_ADMIN_KEY are for another endpoint.
            body["extra_headers"] = {"Authorization": Omit()}
        return body | ({"extra_body": extra} if extra else {})


def _opened(model: EndpointModel, key: str | None, where: str) -> AsyncOpenAI:
    package(where)
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    return AsyncOpenAI(
        base_url=model.base_url, api_key=key or "none", max_retries=0, timeout=model.timeout,
        http_client=DefaultAsyncHttpxClient(follow_redirects=False, timeout=model.timeout),
    )
