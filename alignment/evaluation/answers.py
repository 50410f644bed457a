"""What needs a model, for one batch: answers to test rows with log-probabilities of their references, reward scores.

`AnswerBatch` and `RewardBatch` are makers of distributed.batches; each holds one model. Everything is joined by row id.
Does not choose rows, judge text or compare models.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from alignment.config import Evaluate
from alignment.context import StageContext
from alignment.evaluation.results import Question
from alignment.inference.draws import draws
from alignment.inference.generator import open_engine, open_scorer
from alignment.inference.proof_rows import TOKENS, ProofRow, rows_of, written
from alignment.inference.requests import Request
from alignment.records import Message


@dataclass
class Answers:
    """One model's answers, to a batch or to all questions, by row id.

    Attributes:
        answers: {"text", "finished", "tokens"} of each answer; of an endpoint's also "usage".
        failed: {"reason", "found", "usage"} of each question that an endpoint gave no answer to.
        log_probs: (summed log-probability in nats, tokens) of each reference; empty when perplexity is not asked for.
        seconds: time spent by kind of work, over all attempts and workers.
        engines: who answered (Generator.made_by), each once; none of an endpoint.
        batches: (questions, seconds of answering them) of each part; empty of a part itself.
        proof: rows that a server of the model is held to (inference/proof_rows.py).
    """

    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    log_probs: dict[str, tuple[float, int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)
    engines: list[dict[str, Any]] = field(default_factory=list)
    batches: list[tuple[int, float]] = field(default_factory=list)
    proof: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, parts: Iterable[Answers]) -> Answers:
        """The answers of all parts together."""
        whole = cls()
        for part in parts:
            whole.answers |= part.answers
            whole.log_probs |= part.log_probs
            whole.failed |= part.failed
            whole.proof += part.proof
            whole.engines += [one for one in part.engines if one not in whole.engines]
            if asked := len(part.answers) + len(part.failed):
                whole.batches.append((asked, part.seconds.get("generate", 0.0)))
            for name, value in part.seconds.items():
                whole.seconds[name] = whole.seconds.get(name, 0.0) + value
        return whole

    def used(self) -> Iterator[dict[str, Any] | None]:
        """What each answer and failure took at an endpoint; None of a model that computes here."""
        return (one.get("usage") for some in (self.answers, self.failed) for one in some.values())

    def timing(self) -> dict[str, float]:
        """Seconds, tokens generated, and their rate."""
        tokens = sum(answer["tokens"] for answer in self.answers.values())
        rate = tokens / max(self.seconds.get("generate", 0.0), 1e-9)
        return {**{name: round(value, 3) for name, value in self.seconds.items()},
                "tokens": tokens, "tokens_per_second": round(rate, 1)}

    def per_item(self) -> dict[str, dict[str, float]]:
        """Seconds and tokens of one answer: the mean, and between which values nine of ten lie.

        An answer's seconds are its batch's, divided by the answers in it: what it takes of the machine, and no latency.
        """
        seconds = [spent / asked for asked, spent in self.batches for _ in range(asked)]
        return {"seconds": _spread(seconds, 4), "tokens": _spread([one["tokens"] for one in self.answers.values()], 1)}

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Answers:
        """Inverse of to_json; raises ValueError, TypeError or KeyError on anything else."""
        raw = json.loads(text)
        pairs = {id_: (total, tokens) for id_, (total, tokens) in raw["log_probs"].items()}
        return cls(raw["answers"], pairs, raw["seconds"], raw.get("failed", {}), raw.get("engines", []),
                   proof=raw.get("proof", []))


class AnswerBatch:
    """Answers of the model `name` to batches of questions, and its log-probabilities of their references.

    Args:
        proof: ids of the questions whose greedy answers are kept number by number.
    """

    def __init__(self, context: StageContext, *, name: str, proof: Collection[str] = ()) -> None:
        self.seed, self.stage = context.run.seed, context.stage_as(Evaluate)
        self.proof, self.key = proof, context.inputs[name].key
        self.engine = open_engine(context, name)

    @property
    def ahead(self) -> bool:
        """Whether the model works on several batches at once and would hear of another."""
        return self.engine.ahead

    def begin(self, items: Sequence[Question]) -> None:
        """Have the model begin with a batch that will be made soon."""
        self.engine.begin(self._requests(items))

    def close(self) -> None:
        """Give back the model's memory."""
        self.engine.close()

    def make(self, items: Sequence[Question]) -> Answers:
        """Raises ModelError when the model cannot be loaded or its logits are not finite, EndpointStopped when it is
        an endpoint that cannot be asked any further."""
        made = Answers()
        with clock(made.seconds, "load"):
            self.engine.load()
        made.engines = [dict(self.engine.made_by)] if self.engine.made_by else []
        with clock(made.seconds, "generate"):
            self.answer(items, made)
        asked = [(q.id, q.before, q.reference) for q in items if q.reference is not None]
        if asked and self.stage.asks_likelihoods:
            with clock(made.seconds, "perplexity"):
                found = self.engine.log_probs([(prompt, text) for _, prompt, text in asked])
            made.log_probs.update(zip((id_ for id_, _, _ in asked), found, strict=True))
        kept = [q for q in items if q.id in self.proof]
        if kept and made.engines:
            made.proof = list(written(self._proof_rows(kept)))
        return made

    def answer(self, items: Sequence[Question], made: Answers) -> None:
        """Add the model's answers, and what an endpoint failed on."""
        requests = self._requests(items)
        for request, (said,) in zip(requests, self.engine.generate(requests), strict=True):
            usage = {} if said.usage is None else {"usage": said.usage._asdict()}
            if said.failure is not None:
                made.failed[request.id] = {"reason": said.failure.reason, "found": said.failure.detail, **usage}
            else:
                made.answers[request.id] = {"text": said.text, "finished": said.finished, "tokens": said.length} | usage

    def _proof_rows(self, kept: Sequence[Question]) -> list[ProofRow]:
        most, prompts = min(TOKENS, self.stage.sampling.max_new_tokens), [q.prompt for q in kept]
        return rows_of([q.id for q in kept], prompts, self.engine.told(prompts, most), most, self.key,
                       self.engine.made_by)

    def _requests(self, items: Sequence[Question]) -> list[Request]:
        """The same draw for every model, so that models differ by their weights alone."""
        return [Request(q.id, q.prompt, draws(q.id, self.seed, 1, self.stage.sampling, model="evaluate"))
                for q in items]


