"""From artifacts to a `Service`: the rows that each model is held to, and the dtype that they were answered in.

What `kubealign serve` and a replica on Ray Serve have in common. Looks up no names, and loads no weights but those of
models that no evaluation recorded; `Service.load` does, and `proving` proves.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

from alignment.artifacts import Artifact
from alignment.config import Compute
from alignment.config.hardware import native_here
from alignment.config.serve import Limits
from alignment.inference.generator import Pooling
from alignment.inference.proof_rows import ProofRow
from alignment.serving import records
from alignment.serving.service import Model, Service

_CALM = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
         "TRANSFORMERS_VERBOSITY": "error"}
"""Read once, when libraries are loaded: threads that wait by spinning make a shared machine crawl."""


def opened(
    artifacts: Mapping[str, Artifact], compute: Compute, limits: Limits, *, unproved: bool, key: str | None,
    votes: str | None = None, pooling: Pooling | None = None,
) -> Service:
    """A server of the models, which have no weights yet.

    Args:
        artifacts: by the names under which they are served.
        compute: dtype auto is that of the recorded answers, or what this hardware has.
        unproved: whether they are held to nothing.
        key: of the API; None: nobody is asked for one.
        pooling: of embedders; None: as the stages of their store have it.

    Raises:
        ModelError: a model without a record cannot be loaded, so none can be made.
    """
    for name, value in _CALM.items():
        os.environ.setdefault(name, value)
    found = [None] * len(artifacts) if unproved else records.find_all(artifacts.values())
    held = [Model(name, artifact, record) for (name, artifact), record in zip(artifacts.items(), found, strict=True)]
    compute = compute.model_copy(update={"dtype": _dtype(held, compute)})
    for model in held:
        if model.record is None and not unproved:
            model.record = records.make(model.artifact, compute, pooling)
    return Service(held, compute, limits, key=key, votes=votes, pooling=pooling)


def _dtype(held: list[Model], compute: Compute) -> Literal["float32", "bfloat16"]:
    """As asked, or as the recorded answers were computed, or what this hardware has."""
    if compute.dtype != "auto":
        return compute.dtype
    rows = [row for model in held if model.record is not None for row in model.record.rows]
    said = [str(row.made_by["dtype"]) if isinstance(row, ProofRow) else row.dtype for row in rows]
    if said:
        return "float32" if said[0] == "float32" else "bfloat16"
    return "bfloat16" if native_here(compute) == "gpu" else "float32"
