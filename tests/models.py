"""Makes models for tests through the real import stage, without the pipeline around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignment.artifacts import Artifact, FileEntry, Manifest, Store
from alignment.artifacts.work import sha256_of, sizes_below
from alignment.config import ImportModel, Run
from alignment.context import Outcome, StageContext


def context_for(work: Path, model: dict[str, Any], *, seed: int = 3, **stage: Any) -> StageContext:
    """Context of a run with one import stage over `model`; float32 unless `dtype` is given."""
    run = Run.model_validate({
        "name": "import", "seed": seed, "store": str(work / "store"),
        "stages": ({"kind": "import", "name": "base", "model": model, "dtype": "float32", **stage},),
    })
    assert isinstance(run.stages[0], ImportModel)
    return StageContext(run=run, stage=run.stages[0], store=Store(run.store), key="base-0", digest="0" * 64, inputs={},
                        work=work)


def imported(work: Path, model: dict[str, Any], **stage: Any) -> Outcome:
    """Run the import body; the model is in `work`/out/model."""
    from alignment.inference.import_model import import_model

    return import_model(context_for(work, model, **stage))


def as_it_lies(made: Artifact) -> Artifact:
    """The artifact with a manifest of its files as they lie in the store now: what a test changed was made so."""
    folder = Path(made.store.root, "artifacts", made.key)
    manifest = made.manifest.model_copy(update={"files": {
        name: FileEntry(size=size, sha256=sha256_of(folder / name)) for name, size in sizes_below(folder).items()
        if name != "manifest.json"}})
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    return Artifact(made.store, manifest)


def published(store: Store, key: str, folder: Path) -> Artifact:
    """Publish `folder` (used up) as a finished artifact."""
    manifest = Manifest(key=key, digest="0" * 64, stage=key, kind="import", config={}, inputs={}, files={},
                        started="", finished="", seconds=0.0)
    with store.lease(key) as lease:
        return store.publish(manifest, folder, lease)
