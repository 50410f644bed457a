"""POST /v1/completions: text that is continued as it stands, without a template; or ids.

A text is tokenized as the tokenizer does it, special tokens that it spells included: whoever writes a prompt whole
writes its control tokens too. Conversations are chat's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from alignment.inference.live.asked import Question
from alignment.inference.live.opened import LiveModel
from alignment.serving.answering import Part, draw_of, merged, parts, text_of
from alignment.serving.chat import encoded
from alignment.serving.measured import Asked
from alignment.serving.refused import Refused
from alignment.serving.service import Service
from alignment.serving.shapes import MOST_CHOICES, CompletionRequest, read
from alignment.serving.spoken import Choice, Frame, Reply, gathered, streamed, text_log_probs, usage


async def completions(service: Service, asked: Asked) -> Reply:
    """Raises Refused."""
    request = read(CompletionRequest, asked.body)
    asked.model = request.model
    live = service.named(request.model, "policy", proving=asked.proving).live
    assert live is not None
    prompts = [tuple(await encoded(service, partial(_ids, live, prompt))) for prompt in request.prompts]
    if not 1 <= len(prompts) * request.n <= MOST_CHOICES:
        raise Refused(400, f"{len(prompts)} prompts with n {request.n}; at most {MOST_CHOICES} answers a request",
                      param="prompt")
    told = merged([parts(live, Question(ids, draw_of(request, ids, live, service.limits.tokens, index), live.adapter,
                                        request.logprobs), text_of(request, live))
                   for ids in prompts for index in range(request.n)])
    count, tokens = len(prompts) * request.n, sum(map(len, prompts))
    frame = Frame.of("text_completion", request.model, "cmpl")
    if request.stream:
        offsets = [0] * count
        return streamed(asked, told, count, tokens, frame, partial(_delta, request, live, prompts, offsets), first=None,
                        with_usage=request.stream_options is not None and request.stream_options.include_usage, more={})
    choices = await gathered(asked, told, count)
    asked.tokens(tokens, sum(len(choice.tokens) for choice in choices))
    return frame.body([_choice(request, live, prompts, index, choice) for index, choice in enumerate(choices)],
                      usage=usage(tokens, choices))


def _ids(live: LiveModel, prompt: str | list[int]) -> Sequence[int]:
    if isinstance(prompt, str):
        return [int(index) for index in live.tokenizer(prompt)["input_ids"]]
    known = len(live.tokenizer)
    wrong = next((index for index in prompt if not 0 <= index < known), None)
    if wrong is not None:
        raise Refused(400, f"the model has no token {wrong}: its vocabulary has {known}", param="prompt")
    return prompt


def _choice(request: CompletionRequest, live: LiveModel, prompts: Sequence[Sequence[int]], index: int,
            choice: Choice) -> dict[str, Any]:
    assert choice.end is not None
    return {"index": index, "text": "".join(choice.text),
            "logprobs": None if request.logprobs is None else text_log_probs(live.speaker, choice.tokens, 0),
            "finish_reason": choice.end.finish, "stop_reason": choice.end.reason,
            **_ids_told(request, prompts, index, [token.id for token in choice.tokens])}


def _delta(request: CompletionRequest, live: LiveModel, prompts: Sequence[Sequence[int]], offsets: list[int],
           index: int, part: Part) -> dict[str, Any] | None:
    if not (part.text or part.finish or request.logprobs is not None or request.return_token_ids):
        return None
    told = None if request.logprobs is None else text_log_probs(live.speaker, part.tokens, offsets[index])
    offsets[index] += sum(map(len, told["tokens"])) if told else 0
    return {"index": index, "text": part.text, "logprobs": told, "finish_reason": part.finish,
            **({"stop_reason": part.reason} if part.finish else {}),
            **_ids_told(request, prompts, index, [token.id for token in part.tokens])}


def _ids_told(request: CompletionRequest, prompts: Sequence[Sequence[int]], index: int,
              ids: list[int]) -> dict[str, Any]:
    return {"prompt_token_ids": list(prompts[index // request.n]), "token_ids": ids} if request.return_token_ids else {}
