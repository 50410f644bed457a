"""Our sampler within vLLM, as a logits processor: next_token.py chooses a row's token, and all others are ruled out.

vLLM's own random numbers are others, and without a seed for each request depend on the batch. Here a token depends on
its logits and its draw alone, by the embedded engine's code: the same draws give the same answers on both, as far as
their logits are the same numbers. vLLM is asked greedily, so that all it does is to take what is left. Penalties are
ours too, since they come before the temperature. Lives in vLLM's process and its workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from alignment.inference.next_token import RowParameters, check_finite, drawn, penalized, present
from alignment.inference.requests import Draw

DRAW = "kubealign_draw"
"""Key of SamplingParams.extra_args: a Draw's values by name."""


@dataclass
class _Row:
    """One request: `said` is vLLM's own list, which grows as it answers."""

    draw: Draw
    prompt: list[int]
    said: list[int]
    uniforms: Any

    @property
    def chosen_here(self) -> bool:
        """Whether vLLM's argmax of the raw logits is not the answer."""
        draw = self.draw
        return draw.temperature != 0 or draw.repetition_penalty != 1 or draw.presence_penalty != 0

    @classmethod
    def of(cls, params: SamplingParams, prompt: list[int] | None, said: list[int]) -> _Row | None:
        given = (params.extra_args or {}).get(DRAW)
        if given is None:
            return None
        draw = Draw(**{**given, "stop": ()})
        numbers = numpy.random.Generator(numpy.random.Philox(draw.seed)).random(draw.max_new_tokens)
        return cls(draw, list(prompt or ()), said, numbers.astype(numpy.float32))


class DrawSampler(LogitsProcessor):  # type: ignore[misc]  # vLLM may be absent where types are checked
    """Leaves of each row's logits the token that its draw chooses."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.device = device
        self.rows: dict[int, _Row] = {}
        self._known: tuple[list[int], RowParameters] | None = None

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if process_dict_updates(self.rows, batch_update, _Row.of):
            self._known = None

    def apply(self, logits: Tensor) -> Tensor:
        """[requests, vocabulary] float32 -> the same with all but the chosen token at minus infinity, where a draw
        chooses. Raises ModelError for logits that are not finite."""
        check_finite(logits.amax(-1))
        places = [place for place in sorted(self.rows) if place < len(logits) and self.rows[place].chosen_here]
        if not places:
            return logits
        rows = [self.rows[place] for place in places]
        if self._known is None or self._known[0] != places:
            self._known = places, _parameters(rows, logits)
        parameters = self._known[1]
        index = torch.tensor(places, device=logits.device)
        scores = _with_penalties(logits[index], rows, parameters)
        numbers = [row.uniforms[min(len(row.said), len(row.uniforms) - 1)] for row in rows]
        tokens = drawn(scores, parameters, torch.tensor(numbers, device=logits.device))
        left = torch.full_like(scores, -torch.inf)
        left.scatter_(1, tokens[:, None], 0.0)
        logits[index] = left
        return logits


def _parameters(rows: list[_Row], logits: Tensor) -> RowParameters:
    """Of these rows, without their random numbers, which are at different steps."""
    draws = [row.draw for row in rows]
    vocabulary = logits.shape[-1]

    def of(values: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, device=logits.device, dtype=dtype)

    return RowParameters(
        of([d.temperature for d in draws]), of([d.top_p for d in draws]),
        of([min(d.top_k or vocabulary, vocabulary) for d in draws], torch.long),
        of([d.repetition_penalty for d in draws]), of([d.presence_penalty for d in draws]),
        torch.empty(len(rows), 0, device=logits.device),
    )


def _with_penalties(scores: Tensor, rows: list[_Row], parameters: RowParameters) -> Tensor:
    some = [place for place, row in enumerate(rows) if row.draw.repetition_penalty != 1]
    if some:
        index = torch.tensor(some, device=scores.device)
        history = _padded([rows[place].prompt + rows[place].said for place in some], scores.device)
        scores[index] = penalized(scores[index], history, parameters.penalty[index])
    some = [place for place, row in enumerate(rows) if row.draw.presence_penalty != 0 and row.said]
    if some:
        index = torch.tensor(some, device=scores.device)
        scores[index] = present(scores[index], _padded([rows[place].said for place in some], scores.device),
                                parameters.presence[index])
    return scores


def _padded(ids: list[list[int]], device: torch.device) -> Tensor:
    """[rows, longest]; shorter rows repeat their last id, which changes nothing where it is counted once."""
    width = max(map(len, ids))
    return torch.tensor([own + own[-1:] * (width - len(own)) for own in ids], device=device)
