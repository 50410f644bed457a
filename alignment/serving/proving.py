"""The proof: each model is asked its recorded rows by the very path that everybody takes, before anybody else is.

Messages go through the application as a request of HTTP does: its router, its reading of JSON, its template, its
engine. What comes back is held to the record (compared.py), and an adapter has to be told from its base by it. The
outcome lies beside the artifact in the store, which is never changed itself.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections.abc import Iterable
from typing import Any

from alignment import __version__
from alignment.errors import KubeAlignError
from alignment.inference.live.asked import Question
from alignment.inference.live.opened import LiveModel, changes_nothing
from alignment.inference.proof_rows import ProofRow, ScoreRow, VectorRow
from alignment.inference.requests import Draw
from alignment.progress import console
from alignment.serving.answering import parts
from alignment.serving.asgi import App, post
from alignment.serving.compared import (
    BFLOAT16,
    SCORE,
    VECTOR,
    Bounds,
    Compared,
    Served,
    bounds_of,
    compare,
    together,
)
from alignment.serving.door import PROOF_HEADER
from alignment.serving.growing import Plain, Until
from alignment.serving.hosts import REVISION, SERVICE, WRITES
from alignment.serving.service import Model, Service

WHERE = {"service": SERVICE, "cluster": "RAY_CLUSTER_NAME", "revision": REVISION}
"""What a proof says of the pods that it was made in -> variable with it."""


async def prove_all(service: Service, app: App, models: Iterable[Model] | None = None) -> None:
    """Ask every model that has its weights, or those given, and let those be `ready` that are what was recorded."""
    for model in service.models.values() if models is None else models:
        if model.state == "proving":
            try:
                await _prove(service, app, model)
            except KubeAlignError as error:
                model.fail(str(error))
        elif model.state == "failed":
            model.proof = {"proved": False, "problem": model.trouble}
        _say(model)
        service.measured.ready.labels(model.name).set(model.state == "ready")


async def _prove(service: Service, app: App, model: Model) -> None:
    if model.record is None:
        model.proof, model.state = {"proved": False, "problem": None}, "ready"
        return
    began = time.monotonic()
    rows = model.record.rows
    match model.role:
        case "reward":
            outcome = await _of_scores(service, app, model, [row for row in rows if isinstance(row, ScoreRow)])
        case "embedder":
            outcome = await _of_vectors(service, app, model, [row for row in rows if isinstance(row, VectorRow)])
        case _:
            outcome = await _of_texts(service, app, model, [row for row in rows if isinstance(row, ProofRow)])
    model.proof = {"proved": outcome["problem"] is None, "record": model.record.source, **outcome,
                   "seconds": round(time.monotonic() - began, 3)}
    await asyncio.to_thread(_write, model)
    if outcome["problem"] is None:
        model.state = "ready"
    else:
        model.fail(outcome["problem"])


# --- policies ------------------------------------------------------------------------------------------------


async def _of_texts(service: Service, app: App, model: Model, rows: list[ProofRow]) -> dict[str, Any]:
    assert model.live is not None
    if not rows:
        return {"problem": "the record has no answers of this model", "rows": 0}
    served_in = str(model.live.engine.made_by["dtype"])
    assert model.record is not None
    bounds = BFLOAT16 if model.record.rounded else bounds_of(str(rows[0].made_by["dtype"]), served_in)
    answers = await asyncio.gather(*(_asked(service, app, model, row) for row in rows))
    outcomes = [Compared(row.id, answer) if isinstance(answer, str) else compare(row, model.live.stops, answer, bounds)
                for row, answer in zip(rows, answers, strict=True)]
    problem = next((f"row {one.id}: {one.problem}" for one in outcomes if one.problem), None)
    problem = problem or together(rows, outcomes, bounds)
    note = None
    if problem is None and model.live.adapter is not None:
        problem, note = await _unlike_base(model.live, rows, outcomes, bounds)
    off = [value for one in outcomes for value in one.off]
    return {
        "problem": problem, "note": note, "rows": len(rows), "tokens": sum(len(row.answer) for row in rows),
        "compared": len(off), "ties": sum(one.tie is not None for one in outcomes),
        "most_off": round(max(off, default=0.0), 6), "mean_off": round(sum(off) / max(len(off), 1), 7),
        "bounds": {"most": bounds.most, "mean": bounds.mean, "tie": bounds.tie},
        "recorded_by": rows[0].made_by, "served_by": dict(model.live.engine.made_by),
        "each": [{"row": one.id, "problem": one.problem, "compared": len(one.off),
                  "most_off": round(max(one.off, default=0.0), 6), "tie": one.tie} for one in outcomes],
    }


async def _asked(service: Service, app: App, model: Model, row: ProofRow) -> Served | str:
    """What is served for a row's messages; or why nothing is."""
    status, body = await post(app, "/v1/chat/completions", request_of(model.name, row),
                              {PROOF_HEADER: service.proof_key})
    if status != 200:
        return f"the request was refused with {status}: {body['error']['message']}"
    choice = body["choices"][0]
    ids = choice["token_ids"]
    stop = choice["stop_reason"] if choice["finish_reason"] != "length" else None
    return Served(body["prompt_token_ids"], ids, [one["logprob"] for one in choice["logprobs"]["content"]], stop)


