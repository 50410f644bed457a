"""What one server holds: its models with their state, its limits, what is in flight. Knows no HTTP.

A model is `waiting` until its weights are there, `proving` until its recorded rows were asked, then `ready` or, for
good, `failed`. Nobody is answered by a model that is not ready.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from alignment.artifacts import Artifact
from alignment.config import Compute
from alignment.config.serve import Limits
from alignment.errors import KubeAlignError
from alignment.inference.generator import Embedder, Pooling, Scorer, embedder_of, scorer_of
from alignment.inference.info import role_of
from alignment.inference.live.asked import LiveEngine
from alignment.inference.live.opened import LiveModel, open_live
from alignment.serving.draining import leaving
from alignment.serving.measured import Measured
from alignment.serving.records import Reading, Record, reading_of
from alignment.serving.refused import Refused

State = Literal["waiting", "proving", "ready", "failed"]
DOES = {"policy": "writes text", "reward": "scores texts", "embedder": "makes vectors of texts"}
"""Role of a model -> what it does."""


@dataclass
class Model:
    """One name of /v1/models.

    Attributes:
        record: rows that it is held to; None: it is served unproved, which was asked for.
        proof: what became of it.
    """

    name: str
    artifact: Artifact
    record: Record | None
    state: State = "waiting"
    trouble: str | None = None
    proof: dict[str, Any] = field(default_factory=dict)
    live: LiveModel | None = None
    scorer: Scorer | None = None
    embedder: Embedder | None = None
    reading: Reading | None = None

    @cached_property
    def role(self) -> str:
        """A key of DOES."""
        return role_of(self.artifact)

    @property
    def longest(self) -> int | None:
        """Tokens of a request and its answer, at most; None where it is not known, or the model is not there yet."""
        return self.live.longest if self.live else self.embedder.context_length if self.embedder else None

    def fail(self, words: str) -> None:
        self.state, self.trouble = "failed", words


class Service:
    """Args:
        compute: device, engine and a settled dtype.
        key: of the API; None: nobody is asked for one.
        votes: file that votes are appended to.
        pooling: of embedders; None: as the stages of their store have it.
    """

    def __init__(self, models: list[Model], compute: Compute, limits: Limits, *, key: str | None = None,
                 votes: str | None = None, pooling: Pooling | None = None) -> None:
        self.models = {model.name: model for model in models}
        self.compute, self.limits, self.key, self.votes, self.pooling = compute, limits, key, votes, pooling
        self.proof_key = secrets.token_urlsafe(24)
        """By which this process's own questions are known."""
        self.measured = Measured(list(self.models), lambda: self.in_flight)
        self.in_flight = 0
        self.draining = False
        self.encoder = ThreadPoolExecutor(1, thread_name_prefix="encodes")
        self.passing = asyncio.Lock()
        """Held by whoever has a model score or embed: one batch at a time."""
        self._idle = threading.Event()
        self._idle.set()
        self._engines: list[LiveEngine] = []
        self._over = False
        self.down: dict[str, str] = {}
        """Name of a model without an engine -> why it ended."""

    # --- models ---

    def load(self) -> None:
        """Bring all weights into memory; a model that cannot be loaded is `failed`, and others go on."""
        self._open([model for model in self.models.values() if model.role == "policy"])
        for model in self._others():
            self._load_other(model)

    def _others(self) -> list[Model]:
        return [model for model in self.models.values() if model.role != "policy"]

    def _open(self, policies: list[Model]) -> None:
        by_key: dict[str, list[Model]] = {}
        for model in policies:
            by_key.setdefault(model.artifact.key, []).append(model)
        beside = len(self._others()) + len(self._engines)
        opened = open_live([some[0].artifact for some in by_key.values()], self.compute, longest=self.limits.longest,
                           loaded=self.limits.loaded, rows=self.limits.rows, beside=beside)
        for artifact, live in opened:
            if isinstance(live, LiveModel) and live.engine not in self._engines:
                self._engines.append(live.engine)
                if self._over:
                    live.engine.close()
            for model in by_key[artifact.key]:
                self._loaded(model, live)

    def _loaded(self, model: Model, live: LiveModel | KubeAlignError) -> None:
        if isinstance(live, KubeAlignError):
            model.fail(str(live))
        else:
            model.live, model.state = live, "proving"

    def _load_other(self, model: Model) -> None:
        try:
            if model.role == "embedder":
                model.reading = reading_of(model.artifact, self.pooling)
                model.embedder = embedder_of(model.artifact, self.compute)
                model.embedder.load()
            else:
                model.scorer = scorer_of(model.artifact, self.compute)
                model.scorer.load()
        except KubeAlignError as error:
            model.fail(str(error))
        else:
            model.state = "proving"

    # --- engines that have ended (revive.py) ---

    def gone(self) -> LiveEngine | None:
        """One that has, and whose models are not lost yet."""
        return None if self._over else next((one for one in self._engines if one.trouble is not None), None)

    def lose(self, engine: LiveEngine) -> list[Model]:
        """The models of an engine that has ended, which nobody is answered by any more."""
        lost = [model for model in self.models.values() if model.live is not None and model.live.engine is engine]
        for model in lost:
            model.state, self.down[model.name] = "waiting", str(engine.trouble)
            self.measured.ready.labels(model.name).set(0)
        self._engines.remove(engine)
        return lost

    def reload(self, engine: LiveEngine, models: list[Model]) -> None:
        """Close what is left of an engine, and bring its models into memory again; they are `proving` then, or
        `failed`."""
        engine.close()
        for model in models:
            model.live, model.state, model.trouble = None, "waiting", None
        try:
            self._open(models)
        except KubeAlignError as error:
            for model in models:
                model.fail(str(error))

    def found(self, models: list[Model]) -> None:
        """They have an engine again."""
        for model in models:
            self.down.pop(model.name, None)
        self.measured.restarts.inc()

    def named(self, name: str, role: str, *, proving: bool = False) -> Model:
        """The model that a request names.

        Args:
            role: what the call is for, a key of DOES.
            proving: whether the request is this process's own.

        Raises:
            Refused: there is none, it does something else, or it is not ready.
        """
        model = self.models.get(name)
        if model is None:
            raise Refused(404, f"the model {name!r} is not served here; there are {', '.join(self.models)}",
                          code="model_not_found", param="model")
        if model.role != role:
            raise Refused(400, f"the model {name!r} is a {model.role} model, which {DOES[model.role]}; this call is "
                               f"for one that {DOES[role]} ({role})", param="model", code="wrong_kind")
        if name in self.down and not (proving and model.state == "proving"):
            raise Refused(503, f"the engine of the model {name!r} has ended" + (
                "" if model.state == "failed" else "; it is started again"), code="engine_gone",
                          retry_after=None if model.state == "failed" else 5)
        if model.state == "failed":
            raise Refused(503, f"the model {name!r} is not served: it was not proved to be what was trained "
                               "(GET /ready says why)", code="model_failed", param="model")
        if model.state != "ready" and not (proving and model.state == "proving"):
            raise Refused(503, f"the model {name!r} is not ready yet", code="model_not_ready", retry_after=5)
        if model.live is not None and model.live.engine.trouble is not None:
            raise Refused(503, f"the engine of the model {name!r} has ended", code="engine_gone", retry_after=5)
        return model

    @property
    def ready(self) -> bool:
        """Whether every model may be asked, and no end is near."""
        proved = all(model.state == "ready" for model in self.models.values())
        return proved and self.alive and not self.draining and not leaving()

    @property
    def alive(self) -> bool:
        """Whether no engine has gone."""
        return self.trouble is None

    @property
    def trouble(self) -> str | None:
        """Why an engine can answer no more, if one cannot."""
        gone = (engine.trouble for engine in self._engines if engine.trouble is not None)
        return next(gone, None) or next(iter(self.down.values()), None)

    # --- requests ---

    @contextmanager
    def admitted(self, *, proving: bool) -> Iterator[None]:
        """A request in flight. Raises Refused where there are too many, or the end is near."""
        if not proving and self.draining:
            raise Refused(503, "the server is about to end; another one may answer", code="draining", retry_after=1)
        if not proving and self.in_flight >= self.limits.in_flight:
            raise Refused(429, f"{self.in_flight} requests are being answered, which is all that this server takes",
                          code="too_many_requests", retry_after=1)
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    def drain(self, seconds: float) -> str:
        """From any thread: take no more requests, and wait for those in flight; what to say of those that are left."""
        self.draining = True
        self._idle.wait(seconds)
        return "all answers were ended" if not self.in_flight else f"{self.in_flight} answers were cut off"

    def close(self) -> None:
        self._over = True
        for engine in self._engines:
            engine.close()
        for model in self.models.values():
            for opened in (model.scorer, model.embedder):
                if opened is not None:
                    opened.close()
        self.encoder.shutdown(wait=False, cancel_futures=True)
