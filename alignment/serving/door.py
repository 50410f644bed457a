"""Who is let in: the key, names of this machine, JSON alone; a body that is not too long and not too slow; refusals in
OpenAI's shape."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from alignment.serving.hosts import LOCAL
from alignment.serving.refused import Refused
from alignment.serving.service import Service

PROOF_HEADER = "x-kubealign-proof"
_READING_S = 30.0
"""Seconds in which a request's body has to come."""
Handler = Callable[[Service, Request], Awaitable[Any]]
Endpoint = Callable[[Request], Awaitable[Response]]


def guarded(service: Service, hosts: Iterable[str] | None, handler: Handler) -> Endpoint:
    """A handler behind the door."""
    known = None if hosts is None else {*LOCAL, *hosts}

    async def endpoint(request: Request) -> Response:
        try:
            if not is_proof(service, request):
                _let_in(service, request, known)
            made: Response = await handler(service, request)
            return made
        except Refused as refused:
            return shaped(refused)

    return endpoint


def _let_in(service: Service, request: Request, hosts: set[str] | None) -> None:
    """Raises Refused."""
    if not has_key(service, request):
        raise Refused(401, "this server asks for its API key: Authorization: Bearer KEY", code="invalid_api_key")
    host = request.headers.get("host", "")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if service.key is None and hosts is not None and name not in hosts:
        raise Refused(403, "a server without an API key is called by this machine's own names alone",
                      code="unknown_host")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.method == "POST" and kind != "application/json":
        # Any page may post plain text across sites without being asked; JSON has to be allowed, and never is.
        raise Refused(415, "the body is to be application/json", code="not_json")


def has_key(service: Service, request: Request) -> bool:
    """Whether a request brings the key, or none is asked for; compared in constant time."""
    if service.key is None:
        return True
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    return hmac.compare_digest(given.strip().encode("utf-8", "replace"), service.key.encode()) and (
        kind.lower() == "bearer")


def is_proof(service: Service, request: Request) -> bool:
    """Whether a request is this process's own."""
    given = request.headers.get(PROOF_HEADER)
    return given is not None and hmac.compare_digest(given.encode("utf-8", "replace"), service.proof_key.encode())


async def body_of(request: Request, most: int) -> bytes:
    """The body. Raises Refused where it is too long, or too slow."""
    read = bytearray()
    said = request.headers.get("content-length", "0")
    try:
        async with asyncio.timeout(_READING_S):
            if not said.isdigit() or int(said) <= most:
                async for piece in request.stream():
                    read += piece
                    if len(read) > most:
                        break
                else:
                    return bytes(read)
    except TimeoutError:
        raise Refused(408, f"the body did not come within {_READING_S:g} s", code="timeout") from None
    raise Refused(413, f"the body is over {most:,} bytes", code="body_too_large")


def shaped(refused: Refused) -> Response:
    """A refusal as OpenAI has it."""
    return JSONResponse(refused.body(), refused.status, headers=refused.headers())