def request_of(model: str, row: ProofRow) -> dict[str, Any]:
    """What a client would send to ask a row: tools apart from the turns, and without what is for training alone."""
    tools = row.messages[0].get("tools")
    messages = [{key: value for key, value in turn.items() if key not in ("tools", "learn")} for turn in row.messages]
    return {"model": model, "messages": messages, "temperature": 0.0, "max_tokens": row.most, "logprobs": True,
            "return_token_ids": True, **({"tools": tools} if tools else {})}


async def _unlike_base(
    live: LiveModel, rows: list[ProofRow], own: list[Compared], bounds: Bounds
) -> tuple[str | None, str | None]:
    """Whether the record can tell an adapter from its base: what is wrong, and what is to be said of it."""
    answers = await asyncio.gather(*(_by_base(live, row) for row in rows))
    outcomes = [compare(row, row.stops, served, bounds) for row, served in zip(rows, answers, strict=True)]
    if any(one.problem for one in outcomes) or together(rows, outcomes, bounds) is not None:
        return None, None
    apart, base = (_mean(some) for some in (own, outcomes))
    if base > 2 * apart + 1e-9:
        return None, f"base and adapter are nearer than the bounds: {base:.2g} and {apart:.2g} nats from the record"
    if await asyncio.to_thread(changes_nothing, live.artifact):
        return None, "all of the adapter's second matrices are zero: it says what its base says"
    return (f"the adapter cannot be told from its base: both are as near to the record ({apart:.2g} and {base:.2g} "
            "nats a token)"), None


async def _by_base(live: LiveModel, row: ProofRow) -> Served:
    question = Question(tuple(row.prompt), Draw(temperature=0.0, max_new_tokens=row.most), None, 0)
    tokens = [token async for part in parts(live, question, Until(Plain(live.speaker), ()))
              for token in part.tokens]
    stop = tokens[-1].id if tokens and tokens[-1].id in row.stops else None
    return Served(row.prompt, [token.id for token in tokens], [token.log_prob or 0.0 for token in tokens], stop)


def _mean(outcomes: list[Compared]) -> float:
    off = [value for one in outcomes for value in one.off]
    return sum(off) / max(len(off), 1)


# --- reward models -------------------------------------------------------------------------------------------


async def _of_scores(service: Service, app: App, model: Model, rows: list[ScoreRow]) -> dict[str, Any]:
    if not rows:
        return {"problem": "the record has no scores of this model", "rows": 0}
    bound = max(SCORE[service.compute.dtype], SCORE[rows[0].dtype])
    each, problem = [], None
    for row in rows:
        status, body = await post(app, "/v1/score", {"model": model.name, "messages": row.messages,
                                                     "answers": [row.answer]}, {PROOF_HEADER: service.proof_key})
        if status != 200:
            problem = problem or f"row {row.id}: the request was refused with {status}: {body['error']['message']}"
            continue
        off = abs(body["data"][0]["score"] - row.score)
        each.append({"row": row.id, "off": round(off, 6)})
        if not off <= bound * max(1.0, abs(row.score)):
            problem = problem or (f"row {row.id}: the score is {body['data'][0]['score']:.4f}, recorded "
                                  f"{row.score:.4f}; at most {bound:g} apart")
    return {"problem": problem, "rows": len(rows), "most_off": max((one["off"] for one in each), default=0.0),
            "bounds": {"score": bound}, "each": each}


