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
from typing import Any, Literal

from alignment.artifacts import Artifact
from alignment.config import Compute
from alignment.config.serve import Limits
from alignment.errors import KubeAlignError
from alignment.inference.generator import Scorer
from alignment.inference.info import model_info
from alignment.inference.live.asked import LiveEngine
from alignment.inference.live.opened import LiveModel, open_live, reward_model
from alignment.serving.draining import leaving
from alignment.serving.measured import Measured
from alignment.serving.records import Record
from alignment.serving.refused import Refused

State = Literal["waiting", "proving", "ready", "failed"]


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

    @property
    def reward(self) -> bool:
        """Whether it scores texts instead of writing them."""
        return bool(model_info(self.artifact)["role"] == "reward")

    def fail(self, words: str) -> None:
        self.state, self.trouble = "failed", words


class Service:
    """Args:
        compute: device, engine and a settled dtype.
        key: of the API; None: nobody is asked for one.
        votes: file that votes are appended to.
    """

    def __init__(self, models: list[Model], compute: Compute, limits: Limits, *, key: str | None = None,
                 votes: str | None = None) -> None:
        self.models = {model.name: model for model in models}
        self.compute, self.limits, self.key, self.votes = compute, limits, key, votes
        self.proof_key = secrets.token_urlsafe(24)
        """By which this process's own questions are known."""
        self.measured = Measured(list(self.models), lambda: self.in_flight)
        self.in_flight = 0
        self.draining = False
        self.encoder = ThreadPoolExecutor(1, thread_name_prefix="encodes")
        self.scoring = asyncio.Lock()
        self._idle = threading.Event()
        self._idle.set()
        self._engines: list[LiveEngine] = []

    # --- models ---

    def load(self) -> None:
        """Bring all weights into memory; a model that cannot be loaded is `failed`, and others go on."""
        rewards = [model for model in self.models.values() if model.reward]
        policies = [model for model in self.models.values() if not model.reward]
        by_key: dict[str, list[Model]] = {}
        for model in policies:
            by_key.setdefault(model.artifact.key, []).append(model)
        opened = open_live([some[0].artifact for some in by_key.values()], self.compute, longest=self.limits.longest,
                           loaded=self.limits.loaded, rows=self.limits.rows, beside=len(rewards))
        for artifact, live in opened:
            if isinstance(live, LiveModel) and live.engine not in self._engines:
                self._engines.append(live.engine)
            for model in by_key[artifact.key]:
                self._loaded(model, live)
        for model in rewards:
            self._load_reward(model)

    def _loaded(self, model: Model, live: LiveModel | KubeAlignError) -> None:
        if isinstance(live, KubeAlignError):
            model.fail(str(live))
        else:
            model.live, model.state = live, "proving"

    def _load_reward(self, model: Model) -> None:
        scorer = reward_model(model.artifact, self.compute)
        try:
            scorer.load()
        except KubeAlignError as error:
            model.fail(str(error))
        else:
            model.scorer, model.state = scorer, "proving"

    def named(self, name: str, *, reward: bool, proving: bool = False) -> Model:
        """The model that a request names.

        Args:
            proving: whether the request is this process's own.

        Raises:
            Refused: there is none, it does something else, or it is not ready.
        """
        model = self.models.get(name)
        if model is None:
            raise Refused(404, f"the model {name!r} is not served here; there are {', '.join(self.models)}",
                          code="model_not_found", param="model")
        if model.reward != reward:
            raise Refused(400, f"the model {name!r} {'scores texts' if model.reward else 'writes text'}; this call is "
                               "for the other kind", param="model", code="wrong_kind")
        if model.state == "failed":
            raise Refused(503, f"the model {name!r} is not served: it was not proved to be what was trained "
                               "(GET /ready says why)", code="model_failed", param="model")
        if model.state != "ready" and not (proving and model.state == "proving"):
            raise Refused(503, f"the model {name!r} is not ready yet", code="model_not_ready", retry_after=5)
        if model.live is not None and model.live.engine.trouble is not None:
            raise Refused(503, f"the engine of the model {name!r} has ended", code="engine_gone")
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
        return next((engine.trouble for engine in self._engines if engine.trouble is not None), None)

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
        for engine in self._engines:
            engine.close()
        for model in self.models.values():
            if model.scorer is not None:
                model.scorer.close()
        self.encoder.shutdown(wait=False, cancel_futures=True)
