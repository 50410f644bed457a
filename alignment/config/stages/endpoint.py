"""A model that is asked over the network: an OpenAI-compatible endpoint, named by a run file as a model.

It has no weights here, so stages that only ask may read it (sample, evaluate), and stages that train may not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from alignment.config.stages.base import Finding, Stage
from alignment.config.stages.fields import Positive, Strict
from alignment.config.stages.imports import names_endpoint
from alignment.errors import Written

AboveZero = Annotated[float, Field(gt=0)]
CONCURRENCY, TIMEOUT, RETRIES = 16, 120.0, 6
"""Where the file says none."""
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_OWN = frozenset({"model", "messages", "n", "stream", "seed", "temperature", "top_p", "top_k", "repetition_penalty",
                  "presence_penalty", "max_tokens", "max_completion_tokens", "stop"})
"""Parts of a request that other keys decide."""


class Price(Strict):
    """What tokens cost, per million, in any one currency."""

    input: Annotated[float, Field(ge=0)]
    """Of a million prompt tokens. Those that the endpoint had in its cache count the same."""
    output: Annotated[float, Field(ge=0)]
    """Of a million tokens that it generates, its reasoning included."""

    def of(self, prompt: float, completion: float) -> float:
        """Cost of so many tokens."""
        return (prompt * self.input + completion * self.output) / 1e6


class Limits(Strict):
    """How fast an endpoint is asked and what that may cost. Changes nothing in the answers, so it is in no digest."""

    concurrency: Positive | None = None
    """Requests under way at once, at most. Default: 16. It begins with fewer, rises with each answer, and is halved
    when the endpoint refuses for load (429), fails (5xx) or is silent."""
    requests_per_minute: Positive | None = None
    """In any minute, at most."""
    tokens_per_minute: Positive | None = None
    """In any minute, at most; a request counts with an estimate of its prompt and all of max_new_tokens, until its
    answer says what it took."""
    timeout_s: AboveZero | None = None
    """Seconds for one whole answer. Default: 120."""
    retries: Annotated[int, Field(ge=0, le=20)] | None = None
    """Further attempts after a failure that may pass, each after a longer pause. Default: 6."""
    price: Price | None = None
    """What tokens cost, for the accounting and for `budget`."""
    budget: AboveZero | None = None
    """What a stage may spend at this endpoint, over all its attempts, in the currency of `price`. At its end the stage
    stops; with a higher one it goes on where it was."""

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.budget is not None and (self.price is None or not (self.price.input or self.price.output)):
            raise ValueError("budget needs `price`: {input: ..., output: ...} per million tokens")
        return self


class EndpointModel(Strict):
    """An OpenAI-compatible endpoint: who is asked, and how."""

    source: Literal["endpoint"]
    """A model that is asked over the network, by POST BASE_URL/chat/completions, with the endpoint's own template."""
    base_url: str
    """Address up to and including /v1: https://api.openai.com/v1, http://127.0.0.1:8000/v1."""
    model: Annotated[str, Field(min_length=1)]
    """The model's name at the endpoint."""
    key_env: str | None = None
    """Environment variable that holds the key, where the stage is made. Left out: no key is sent. The key itself
    stands in no file."""
    takes: tuple[Literal["seed", "top_k", "repetition_penalty"], ...] = ("seed",)
    """What the endpoint takes beyond temperature, top_p and length. `seed` is sent; the other two, which OpenAI has
    not and vLLM has, are refused in `sampling` unless they stand here."""
    length_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls the longest answer. OpenAI's reasoning models take `max_completion_tokens` alone."""
    extra_body: dict[str, Any] | None = None
    """Further parts of each request, as the endpoint names them: {reasoning_effort: low}."""
    limits: Limits = Limits()
    """How fast it is asked and what that may cost: no part of what is made."""

    @property
    def concurrency(self) -> int:
        return self.limits.concurrency or CONCURRENCY

    @property
    def timeout(self) -> float:
        """Seconds for one answer."""
        return self.limits.timeout_s or TIMEOUT

    @property
    def retries(self) -> int:
        return RETRIES if self.limits.retries is None else self.limits.retries


class ImportEndpoint(Stage):
    """Name an OpenAI-compatible endpoint as a model that sample and evaluate may ask; it asks nothing itself."""

    tag: ClassVar[str] = "import-endpoint"
    makes = "endpoint"
    known_by = "model: {source: endpoint}"
    body = "alignment.inference.import_endpoint:import_endpoint"
    script = "import_stage"

    kind: Literal["import"] = "import"
    """`import` with `model: {source: endpoint}` names an endpoint."""
    model: EndpointModel
    """The endpoint."""

    @classmethod
    def is_meant(cls, get: Callable[[str], Any]) -> bool:
        return super().is_meant(get) and names_endpoint(get("model"))

    @property
    def endpoint(self) -> EndpointModel:
        return self.model

    @property
    def draws(self) -> bool:
        return False

    def learned(self, scaled: Callable[[int | None], int | None]) -> dict[str, Any]:
        config = super().learned(scaled)
        for key in ("limits", "key_env"):
            config["model"].pop(key, None)
        config["model"]["base_url"] = self.model.base_url.rstrip("/")
        return config

    def findings(self) -> Iterator[Finding]:
        for key in sorted(_OWN & set(self.model.extra_body or {})):
            yield Finding(("model", "extra_body", key), "is decided by other keys", key,
                          "keys that the run file has no other place for")
        # What may be a secret in the wrong place is not shown.
        if self.model.key_env is not None and not _VARIABLE.fullmatch(self.model.key_env):
            yield Finding(("model", "key_env"), "is no name of an environment variable, and may be the key itself",
                          Written("", "(not shown)"), "capital letters, digits and underscores: OPENAI_API_KEY")
        yield from _of_address(self.model.base_url)

    def title(self) -> str:
        return f"import · {self.model.model} at {urlsplit(self.model.base_url).netloc}"


def _of_address(text: str) -> Iterator[Finding]:
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = None, None
    if parts is not None and (parts.username is not None or parts.query or parts.fragment):
        yield Finding(("model", "base_url"), "holds a user, a query or a fragment, and it is written into manifests",
                      Written("", "(not shown)"), "an address alone; key_env names the variable with the key")
    elif parts is None or parts.scheme not in ("http", "https") or not host:
        yield Finding(("model", "base_url"), "is no address of an endpoint", text,
                      "http:// or https:// and a host: https://api.openai.com/v1")