@dataclass(frozen=True)
class Scorable:
    """Texts that were given to one question; equal ones stand here once, so that equal answers tie."""

    id: str
    prompt: list[Message]
    texts: tuple[str, ...]


@dataclass
class Rewards:
    """Row id -> text -> score of the reward model; NaN where it gives none."""

    scores: dict[str, dict[str, float]]

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Rewards:
        """Inverse of to_json; raises ValueError, TypeError or KeyError on anything else."""
        return cls(json.loads(text)["scores"])


class RewardBatch:
    """Scores of the reward model `name` for batches of texts."""

    def __init__(self, context: StageContext, *, name: str) -> None:
        self.scorer = open_scorer(context, name)

    def close(self) -> None:
        """Give back the model's memory."""
        self.scorer.close()

    def make(self, items: Sequence[Scorable]) -> Rewards:
        """Raises ModelError when the model cannot be loaded."""
        asked = [(item.id, item.prompt, text) for item in items for text in item.texts]
        scores = self.scorer.score([(prompt, text) for _, prompt, text in asked])
        made = Rewards({item.id: {} for item in items})
        for (id_, _, text), score in zip(asked, scores, strict=True):
            made.scores[id_][text] = score
        return made


def _spread(values: Sequence[float], digits: int) -> dict[str, float]:
    if not values:
        return {}
    low, high = np.percentile(values, [5, 95])
    found = {"mean": np.mean(values), "low": low, "high": high}
    return {name: round(float(value), digits) for name, value in found.items()}


@contextmanager
def clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add what the block took to `seconds[name]`."""
    began = time.monotonic()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.monotonic() - began

