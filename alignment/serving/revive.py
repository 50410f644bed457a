"""An engine that has ended is started again, and its models prove themselves anew before they answer anybody.

Meanwhile they are answered with 503 and Retry-After, and so is /health. TIMES within WITHIN_S; an engine that ends more
often stays down and its models are failed, which /health goes on to say: what is wrong then, a start does not mend.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from alignment.inference.live.asked import LiveEngine
from alignment.progress import console
from alignment.serving.asgi import App
from alignment.serving.proving import prove_all
from alignment.serving.service import Model, Service

TIMES = 3
WITHIN_S = 600.0
_LOOK_S = 0.2
_PAUSE_S = 2.0
"""Between two starts, of which the first failed."""


async def revive(service: Service, app: App) -> None:
    """As long as the server runs."""
    starts: dict[str, deque[float]] = {}
    while True:
        if (engine := service.gone()) is not None:
            models = service.lose(engine)
            if models:
                await _again(service, app, engine, models, starts.setdefault(models[0].name, deque()))
        await asyncio.sleep(_LOOK_S)


async def _again(service: Service, app: App, engine: LiveEngine, models: list[Model], starts: deque[float]) -> None:
    """Until its models have an engine, or it has been started too often."""
    names, words = ", ".join(model.name for model in models), str(engine.trouble)
    _say(f"x the engine of {names} has ended: {words}")
    while True:
        now = time.monotonic()
        while starts and now - starts[0] > WITHIN_S:
            starts.popleft()
        if len(starts) >= TIMES:
            words = f"its engine was started {TIMES} times within {WITHIN_S / 60:g} minutes and ended: {words}"
            for model in models:
                model.fail(words)
            _say(f"x {names}: not started again, and answered with 503 until the server is: {words}")
            return
        starts.append(now)
        _say(f"! the engine of {names} is started again ({len(starts)} of {TIMES})")
        await asyncio.to_thread(service.reload, engine, models)
        await prove_all(service, app, models)
        engines = [model.live.engine for model in models if model.live is not None]
        trouble = [one.trouble for one in engines if one.trouble is not None]
        if engines and not trouble:
            service.found(models)
            return
        words = next(iter(trouble), None) or next((model.trouble for model in models if model.trouble), None) or words
        if engines:
            engine = engines[0]
        await asyncio.sleep(_PAUSE_S)


def _say(words: str) -> None:
    console.print(words, markup=False)
