"""Objects as an API server holds them, and something done a little later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tests.cluster.api_server import Json


def rayjob(name: str = "r-sft-11112222-1", **status: Any) -> Json:
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "status": status,
            "metadata": {"name": name, "namespace": "align", "labels": {
                "kubealign.dev/run": "r", "kubealign.dev/stage": "sft", "kubealign.dev/attempt": "1"}}, "spec": {}}


def pod(name: str, labels: dict[str, str], **status: Any) -> Json:
    return {"apiVersion": "v1", "kind": "Pod", "status": status, "spec": {},
            "metadata": {"name": name, "namespace": "align", "labels": labels}}


def later(seconds: float, action: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()
