"""Prometheus' numbers of one server (GET /metrics). Labels are names of served models, never what was asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

GONE = 499
"""nginx's status of a request whose client went away."""
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Measured:
    """Counts of requests by outcome, tokens, seconds to the first token and in all, what is in flight."""

    def __init__(self, models: Sequence[str], in_flight: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._known = frozenset(models)
        self.requests = Counter("kubealign_requests", "Requests, by call, model and HTTP status.",
                                ("call", "model", "status"), registry=self._registry)
        self.tokens = Counter("kubealign_tokens", "Tokens of prompts and of answers.", ("model", "kind"),
                              registry=self._registry)
        self.first = Histogram("kubealign_first_token_seconds", "Seconds to an answer's first token.", ("model",),
                               buckets=_SECONDS, registry=self._registry)
        self.seconds = Histogram("kubealign_request_seconds", "Seconds of a request.", ("call", "model"),
                                 buckets=_SECONDS, registry=self._registry)
        self.gone = Counter("kubealign_clients_gone", "Requests whose client went away before the answer.", ("model",),
                            registry=self._registry)
        self.ready = Gauge("kubealign_model_ready", "1: the model was proved and is served.", ("model",),
                           registry=self._registry)
        self.restarts = Counter("kubealign_engine_restarts", "Engines that ended and were started again.",
                                registry=self._registry)
        Gauge("kubealign_requests_in_flight", "Requests that are being answered.",
              registry=self._registry).set_function(in_flight)
        for model in models:
            self.ready.labels(model).set(0)

    def label(self, model: str | None) -> str:
        """The name, if it is one that is served."""
        return model if model in self._known else "unknown" if model else ""

    def text(self) -> bytes:
        return generate_latest(self._registry)


class Asked:
    """A request on its way: its body, and what is counted of it; nothing where it is this process's own.

    Attributes:
        model: the name that it asks, once it was read.
    """

    def __init__(self, call: str, proving: bool, measured: Measured) -> None:
        self.call, self.proving = call, proving
        self.body = b""
        self.model: str | None = None
        self._measured, self._began, self._first = measured, time.monotonic(), False

    @property
    def seconds(self) -> float:
        """Since it came."""
        return time.monotonic() - self._began

    def first(self) -> None:
        """A token is there."""
        if not (self._first or self.proving):
            self._first = True
            self._measured.first.labels(self._label()).observe(self.seconds)

    def tokens(self, prompt: int, answer: int) -> None:
        """That was all of them."""
        if not self.proving:
            self._measured.tokens.labels(self._label(), "prompt").inc(prompt)
            self._measured.tokens.labels(self._label(), "answer").inc(answer)

    def over(self, status: int) -> None:
        """It has its answer, or none."""
        if self.proving:
            return
        self._measured.requests.labels(self.call, self._label(), str(status)).inc()
        self._measured.seconds.labels(self.call, self._label()).observe(self.seconds)
        if status == GONE:
            self._measured.gone.labels(self._label()).inc()

    def _label(self) -> str:
        return self._measured.label(self.model)
