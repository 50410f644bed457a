"""A small finished run whose models are served: made once by the real pipeline, copied where a test damages it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignment import pipeline
from alignment.artifacts import Artifact, Manifest, Store
from alignment.config import Compute, Run
from alignment.config.serve import Limits
from alignment.serving import records
from alignment.serving.app import build
from alignment.serving.proving import prove_all
from alignment.serving.service import Model, Service
from tests.small import run, train

CPU = Compute(device="cpu", dtype="float32", engine="transformers")
ANSWER = 12


def made(folder: Path) -> tuple[Run, dict[str, Artifact]]:
    """A base, an adapter over it, a reward model, and the evaluation of all three."""
    evaluate = {"name": "eval", "kind": "evaluate", "models": ["base", "sft"], "rows": "data/test", "bootstrap": 100,
                "sampling": {"max_new_tokens": ANSWER}, "score": {"model": "rm"}, "perplexity": False}
    one = run(folder, train("sft", epochs=2), train("rm", "reward", "base"), evaluate)
    found = pipeline.execute(one).artifacts
    return one, {name: artifact for name, artifact in found.items() if artifact is not None}


def copied(artifact: Artifact, folder: Path) -> Artifact:
    """The artifact in a store of its own, with all that lies beside it but what other tests have proved."""
    shutil.copytree(artifact.store.root, folder, ignore=shutil.ignore_patterns("proof-*.json"))
    found = Store(str(folder)).find(artifact.key)
    assert found is not None
    return found


def service_of(models: dict[str, Artifact], limits: Limits | None = None, **more: Any) -> Service:
    """The models with the records that their store has of them."""
    return Service([Model(name, artifact, records.find(artifact)) for name, artifact in models.items()], CPU,
                   limits or Limits(), **more)


def proved(service: Service, plant: Callable[[Service], None] = lambda service: None) -> Service:
    """The service after its proof, closed again; `plant` comes between weights and proof."""
    async def prove() -> None:
        app = build(service, prove=False)
        service.load()
        plant(service)
        await prove_all(service, app)

    try:
        asyncio.run(prove())
    finally:
        service.close()
    return service


def published(store: Store, key: str, kind: str, folder: Path, inputs: dict[str, str], **facts: Any) -> Artifact:
    """Publish `folder` (used up) as a finished artifact."""
    manifest = Manifest(key=key, digest="0" * 64, stage=key, kind=kind, config={}, inputs=inputs, files={}, facts=facts,
                        started="", finished="", seconds=0.0)
    with store.lease(key) as lease:
        return store.publish(manifest, folder, lease)
