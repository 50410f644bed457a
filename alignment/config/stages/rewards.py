"""What online training is rewarded by: named parts, each with a weight, summed.

A part is one of: a reward model, a function of one answer, a function of a whole batch, an endpoint. Which of them says
its key, never what a function looks like. How parts are asked stands in alignment/rewards/.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from alignment.config.stages.base import Finding, ModelRef
from alignment.config.stages.fields import FORMS, Name, Positive, Strict

_ENV = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"
FORMS[_ENV] = "an environment variable's name: REWARD_KEY"
SOURCES = ("model", "function", "batch_function", "url")
"""Keys of a part of which it has exactly one."""
_HONOURED = {"timeout": ("function", "batch_function", "url"), "batch_size": ("url",), "retries": ("url",),
             "key_env": ("url",)}
"""Further keys -> the sources that heed them."""
TIMEOUT, BATCH_SIZE, RETRIES = 60.0, 64, 3


class RewardPart(Strict):
    """One part of a reward: model, function, batch_function or url, and its weight in the sum."""

    model: Name | None = None
    """A stage of method reward, whose score of prompt and answer counts."""
    function: str | None = None
    """A function of one answer, (record, answer) -> float: a built-in one (`kubealign explain reward` lists them), or
    package.module:function of your own."""
    batch_function: str | None = None
    """package.module:function of your own that judges many answers at once, (records, answers) -> list[float]: one
    number per answer, in order."""
    url: str | None = None
    """An HTTP endpoint that judges: POST {"rows": [{"id", "prompt", "answer", "reference", "meta"}]} gives
    {"scores": [...]}, one number per row, in order."""
    weight: float = 1.0
    """What the part's number is multiplied by in the sum. 0 only logs it."""
    timeout: Annotated[float, Field(gt=0)] | None = None
    """Seconds that a function has for a batch of answers, or an endpoint for a request (each attempt anew).
    Default: 60."""
    batch_size: Positive | None = None
    """Answers of one request to an endpoint, at most. Default: 64."""
    retries: Annotated[int, Field(ge=0)] | None = None
    """Further attempts where an endpoint refuses the connection, is silent or answers 429 or 5xx, at growing
    intervals. Default: 3."""
    key_env: Annotated[str, Field(pattern=_ENV)] | None = None
    """Environment variable that holds an endpoint's key, sent as `Authorization: Bearer`; never logged or stored."""

    @field_validator("url")
    @classmethod
    def _url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            parts.port  # noqa: B018 - raises where it is no number
        except ValueError as error:
            raise ValueError(f"no URL: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("an endpoint is http://HOST[:PORT]/PATH or https://...")
        if parts.username is not None or parts.password is not None:
            raise ValueError("a key does not stand in a URL, which is logged: name its variable in key_env")
        return url

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [key for key in SOURCES if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(SOURCES)}" + (f", not {' and '.join(given)}" if given else ""))
        for key, sources in _HONOURED.items():
            if getattr(self, key) is not None and given[0] not in sources:
                raise ValueError(f"{key} is not heeded by {given[0]}; it is for {', '.join(sources)}")
        return self

    @property
    def source(self) -> str:
        """The one of SOURCES that it has."""
        return next(key for key in SOURCES if getattr(self, key) is not None)

    @property
    def seconds(self) -> float:
        """Its time-out."""
        return TIMEOUT if self.timeout is None else self.timeout


class Rewards(Strict):
    """A reward: the weighted sum of named parts. Each part is logged by its name and has a curve of its own."""

    parts: Annotated[dict[str, RewardPart], Field(min_length=1)]
    """NAME -> what judges and its weight; the name stands in logs and the report."""

    @field_validator("parts")
    @classmethod
    def _names(cls, parts: dict[str, RewardPart]) -> dict[str, RewardPart]:
        for name in parts:
            if not name.replace("-", "").isalnum() or not name.isascii() or len(name) > 40:
                raise ValueError(f"{name!r} is no name of a part: letters, digits and hyphens, 40 at most")
        return parts

    def model_refs(self) -> Iterator[ModelRef]:
        """The reward models; places are a stage's that has this as `reward`."""
        for name, part in self.parts.items():
            if part.model is not None:
                yield ModelRef(("reward", "parts", name, "model"), part.model, "reward")

    def findings(self) -> Iterator[Finding]:
        """What is wrong in a stage that has this as `reward`."""
        if not any(part.weight for part in self.parts.values()):
            yield Finding(("reward", "parts"), "every reward is 0, since no part has a weight", 0.0,
                          "a weight other than 0")

    def judged(self) -> dict[str, Any]:
        """What of it decides the numbers, as JSON: not how long is waited for them."""
        kept = set(RewardPart.model_fields) - set(_HONOURED)
        return {"parts": {name: part.model_dump(mode="json", include=kept, exclude_none=True)
                          for name, part in self.parts.items()}}
