"""One server's ASGI application over a `Service`: routes, the key, limits, errors in OpenAI's shape, streams that
notice when nobody listens. `kubealign serve` runs it with uvicorn (run.py); whatever else runs ASGI can.

    GET  /health    200 while every engine is up                         no key
    GET  /ready     200 once every model is proved; 503 before, and at the end; with the key, why
    GET  /metrics   Prometheus                                          no key
    GET  /          the page of page/index.html                         no key
    GET  /openapi.json  what may be asked                               no key
    GET  /v1/models, POST /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/score, /votes
"""

from __future__ import annotations

import asyncio
import calendar
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from alignment.serving import votes
from alignment.serving.chat import chat
from alignment.serving.completions import completions
from alignment.serving.door import Endpoint, Handler, body_of, guarded, has_key, is_proof, shaped
from alignment.serving.draining import DRAIN_FILE, Closing, leaving, tell
from alignment.serving.embeddings import embeddings
from alignment.serving.measured import GONE, Asked
from alignment.serving.openapi import document
from alignment.serving.proving import prove_all
from alignment.serving.refused import Refused
from alignment.serving.revive import revive
from alignment.serving.scores import scores
from alignment.serving.service import Model, Service
from alignment.serving.spoken import Reply
from alignment.serving.streams import EventStream, unless_gone

PAGE = Path(__file__).parent / "page" / "index.html"
Call = Callable[[Service, Asked], Awaitable[Reply]]
CALLS: dict[str, Call] = {"/v1/chat/completions": chat, "/v1/completions": completions, "/v1/embeddings": embeddings,
                          "/v1/score": scores}


def build(service: Service, *, hosts: Iterable[str] | None = None, prove: bool = True) -> Starlette:
    """The application. Its start loads the models and proves them, and answers /health and /ready meanwhile.

    Args:
        hosts: names that a request's Host may have, beside the machine's own; None: any. A server that asks for no key
            is to be called by no page of another site, whose name may lead here.
        prove: whether its start does that, and starts engines that end again; else the caller has done the one, and
            sees to the other.
    """
    async def start() -> None:
        await asyncio.to_thread(service.load)
        await prove_all(service, app)
        await revive(service, app)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(tell(lambda: service.in_flight))] if DRAIN_FILE in os.environ else []
        if prove:
            tasks.append(asyncio.create_task(_foreseen(service, start())))
        yield
        for task in tasks:
            task.cancel()
        await asyncio.to_thread(service.close)

    routes = [
        Route("/health", _health(service)), Route("/ready", _ready(service)), Route("/metrics", _metrics(service)),
        Route("/", _page), Route("/openapi.json", _openapi(service)),
        Route("/v1/models", guarded(service, hosts, _models)),
        Route("/v1/models/{model:path}", guarded(service, hosts, _models)),
        Route("/votes", guarded(service, hosts, _vote), methods=["POST"]),
        *(Route(path, guarded(service, hosts, _called(path, call)), methods=["POST"]) for path, call in CALLS.items()),
    ]
    app = Starlette(routes=routes, lifespan=lifespan, middleware=[Middleware(Closing)], exception_handlers={
        HTTPException: _http_error, Exception: _failed})
    return app


async def _foreseen(service: Service, start: Awaitable[None]) -> None:
    """The start; an error that nobody foresaw leaves no model that waits for ever."""
    try:
        await start
    except Exception as error:
        for model in service.models.values():
            if model.state != "ready":
                model.fail(f"{type(error).__name__}: {error}")
        raise


# --- the calls -----------------------------------------------------------------------------------------------


def _called(path: str, call: Call) -> Handler:
    name = path.removeprefix("/v1/")

    async def handle(service: Service, request: Request) -> Response:
        asked, held = Asked(name, is_proof(service, request), service.measured), ExitStack()

        def end(status: int) -> None:
            held.close()
            asked.over(status)

        try:
            held.enter_context(service.admitted(proving=asked.proving))
            asked.body = await body_of(request, service.limits.body)
            async with asyncio.timeout(service.limits.seconds):
                reply = await unless_gone(request, call(service, asked))
        except ClientDisconnect:
            end(GONE)
            return Response(status_code=GONE)  # nobody reads it
        except Refused as refused:
            end(refused.status)
            raise
        except TimeoutError:
            end(504)
            raise Refused(504, f"the answer was not made within {service.limits.seconds:g} s", code="timeout") from None
        except BaseException:
            end(500)
            raise
        if isinstance(reply, dict):
            end(200)
            return JSONResponse(reply)
        if request.scope["http_version"] == "1.0":  # which has no chunks
            end(400)
            raise Refused(400, "stream: needs HTTP/1.1", param="stream", code="invalid_request")
        return EventStream(reply, service.limits.seconds - asked.seconds, lambda gone: end(GONE if gone else 200))

    return handle


# --- what is told of the server ------------------------------------------------------------------------------


def _health(service: Service) -> Endpoint:
    async def health(_: Request) -> Response:
        return JSONResponse({"alive": service.alive}, 200 if service.alive else 503)

    return health


def _ready(service: Service) -> Endpoint:
    async def ready(request: Request) -> Response:
        told = has_key(service, request)
        models = {model.name: {"state": model.state, **(_told(model) if told else {})}
                  for model in service.models.values()}
        draining = service.draining or leaving()
        return JSONResponse({"ready": service.ready, "draining": draining, "models": models},
                            200 if service.ready else 503)

    return ready


def _told(model: Model) -> dict[str, Any]:
    return {"artifact": model.artifact.key, "trouble": model.trouble, "proof": model.proof}


def _metrics(service: Service) -> Endpoint:
    async def metrics(_: Request) -> Response:
        return Response(service.measured.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return metrics


async def _page(_: Request) -> Response:
    if not PAGE.is_file():
        raise HTTPException(404)
    return FileResponse(PAGE, headers={
        "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
                                   "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
                                   "frame-ancestors 'none'"})


def _openapi(service: Service) -> Endpoint:
    made = document({name: model.role for name, model in service.models.items()}, key=service.key is not None)

    async def openapi(_: Request) -> Response:
        return JSONResponse(made)

    return openapi


async def _models(service: Service, request: Request) -> Response:
    entries = {model.name: {
        "id": model.name, "object": "model", "owned_by": "kubealign", "root": model.artifact.key,
        "created": _seconds(model.artifact.manifest.finished), "kind": model.role,
        "ready": model.state == "ready", "max_model_len": model.longest,
    } for model in service.models.values()}
    name = request.path_params.get("model")
    if name is None:
        return JSONResponse({"object": "list", "data": list(entries.values())})
    if name not in entries:
        raise Refused(404, f"the model {name!r} is not served here", code="model_not_found", param="model")
    return JSONResponse(entries[name])


def _seconds(stamp: str) -> int:
    try:
        return calendar.timegm(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return 0


async def _vote(service: Service, request: Request) -> Response:
    body = await body_of(request, service.limits.body)
    return JSONResponse(await asyncio.to_thread(votes.keep, service.votes, body))


# --- errors --------------------------------------------------------------------------------------------------


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: f"there is nothing at {request.url.path}", 405: f"{request.method} is not for {request.url.path}"}
    made = shaped(Refused(error.status_code, words.get(error.status_code, str(error.detail)), code="no_such_call"))
    made.headers.update(error.headers or {})  # Allow
    return made


async def _failed(_: Request, error: Exception) -> Response:
    return shaped(Refused(500, "the server met an error of its own; its log has it", code="internal_error"))
