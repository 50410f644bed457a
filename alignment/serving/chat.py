"""POST /v1/chat/completions: a conversation in, encoded as it was in training; its answer out, whole or as it comes.

Beside OpenAI's keys: `top_k`, `repetition_penalty` and `return_token_ids` as vLLM has them, and `best_of`, the answer
of several that the served reward model scores highest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from alignment.errors import DataError, KubeAlignError
from alignment.inference.live.asked import Question
from alignment.inference.live.opened import LiveModel
from alignment.records import Message
from alignment.serving.answering import Part, draw_of, merged, parts, text_of
from alignment.serving.calls import encode_told, told
from alignment.serving.measured import Asked
from alignment.serving.refused import Refused
from alignment.serving.scores import score
from alignment.serving.service import Service
from alignment.serving.shapes import ChatRequest, read
from alignment.serving.spoken import Choice, Frame, Parts, Reply, chat_log_probs, gathered, streamed, usage

T = TypeVar("T")


async def chat(service: Service, asked: Asked) -> Reply:
    """Raises Refused."""
    request = read(ChatRequest, asked.body)
    asked.model = request.model
    live = service.named(request.model, "policy", proving=asked.proving).live
    assert live is not None
    prompt = request.conversation()
    ids = tuple(await encoded(service, partial(encode_told, live, prompt)))
    count = request.best_of or request.n
    answers = _told(service, request, live, ids, count)
    if request.stream:
        frame = Frame.of("chat.completion.chunk", request.model, "chatcmpl")
        return streamed(asked, answers, count, len(ids), frame, partial(_delta, request, live),
                        first={"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None},
                        with_usage=request.stream_options is not None and request.stream_options.include_usage,
                        more={"prompt_token_ids": list(ids)} if request.return_token_ids else {})
    choices = await gathered(asked, answers, count)
    asked.tokens(len(ids), sum(len(choice.tokens) for choice in choices))
    used = usage(len(ids), choices)
    more: dict[str, Any] = {"prompt_token_ids": list(ids)} if request.return_token_ids else {}
    if request.best_of is not None:
        scores = await _scored(service, prompt, choices)
        choices = [choices[max(range(len(scores)), key=scores.__getitem__)]]
        more["best_of"] = scores
    frame = Frame.of("chat.completion", request.model, "chatcmpl")
    return frame.body([_choice(request, live, index, choice) for index, choice in enumerate(choices)], usage=used,
                      **more)


async def encoded(service: Service, encode: Callable[[], T]) -> T:
    """What an encoder gives, computed beside the event loop. Raises Refused for what the template refuses."""
    try:
        return await asyncio.get_running_loop().run_in_executor(service.encoder, encode)
    except KubeAlignError as error:
        raise Refused(400 if isinstance(error, DataError) else 500, str(error), param="messages",
                      code="invalid_messages" if isinstance(error, DataError) else None) from error


def _told(service: Service, request: ChatRequest, live: LiveModel, ids: tuple[int, ...], count: int) -> Parts:
    draws = [draw_of(request, ids, live, service.limits.tokens, index) for index in range(count)]
    return merged([parts(live, Question(ids, draw, live.adapter, request.top), text_of(request, live))
                   for draw in draws])


def _choice(request: ChatRequest, live: LiveModel, index: int, choice: Choice) -> dict[str, Any]:
    assert choice.end is not None
    text, call = "".join(choice.text), choice.end.call
    message = {"content": text} if call is None else {"content": text or None, "tool_calls": [told(call)]}
    return {"index": index, "message": {"role": "assistant", **message},
            "logprobs": chat_log_probs(live.speaker, choice.tokens) if request.logprobs else None,
            "finish_reason": choice.end.finish, "stop_reason": choice.end.reason,
            **({"token_ids": [token.id for token in choice.tokens]} if request.return_token_ids else {})}


def _delta(request: ChatRequest, live: LiveModel, index: int, part: Part) -> dict[str, Any] | None:
    if not (part.text or part.finish or request.logprobs or request.return_token_ids):
        return None
    more: dict[str, Any] = {"token_ids": [token.id for token in part.tokens]} if request.return_token_ids else {}
    if part.finish:
        more["stop_reason"] = part.reason
    delta: dict[str, Any] = {"content": part.text} if part.text else {}
    if part.call is not None:
        delta["tool_calls"] = [{"index": 0, **told(part.call)}]
    return {"index": index, "delta": delta,
            "logprobs": chat_log_probs(live.speaker, part.tokens) if request.logprobs else None,
            "finish_reason": part.finish, **more}


async def _scored(service: Service, prompt: list[Message], choices: list[Choice]) -> list[float]:
    rewards = [model for model in service.models.values() if model.role == "reward" and model.state == "ready"]
    if len(rewards) != 1:
        raise Refused(400, f"best_of needs one reward model that is served beside; there are {len(rewards)}",
                      param="best_of")
    return await score(service, rewards[0], [(prompt, "".join(choice.text)) for choice in choices])
