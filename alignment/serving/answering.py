"""From a request to an engine and back: its tokens as they come, text that is never taken back, an end at stop texts.

Whoever stops listening (a client that went away, a request whose time is over) cancels what the engine does for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Literal

from alignment.inference.live.asked import Broken, Heard, Question
from alignment.inference.live.opened import LiveModel
from alignment.inference.requests import Draw, Token
from alignment.serving.calls import calling
from alignment.serving.growing import Plain, Text, Until, Whole, plain
from alignment.serving.refused import Refused
from alignment.serving.shapes import ChatRequest, CompletionRequest
from alignment.templates import Growing, Spoken, decode_answer


@dataclass(frozen=True)
class Part:
    """What an answer has grown by.

    Attributes:
        tokens: all that were made, the stop token too.
        finish: with the last part.
        reason: the stop token, or the stop text.
        call: of a tool, with the last part.
    """

    text: str
    tokens: tuple[Token, ...]
    finish: Literal["stop", "length", "tool_calls"] | None = None
    reason: int | str | None = None
    call: Spoken | None = None


def text_of(request: ChatRequest | CompletionRequest, model: LiveModel) -> Until:
    """How the answers of a request are told."""
    speaker, told = model.speaker, isinstance(request, ChatRequest)
    text: Text = Growing(speaker) if told else Plain(speaker)
    if not (request.stream or request.stops):
        text = Whole(lambda ids, finished: decode_answer(speaker, ids, finished=finished) if told
                     else plain(speaker, ids))
    return Until(calling(text, model, request.tools) if isinstance(request, ChatRequest) else text, request.stops)


def draw_of(request: ChatRequest | CompletionRequest, ids: Sequence[int], model: LiveModel, default: int,
            index: int) -> Draw:
    """The draw of a request's answer of that index.

    Args:
        default: tokens of an answer where the request says nothing.

    Raises:
        Refused: prompt and answer are over the model's context length.
    """
    room = model.longest - len(ids)
    most = request.most
    if not ids:
        raise Refused(400, "the prompt has no tokens", param="prompt")
    if room < (most or 1):
        raise Refused(400, f"this model takes {model.longest} tokens, and the prompt has {len(ids)}"
                           + (f" with {most} asked for the answer" if most else ""),
                      code="context_length_exceeded",
                      param="messages" if isinstance(request, ChatRequest) else "prompt")
    seed = secrets.randbits(62) if request.seed is None else _seed(request.seed, index)
    return Draw(temperature=request.temperature, top_p=request.top_p, top_k=max(request.top_k, 0),
                repetition_penalty=request.repetition_penalty, max_new_tokens=most or min(default, room), seed=seed,
                presence_penalty=request.presence_penalty)


def _seed(seed: int, index: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:8]) >> 2


async def parts(model: LiveModel, question: Question, text: Until) -> AsyncIterator[Part]:
    """An answer's parts; leaving it early cancels it.

    Raises:
        Refused: the engine refused the question, or is gone.
    """
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Heard]()

    def hear(heard: Heard) -> None:
        with suppress(RuntimeError):  # the loop has ended, and nobody listens
            loop.call_soon_threadsafe(queue.put_nowait, heard)

    number, over = model.engine.ask(question, hear), False
    try:
        while not over:
            heard = await queue.get()
            if isinstance(heard, Broken):
                over = True
                raise Refused(503 if heard.gone else 500, f"the engine gave no answer: {heard.words}",
                              code="engine_gone" if heard.gone else "engine_failed",
                              retry_after=5 if heard.gone else None)
            told = heard.tokens[:-1] if heard.stop else heard.tokens
            piece = "".join([text.add(token.id) for token in told])
            over = heard.ended
            if over:
                piece += text.end(finished=heard.stop)
            if text.found is not None:
                yield Part(piece, heard.tokens, "stop", text.found)
                return
            if over:
                call = text.call
                yield Part(piece, heard.tokens, "tool_calls" if call else "stop" if heard.stop else "length",
                           heard.tokens[-1].id if heard.stop else None, call)
                return
            yield Part(piece, heard.tokens)
    finally:
        if not over:
            model.engine.cancel(number)


async def merged(sources: Sequence[AsyncIterator[Part]]) -> AsyncIterator[tuple[int, Part]]:
    """The parts of several answers as they come, each with its answer's index; leaving it early cancels all."""
    queue: asyncio.Queue[tuple[int, Part | BaseException | None]] = asyncio.Queue()

    async def pour(index: int, source: AsyncIterator[Part]) -> None:
        try:
            async with aclosing(source):  # type: ignore[type-var]
                async for part in source:
                    queue.put_nowait((index, part))
        except Exception as error:
            queue.put_nowait((index, error))
        else:
            queue.put_nowait((index, None))

    tasks = [asyncio.create_task(pour(index, source)) for index, source in enumerate(sources)]
    try:
        left = len(tasks)
        while left:
            index, part = await queue.get()
            if isinstance(part, BaseException):
                raise part
            if part is None:
                left -= 1
            else:
                yield index, part
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
