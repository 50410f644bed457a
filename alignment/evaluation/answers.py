"""What needs a model: answers to the test rows, log-probabilities of the references, reward scores.

One model is in memory at a time. Finished batches are kept in the stage's work folder, and pushed to a remote store now
and then, so that a killed evaluation goes on where it was; the batches are the same each time, since padding changes
the last bits of a number. Everything is joined by row id. Does not judge text or compare models: results.py does.
"""

from __future__ import annotations

import gc
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from alignment.config import Evaluate
from alignment.context import StageContext
from alignment.evaluation.results import Question, without_nan
from alignment.inference.draws import draws
from alignment.inference.engine import Engine
from alignment.inference.loading import load_policy, load_reward, load_tokenizer, resolve_device, resolve_dtype
from alignment.inference.requests import Request, batches
from alignment.inference.scoring import RewardScorer, log_probs
from alignment.progress import track
from alignment.templates import encode_prompt

PUSH = 30.0
"""Seconds between two pushes of unfinished work to a remote store: what a lost machine loses at most."""


@dataclass
class Answers:
    """One model's work so far, by row id.

    Attributes:
        answers: {"text", "finished", "tokens"} of each answer.
        log_probs: (summed log-probability in nats, tokens) of each reference; empty when perplexity is not asked for.
        seconds: time spent by kind of work, over all attempts.
    """

    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    log_probs: dict[str, tuple[float, int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def timing(self) -> dict[str, float]:
        """Seconds, tokens generated, and their rate."""
        tokens = sum(answer["tokens"] for answer in self.answers.values())
        rate = tokens / max(self.seconds.get("generate", 0.0), 1e-9)
        return {**{name: round(value, 3) for name, value in self.seconds.items()},
                "tokens": tokens, "tokens_per_second": round(rate, 1)}


def too_long(context: StageContext, stage: Evaluate, questions: Sequence[Question]) -> dict[str, int]:
    """Row id -> prompt tokens, for rows over max_prompt_tokens in the tokenizer of any evaluated model."""
    longest: dict[str, int] = {}
    for name in stage.models:
        tokenizer = load_tokenizer(context.inputs[name].path() / "model", side="left")
        for question in questions:
            tokens = len(encode_prompt(tokenizer, question.prompt))
            longest[question.id] = max(tokens, longest.get(question.id, 0))
    return {id_: tokens for id_, tokens in longest.items() if tokens > stage.max_prompt_tokens}


def answer(context: StageContext, stage: Evaluate, name: str, questions: Sequence[Question]) -> Answers:
    """Answers of model `name` to all questions, and its log-probabilities of their references.

    Raises ModelError when the model cannot be loaded or its logits are not finite.
    """
    kept = _Kept(context, f"answers-{name}")
    done = _read_answers(kept)
    seed = context.run.seed
    # The same draw for every model, so that models differ by their weights alone.
    requests = [Request(q.id, q.prompt, draws(q.id, seed, 1, stage.sampling, model="evaluate")) for q in questions]
    waiting = [batch for batch in batches(requests, stage.batch_size) if any(r.id not in done.answers for r in batch)]
    reused = len(questions) - sum(map(len, waiting))
    if waiting:
        _answer_batches(context, stage, name, {q.id: q for q in questions}, waiting, done, kept)
        free_memory()
    context.event("answers", model=name, rows=len(done.answers), reused=reused, **done.timing())
    return done


def _answer_batches(
    context: StageContext, stage: Evaluate, name: str, questions: dict[str, Question],
    waiting: list[list[Request]], done: Answers, kept: _Kept,
) -> None:
    artifact, device = context.inputs[name], resolve_device(context.run.compute)
    with _clock(done.seconds, "load"):
        model: Any = load_policy(artifact, dtype=resolve_dtype(context.run.compute, device), device=device)
        tokenizer = load_tokenizer(artifact.path() / "model", side="left")
    engine = Engine(model, tokenizer)
    with track(f"{stage.name}: answers of {name}", sum(map(len, waiting)), "answers") as progress:
        for batch in waiting:
            with _clock(done.seconds, "generate"):
                completions = engine.generate(batch, progress.advance)
            for request, (said,) in zip(batch, completions, strict=True):
                done.answers[request.id] = {"text": said.text, "finished": said.finished, "tokens": len(said.ids)}
            asked = [questions[request.id] for request in batch] if stage.perplexity else []
            items = [(q.id, q.prompt, q.reference) for q in asked if q.reference is not None]
            if items:
                with _clock(done.seconds, "perplexity"):
                    found = log_probs(model, tokenizer, [(prompt, text) for _, prompt, text in items])
                done.log_probs.update(zip((id_ for id_, _, _ in items), found, strict=True))
            kept.write(vars(done), last=batch is waiting[-1])


def reward_scores(
    context: StageContext, stage: Evaluate, questions: Sequence[Question], texts: dict[str, list[str]]
) -> dict[str, dict[str, float]]:
    """Reward model's score of every text, as row id -> text -> score; NaN where the model gives none.

    A text that two models gave to one question is scored once: equal answers tie, whatever batch they were in.

    Args:
        texts: row id -> texts to score; equal ones count once.
    """
    assert stage.score is not None
    assert stage.score.model is not None
    kept = _Kept(context, "rewards")
    done = {id_: {text: _number(score) for text, score in own.items()} for id_, own in kept.read().items()}
    requests = [Request(q.id, q.prompt, ()) for q in questions]
    waiting = [batch for batch in batches(requests, stage.batch_size)
               if any(text not in done.get(r.id, {}) for r in batch for text in texts[r.id])]
    began, reused = time.monotonic(), sum(map(len, done.values()))
    if waiting:
        _score_batches(context, stage.score.model, waiting, texts, done, kept)
        free_memory()
    context.event("rewards", model=stage.score.model, scores=sum(map(len, done.values())), reused=reused,
                  seconds=round(time.monotonic() - began, 3))
    return done


def _score_batches(
    context: StageContext, name: str, waiting: list[list[Request]], texts: dict[str, list[str]],
    done: dict[str, dict[str, float]], kept: _Kept,
) -> None:
    artifact, device = context.inputs[name], resolve_device(context.run.compute)
    model = load_reward(artifact, dtype=resolve_dtype(context.run.compute, device), device=device)
    scorer = RewardScorer(model, load_tokenizer(artifact.path() / "model", side="right"))
    with track(f"{context.stage.name}: rewards by {name}", sum(map(len, waiting)), "rows") as progress:
        for batch in waiting:
            items = [(r.id, r.prompt, text) for r in batch for text in dict.fromkeys(texts[r.id])]
            scores = scorer.score([(prompt, text) for _, prompt, text in items])
            for (id_, _, text), score in zip(items, scores, strict=True):
                done.setdefault(id_, {})[text] = score
            kept.write(done, last=batch is waiting[-1])
            progress.advance(len(batch))


def free_memory() -> None:
    """Give back what a model that is out of scope has held, on the GPU too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.monotonic() - began


class _Kept:
    """Finished batches of one model: one JSON file in a folder of the stage's work."""

    def __init__(self, context: StageContext, name: str) -> None:
        self.context, self.name, self.pushed = context, name, time.monotonic()
        context.store.pull_work(context.key, name)
        self.path = context.work / name / "done.json"
        self.path.parent.mkdir(exist_ok=True)

    def read(self) -> dict[str, Any]:
        done: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        return done

    def write(self, value: dict[str, Any], *, last: bool) -> None:
        """Replace the file whole: a kill leaves the old one or the new one. `last`: nothing will follow."""
        temporary = self.path.with_suffix(".part")
        temporary.write_text(json.dumps(without_nan(value), ensure_ascii=False, allow_nan=False), encoding="utf-8")
        os.replace(temporary, self.path)
        if last or time.monotonic() >= self.pushed + PUSH:
            self.context.store.push_work(self.context.key, self.name)
            self.pushed = time.monotonic()


def _read_answers(kept: _Kept) -> Answers:
    done = kept.read()
    pairs = {id_: (_number(total), tokens) for id_, (total, tokens) in done.pop("log_probs", {}).items()}
    return Answers(**done, log_probs=pairs)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
