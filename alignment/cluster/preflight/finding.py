"""One result of `kubealign preflight`: ok, warn or fail, what was seen, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """`fail`: the run would not work. `warn`: it may, but somebody should know."""

    state: Literal["ok", "warn", "fail"]
    topic: str
    seen: str
    do: str = ""


def ok(topic: str, seen: str, do: str = "") -> Finding:
    return Finding("ok", topic, seen, do)


def warn(topic: str, seen: str, do: str = "") -> Finding:
    return Finding("warn", topic, seen, do)


def fail(topic: str, seen: str, do: str = "") -> Finding:
    return Finding("fail", topic, seen, do)
