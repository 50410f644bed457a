"""Waiting for what a cluster does in its own time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

from alignment.cluster.client.client import Client

Found = TypeVar("Found")


def until(ready: Callable[[], Found], seconds: float = 60.0, what: str = "", pause: float = 0.2) -> Found:
    """What `ready` says as soon as it is something; fails the test after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = ready()
        if found:
            return found
        time.sleep(pause)
    pytest.fail(f"not within {seconds:.0f} s: {what or ready}")


def gone(client: Client, kind: str, name: str) -> None:
    """Delete an object and see it go: until then, who looks for it finds it, and nobody can make it anew."""
    client.delete(kind, name)
    until(lambda: not client.exists(kind, name), 120, f"{kind} {name} goes")
