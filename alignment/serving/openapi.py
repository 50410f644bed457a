"""GET /openapi.json: what may be asked of a server, from the very classes that read its requests (shapes.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from alignment import __version__
from alignment.serving.shapes import ChatRequest, CompletionRequest, EmbeddingRequest, ScoreRequest
from alignment.serving.votes import Vote

ASKED: dict[str, tuple[type[BaseModel], str, str | None]] = {
    "/v1/chat/completions": (ChatRequest, "The answer to a conversation.", "policy"),
    "/v1/completions": (CompletionRequest, "What continues a text, or ids.", "policy"),
    "/v1/embeddings": (EmbeddingRequest, "Vectors of texts, or of ids.", "embedder"),
    "/v1/score": (ScoreRequest, "What a reward model gives answers.", "reward"),
    "/votes": (Vote, "Keep which of two answers was found better.", None),
}
"""Path -> what is asked, in words, and of a model of which role."""
STREAMED = ("/v1/chat/completions", "/v1/completions")
REFUSALS = {400: "The request is wrong, or holds a key that is not honoured.", 401: "The API key is wrong.",
            403: "Without a key only this machine's names are called.", 404: "There is no such model, or no votes.",
            408: "The body came too slowly.", 413: "The body is too large.", 415: "The body is not JSON.",
            429: "Too many requests; ask again.", 500: "The server failed.", 503: "Not ready, or about to end.",
            504: "The answer was not made in time."}
TOLD: dict[str, tuple[str, str, bool]] = {
    "/health": ("Whether every engine is up.", "application/json", False),
    "/ready": ("Whether every model is proved.", "application/json", False),
    "/metrics": ("Prometheus' numbers.", "text/plain", False),
    "/v1/models": ("The models that are served.", "application/json", True),
    "/v1/models/{model}": ("One of them.", "application/json", True),
}


class Problem(BaseModel):
    """Why a request gets no answer."""

    message: str
    type: str
    param: str | None
    code: str | None


class Refusal(BaseModel):
    """A refusal as OpenAI has it."""

    error: Problem


def document(served: Mapping[str, str], *, key: bool) -> dict[str, Any]:
    """OpenAPI 3.1.

    Args:
        served: name of each model -> its role.
        key: whether requests have to bring one.
    """
    models: list[type[BaseModel]] = [*(shape for shape, _, _ in ASKED.values()), Refusal]
    references, schemas = models_json_schema([(model, "validation") for model in models],
                                             ref_template="#/components/schemas/{model}")
    names = {model: reference for (model, _), reference in references.items()}
    refusals = {str(status): {"description": words, "content": {"application/json": {"schema": names[Refusal]}}}
                for status, words in REFUSALS.items()}
    guarded: dict[str, Any] = {"security": [{"key": []}]} if key else {}
    paths: dict[str, Any] = {}
    for path, (shape, words, role) in ASKED.items():
        if fitting := [name for name, own in served.items() if own == role]:
            schemas["$defs"][shape.__name__]["properties"]["model"]["enum"] = fitting
        made: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
        if path in STREAMED:
            made["text/event-stream"] = {"schema": {"type": "string"}}
        body = {"required": True, "content": {"application/json": {"schema": names[shape]}}}
        paths[path] = {"post": {
            "summary": words, "requestBody": body,
            "responses": {"200": {"description": words, "content": made}, **refusals}, **guarded}}
    for path, (words, kind, behind) in TOLD.items():
        schema = {"type": "object" if kind == "application/json" else "string"}
        answer = {"description": words, "content": {kind: {"schema": schema}}}
        refused = {status: refusals[status] for status in ("401", "403", "404")} if behind else {"503": answer}
        named = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}]
        paths[path] = {"get": {"summary": words, "responses": {"200": answer, **refused},
                               **({"parameters": named} if "{" in path else {}), **(guarded if behind else {})}}
    return {"openapi": "3.1.0", "info": {"title": "KubeAlign", "version": __version__}, "paths": paths,
            "components": {"schemas": schemas["$defs"],
                           "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}}