# --- embedders -----------------------------------------------------------------------------------------------


async def _of_vectors(service: Service, app: App, model: Model, rows: list[VectorRow]) -> dict[str, Any]:
    if not rows:
        return {"problem": "the record has no vectors of this model", "rows": 0}
    assert model.reading is not None
    reading, first, each = model.reading, rows[0], list[dict[str, Any]]()
    if (reading.pooling, reading.normalise) != (first.pooling, first.normalise):
        return {"problem": f"the vectors were recorded with {first.pooling} (normalise {first.normalise}) and are "
                           f"served with {reading.pooling} (normalise {reading.normalise})", "rows": len(rows)}
    bound = max(VECTOR[service.compute.dtype], VECTOR[first.dtype])
    problem = None
    for row in rows:
        status, body = await post(app, "/v1/embeddings", {"model": model.name, "input": row.text},
                                  {PROOF_HEADER: service.proof_key})
        if status != 200:
            problem = problem or f"row {row.id}: the request was refused with {status}: {body['error']['message']}"
            continue
        served = body["data"][0]["embedding"]
        off = (math.dist(served, row.vector) / (math.hypot(*row.vector) or 1.0) if len(served) == len(row.vector)
               else math.inf)
        each.append({"row": row.id, "off": off})
        if not off <= bound:
            problem = problem or (f"row {row.id}: the vector of {len(served)} numbers lies {off:.4g} of its length "
                                  f"from the recorded one of {len(row.vector)}; at most {bound:g}")
    return {"problem": problem, "rows": len(rows), "most_off": max((one["off"] for one in each), default=0.0),
            "bounds": {"vector": bound}, "each": each}


# --- what is told of it --------------------------------------------------------------------------------------


def _write(model: Model) -> None:
    """Beside the artifact. A store that cannot be written is said, and is no fault of the model."""
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    where = {key: os.environ[variable] for key, variable in WHERE.items() if variable in os.environ}
    text = json.dumps({"model": model.name, "artifact": model.artifact.key, "kubealign": __version__, "at": now,
                       **where, **model.proof}, indent=1, ensure_ascii=False)
    by = WRITES.format(**where) if {"service", "revision"} <= where.keys() else ""
    try:
        model.proof["written"] = model.artifact.store.write_proof(model.artifact.key, now, text + "\n", by)
    except KubeAlignError as error:
        console.print(f"! the proof of {model.name} is not kept: {error.problem}", markup=False)


def _say(model: Model) -> None:
    proof = model.proof
    if model.state == "failed":
        console.print(f"x {model.name} ({model.artifact.key}) is NOT served: {model.trouble}", markup=False)
    elif model.record is None:
        console.print(f"! {model.name} ({model.artifact.key}) is served unproved, as asked", markup=False)
    elif model.role != "policy":
        console.print(f"= {model.name} ({model.artifact.key}) is proved: {proof['rows']} "
                      f"{'scores' if model.role == 'reward' else 'vectors'}, at most {proof['most_off']:.2g} off "
                      f"({proof['seconds']:.1f} s)", markup=False)
    else:
        console.print(f"= {model.name} ({model.artifact.key}) is proved: {proof['rows']} rows, {proof['compared']} "
                      f"tokens, log-probabilities at most {proof['most_off']:.2g} nats off, {proof['ties']} ties "
                      f"({proof['seconds']:.1f} s)", markup=False)
    if model.reading is not None and model.state == "ready":
        length = " brought to length 1" if model.reading.normalise else ""
        console.print(f"  vectors are {model.reading.pooling}{length}, {model.reading.source}", markup=False)
    if proof.get("note"):
        console.print(f"! {model.name}: {proof['note']}", markup=False)
