"""What a judge takes beside a stage's answers: requests of a rubric's length, each with an answer of full length."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from alignment.config import Judge, Run
from alignment.planner import estimate
from alignment.planner.estimate import Memory, Rates
from alignment.planner.sizes import ModelSize

RUBRIC = 150
"""Tokens of a judge's rubric, about as many as the shipped ones have."""


class Judging(NamedTuple):
    """What asking a judge takes; seconds and memory are None of an endpoint, and of a model of unknown size."""

    tokens: float
    cost: float = 0.0
    seconds: float | None = None
    memory: Memory | None = None


def judging(
    run: Run, judge: Judge, size: ModelSize | None, rates: Rates, *, prompts: float, answers: float, prompt: float,
    answer: float, batch: int, weight_bytes: int, on_gpu: bool,
) -> Judging:
    """A request for each answer, or for every two of a prompt in both orders.

    Args:
        answers: to each prompt; prompt, answer: their tokens.
        batch: requests in one generation batch.
    """
    compared = judge.mode == "compare"
    requests = prompts * answers * (answers - 1 if compared else 1)
    asked, new = RUBRIC + prompt + answer * (2 if compared else 1), judge.sampling.max_new_tokens
    there, tokens = run.stage(judge.model).endpoint, requests * (asked + new)
    if there is not None:
        return Judging(tokens, 0.0 if there.limits.price is None else requests * there.limits.price.of(asked, new))
    if size is None:
        return Judging(tokens)
    seconds = estimate.generate_seconds(size, rates, prompts=requests, batch=batch, answers=1, prompt_tokens=asked,
                                        new_tokens=new, weight_bytes=weight_bytes)
    memory = estimate.generate_memory(size, weight_bytes=weight_bytes, sequences=batch, length=round(asked + new),
                                      scorer=False, quantised=False, on_gpu=on_gpu)
    return Judging(tokens, 0.0, seconds, memory)


def together(made: Memory | None, judge: Memory | None, *, one_model: bool) -> Memory | None:
    """The memory of a stage that answers and judges: the larger of both, with the weights of the other beside it."""
    if made is None or judge is None:
        return made or judge
    larger, smaller = (made, judge) if made.total >= judge.total else (judge, made)
    return larger if one_model else replace(larger, weights=larger.weights + smaller.weights)
