"""POST /v1/embeddings: vectors of texts, or of ids as they stand, by the code that makes them for stages.

Which states stand for a text, and whether vectors have length 1, is what the stages of the store have (records.py),
never a key of the request. A text that is over the model's context length is refused, where stages cut it and count.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

from alignment.errors import KubeAlignError
from alignment.inference.generator import Embedder
from alignment.serving.measured import Asked
from alignment.serving.records import MOST_TOKENS
from alignment.serving.refused import Refused
from alignment.serving.service import Model, Service
from alignment.serving.shapes import EmbeddingRequest, read

TOGETHER = 32
"""Inputs of one batch; nobody else's are in it."""


async def embeddings(service: Service, asked: Asked) -> dict[str, Any]:
    """Raises Refused."""
    request = read(EmbeddingRequest, asked.body)
    asked.model = request.model
    model = service.named(request.model, "embedder", proving=asked.proving)
    width = model.artifact.manifest.facts.get("hidden_size")
    if request.dimensions not in (None, width):
        raise Refused(400, f"dimensions: this model's vectors have {width} numbers, and shortened ones are not served",
                      param="dimensions")
    data: list[dict[str, Any]] = []
    tokens = 0
    for start in range(0, len(request.inputs), TOGETHER):
        async with service.passing:
            vectors, length = await asyncio.to_thread(_embedded, service, model,
                                                      request.inputs[start: start + TOGETHER], start)
        tokens += length
        data += [{"object": "embedding", "index": start + place, "embedding":
                  base64.b64encode(vector.astype("<f4").tobytes()).decode() if request.encoding_format == "base64"
                  else [float(value) for value in vector]} for place, vector in enumerate(vectors)]
    asked.tokens(tokens, 0)
    return {"object": "list", "model": request.model, "data": data,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def _embedded(service: Service, model: Model, inputs: Sequence[str | list[int]], start: int) -> tuple[Any, int]:
    """Vectors [inputs, H], and how many tokens they are of. Raises Refused."""
    embedder, reading = model.embedder, model.reading
    assert embedder is not None
    assert reading is not None
    try:
        ids = [_ids(embedder, one) for one in inputs]
        most = min(service.limits.longest or MOST_TOKENS, embedder.context_length or MOST_TOKENS)
        for place, own in enumerate(ids, start):
            if len(own) > most:
                raise Refused(400, f"this model takes {most} tokens, and input {place} has {len(own)}", param="input",
                              code="context_length_exceeded")
        length = sum(map(len, ids))
        how: Any = {"pooling": reading.pooling, "normalise": reading.normalise}
        texts = [one for one in inputs if isinstance(one, str)]
        return embedder.embed(texts, max_tokens=most, **how)[0] if texts else embedder.embed_ids(ids, **how), length
    except KubeAlignError as error:
        raise Refused(500, str(error), param="input") from error


def _ids(embedder: Embedder, given: str | list[int]) -> list[int]:
    if isinstance(given, str):
        return embedder.ids(given)
    known = embedder.vocabulary
    wrong = next((index for index in given if index >= known), None)
    if wrong is not None:
        raise Refused(400, f"the model has no token {wrong}: its vocabulary has {known}", param="input")
    return given
