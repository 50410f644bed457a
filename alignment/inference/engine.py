"""Text generation with transformers: N answers per prompt from one prefill, each row with its own parameters.

A prompt is read once, its keys and values are handed to all its answers, and rows that have ended leave the batch.
Token ids come from `templates`. Works on one batch at a time: whoever calls makes batches (requests.py) and has loaded
the model (embedded.py). Does not score or write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.errors import DataError
from alignment.inference.cache import grouped_attention, roomy_cache
from alignment.inference.next_token import RowParameters, log_probs_of, sample
from alignment.inference.requests import Completion, Draw, Request, Token
from alignment.templates import decode_answer, encode_prompt, stop_ids

COMPACT_AT = 0.25
"""Share of ended rows at which the batch is made smaller: less often wastes rows, more often copies the cache."""


@dataclass
class _Row:
    """One answer in the making.

    Attributes:
        number: of it among all that were asked for, in order.
    """

    draw: Draw
    number: int
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    stop: int | None = None
    finished: bool = False
    ended: bool = False

    def take(self, token: int, stops: frozenset[int]) -> bool:
        """Add a token; returns whether the row ended by it."""
        if self.ended:
            return False
        if token in stops:
            self.finished, self.stop = True, token
        else:
            self.ids.append(token)
        self.ended = self.finished or len(self.ids) >= self.draw.max_new_tokens
        return self.ended


class Engine:
    """Generates with one model.

    Args:
        model: a causal language model in eval mode, on the device it shall compute on.
        tokenizer: of the same model folder, with its chat template.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.stops = frozenset(stop_ids(tokenizer))

    def generate(
        self, requests: Sequence[Request], on_progress: Callable[[int], None] | None = None,
        on_token: Callable[[int, int], None] | None = None,
    ) -> list[list[Completion]]:
        """Answers to one batch of requests: for each request one Completion per draw, in order.

        Args:
            on_progress: called with the number of answers that have just ended.
            on_token: called with (which answer, counted over all in order; its next id) as soon as there is one, but
                not for the token that stops it. Changes nothing in what is drawn; what it raises ends all answers.

        Raises:
            DataError: a request without draws, or a prompt without tokens.
            ModelError: the model gives logits that are not finite.
        """
        prompts = [encode_prompt(self.tokenizer, request.prompt) for request in requests]
        for request, ids in zip(requests, prompts, strict=True):
            if not ids or not request.draws:
                raise DataError("a request needs a prompt and at least one draw", where=f"row {request.id}",
                                found={"tokens": len(ids), "draws": len(request.draws)})
            if any(draw.stop for draw in request.draws):
                raise DataError("the transformers engine has no stop texts", where=f"row {request.id}",
                                expected="draws without them, or an endpoint")
        return self.continued(prompts, [request.draws for request in requests], on_progress, on_token=on_token)

    def continued(
        self, prompts: list[list[int]], draws: Sequence[Sequence[Draw]],
        on_progress: Callable[[int], None] | None = None, *, log_probs: bool = False,
        on_token: Callable[[int, int], None] | None = None,
    ) -> list[list[Completion]]:
        """Answers to prompts that are ids already, none of them empty, each with its draws; as `generate`.

        Args:
            log_probs: whether completions say how likely each of their tokens was.
        """
        numbers = count()
        rows = [[_Row(draw, next(numbers)) for draw in own] for own in draws]
        if rows:
            with torch.inference_mode(), grouped_attention(self.model):
                for active, tokens, logits, parameters in self._steps(prompts, rows):
                    if log_probs:
                        for row, value in zip(active, log_probs_of(logits, tokens, parameters).tolist(), strict=True):
                            if not row.ended:
                                row.log_probs.append(value)
                    came = [(row, token, row.ended) for row, token in zip(active, tokens.tolist(), strict=True)]
                    ended = sum([row.take(token, self.stops) for row, token, _ in came])
                    if on_progress is not None:
                        on_progress(ended)
                    if on_token is not None:
                        for row, token, before in came:
                            if not before and row.stop is None:
                                on_token(row.number, token)
        return [
            [Completion(decode_answer(self.tokenizer, row.ids, finished=row.finished), row.ids, row.finished, row.stop,
                        tuple(row.log_probs) if log_probs else None)
             for row in own]
            for own in rows
        ]

    def told(
        self, prompts: list[list[int]], draws: Sequence[Draw], *, top: int | None = None,
        gone: Callable[[int], bool] | None = None, stops: frozenset[int] | None = None,
    ) -> Iterator[list[tuple[int, Token, bool]]]:
        """Answers to prompts that are ids already, one each, told step by step: for each that has not ended its place,
        the token, and whether it ended by it. To be gone through to its end, in one thread.

        Args:
            top: how many alternatives each token says beside its own log-probability; None: neither.
            gone: asked of a place before each step; where it is true, the answer is made no further.
            stops: tokens that end an answer; None: those of the template.
        """
        rows = [_Row(draw, number) for number, draw in enumerate(draws)]
        with torch.inference_mode(), grouped_attention(self.model):
            for active, tokens, logits, _ in self._steps(prompts, [[row] for row in rows]):
                told = []
                for row, token in zip(active, as_told(logits, tokens, top), strict=True):
                    if not row.ended:
                        ended = row.take(token.id, self.stops if stops is None else stops)
                        told.append((row.number, token, ended))
                yield told
                if gone is not None:
                    for row in active:
                        row.ended = row.ended or gone(row.number)

    def _steps(
        self, prompts: list[list[int]], rows: list[list[_Row]]
    ) -> Iterator[tuple[list[_Row], Tensor, Tensor, RowParameters]]:
        """Rows in the making, their next tokens [rows], the logits that these came from, and their parameters; whoever
        asks for the next step has given the rows their tokens. Goes on until all have ended."""
        device = self.model.device
        active = [row for own in rows for row in own]
        steps = max(row.draw.max_new_tokens for row in active)
        ids, prompt_mask = left_padded(prompts, device)
        width = ids.shape[1]
        cache = roomy_cache(self.model, width + steps)
        logits = self.model(
            input_ids=ids, attention_mask=prompt_mask, position_ids=positions(prompt_mask), past_key_values=cache,
            use_cache=True, logits_to_keep=1,
        ).logits[:, -1]
        owner = torch.repeat_interleave(torch.tensor([len(own) for own in rows], device=device))
        cache.batch_select_indices(owner)
        logits, lengths = logits[owner], prompt_mask.sum(-1)[owner]
        # Room for the whole answer: generated tokens always count, and where the prompt is padded the history
        # repeats the prompt's last token, since a padding id would be penalized as if it had been said.
        mask = torch.cat([prompt_mask[owner], prompt_mask.new_ones(len(active), steps)], 1)
        said = ids.where(prompt_mask == 1, ids[:, -1:])[owner]
        history = torch.cat([said, said.new_zeros(len(active), steps)], 1)
        parameters = RowParameters.of([row.draw for row in active], device, logits.shape[-1])
        for step in range(steps):
            tokens = sample(logits, history[:, : width + step], parameters, step)
            yield active, tokens, logits, parameters
            live = [index for index, row in enumerate(active) if not row.ended]
            if not live:
                return
            history[:, width + step] = tokens
            if len(live) <= (1 - COMPACT_AT) * len(active):
                kept = torch.tensor(live, device=device)
                cache.batch_select_indices(kept)
                active, parameters = [active[index] for index in live], parameters.select(kept)
                tokens, lengths, mask, history = tokens[kept], lengths[kept], mask[kept], history[kept]
            logits = self.model(
                input_ids=tokens[:, None], attention_mask=mask[:, : width + step + 1],
                position_ids=(lengths + step)[:, None], past_key_values=cache, use_cache=True, logits_to_keep=1,
            ).logits[:, -1]


def as_told(logits: Tensor, tokens: Tensor, top: int | None) -> list[Token]:
    """Tokens [rows] with their log-probabilities in nats under logits [rows, vocabulary] at temperature 1, nothing
    filtered, and those of the `top` likeliest; without either where `top` is None."""
    if top is None:
        return [Token(token) for token in tokens.tolist()]
    scores = logits.float().log_softmax(-1)
    own = scores.gather(1, tokens[:, None]).squeeze(1).tolist()
    values, ids = scores.topk(min(top, scores.shape[-1]))
    return [Token(token, value, tuple(zip(some, likely, strict=True))) for token, value, some, likely in zip(
        tokens.tolist(), own, ids.tolist(), values.tolist(), strict=True)]


def left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both [prompts, longest]; padding holds id 0, which the mask hides."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def positions(mask: Tensor) -> Tensor:
    """Position ids of a padded batch: the first real token of each row is 0."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
