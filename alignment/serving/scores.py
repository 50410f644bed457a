"""POST /v1/score: what a reward model gives an answer to a prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from math import isfinite
from typing import Any

from alignment.errors import DataError, KubeAlignError
from alignment.inference.requests import Item
from alignment.serving.measured import Asked
from alignment.serving.refused import Refused
from alignment.serving.service import Model, Service
from alignment.serving.shapes import ScoreRequest, read
from alignment.serving.spoken import Frame


async def scores(service: Service, asked: Asked) -> dict[str, Any]:
    """Raises Refused."""
    request = read(ScoreRequest, asked.body)
    asked.model = request.model
    model = service.named(request.model, "reward", proving=asked.proving)
    found = await score(service, model, request.items())
    frame = Frame.of("list", request.model, "score").body([])
    del frame["choices"]
    return {**frame, "data": [{"index": index, "object": "score", "score": value} for index, value in enumerate(found)]}


async def score(service: Service, model: Model, items: Sequence[Item]) -> list[float]:
    """One number for each (prompt, answer). Raises Refused where the model gives none."""
    assert model.scorer is not None
    try:
        async with service.passing:
            found = await asyncio.to_thread(model.scorer.score, items)
    except KubeAlignError as error:
        raise Refused(400 if isinstance(error, DataError) else 500, str(error), param="messages") from error
    if not all(map(isfinite, found)):
        at = next(at for at, value in enumerate(found) if not isfinite(value))
        raise Refused(400, f"the model gives no score for text {at}: prompt and answer are over its context length, or "
                           "its numbers are not finite", code="context_length_exceeded")
    return found
